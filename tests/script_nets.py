"""Modules with layers in all the places where TorchScript lets them be."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(6, 6), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.fc(x))


class Nested(nn.Module):
    """Layers behind methods, in containers, in a branch, and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.unused = nn.Linear(4, 6), nn.Linear(6, 3), nn.ReLU()
        self.sequence = nn.Sequential(Block(), Block())
        self.listed = nn.ModuleList([Block(), Block()])

    def encode(self, x: Tensor) -> Tensor:
        return self.sequence(torch.tanh(self.stem(x)))

    def forward(self, x: Tensor, scale: float = 0.5) -> Tensor:
        x = self.encode(x)
        for block in self.listed:
            x = block(x)
        if bool(x.sum() > -1e9):
            return self.head(x) * scale + self.head(x * x)
        return self.head(-x)


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, times: int) -> Tensor:
        x = self.stem(x)
        for i in range(times):
            x = self.layer(x)
            if i % 2 == 0:
                x = x + torch.tanh(self.layer(x))
        return self.head(x)


class Recurrent(nn.Module):
    """A layer that returns a tensor and a tuple of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.lstm(x.exp())
        return self.head(y.sum(1) * h[0] + c[0])


class Parts(NamedTuple):
    total: Tensor
    parts: list[Tensor]
    maybe: Optional[Tensor]  # noqa: UP045 - TorchScript


class Several(nn.Module):
    """A layer that takes and returns tensors in lists and named tuples, and some that may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(
        self,
        x: Tensor,
        others: list[Tensor],
        scale: float,
        missing: Optional[Tensor] = None,  # noqa: UP045
        present: Optional[Tensor] = None,  # noqa: UP045
    ) -> Parts:
        y = self.fc(x) * scale + others[0] * others[1]
        if missing is not None:
            y = y + missing
        if present is not None:
            y = y * present
        return Parts(y, [y + 1, y * 2], present)


class Caller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(4, 4), Several(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.stem(x.cos())
        y = self.stem(x)
        found = self.layer(y, others=[y.exp(), y.sin()], scale=0.5, present=y + 2)
        maybe = found.maybe
        assert maybe is not None
        again = self.layer(y, [y, y.cos()], 1.0, y.square())
        return self.head(found.total * found.parts[0] + found.parts[1] * maybe) + again.total.sum()


class Convolutions(nn.Module):
    """Batch norm's checks, and activations that write over what a skip connection reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.relu = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True)
        self.b, self.dropout, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Dropout(0.5), nn.Linear(2, 3)

    def checked(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            y = x * 2
        else:
            raise ValueError("expected four dimensions")
        return y

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.relu(self.bn(self.checked(self.a(x)))))
        y = y + self.relu(self.bn(self.b(y)))
        return self.head(y.mean([2, 3]))


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        later = torch.jit.fork(self.layer, x.exp())
        return self.layer(x) * torch.jit.wait(later)


class Tied(nn.Module):
    """The last layer's weights are the first one's, which a trace makes an argument of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Guarded(nn.Module):
    """Does not get by its last check; layers stand before it, one of them in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(2):
            x = self.inner(x)
        if x.dim() == 2:
            raise ValueError("came by")
        return x


class Checked(nn.Module):
    """Checks what is also needed behind the layer, or what only the layer needs, or what it returns."""

    __constants__ = ("kind",)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)

    def doubled(self, x: Tensor) -> Tensor:
        if x.size(0) == 5:
            y = x * 2
        else:
            raise ValueError("expected five rows")
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.kind == "returned":
            return self.doubled(x) + self.layer(x)
        if self.kind == "behind":
            y = self.layer(x)
            self.doubled(y.exp())
            return y
        if x.size(0) != 5:
            raise ValueError("expected five rows")
        if self.kind == "needed":
            return self.layer(x) + x
        return self.layer(self.doubled(x))


class Effects(nn.Module):
    """What feeds the layer draws random numbers or writes to a buffer, according to kind."""

    __constants__ = ("kind",)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.bn, self.dropout = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.lstm, self.layer = nn.LSTM(4, 4, num_layers=2, dropout=0.5), nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.kind == "count":
            self.count.add_(1)
        elif self.kind == "dropout":
            x = self.dropout(x)
        elif self.kind == "batch norm":
            x = self.bn(x)
        elif self.kind == "lstm":
            x = self.lstm(x)[0]
        elif self.kind == "random":
            x = x + torch.rand_like(x)
        elif self.kind == "always":
            x = torch.dropout(x, 0.5, True)
        return nn.functional.dropout(self.layer(x) + self.count, 0.5, self.training)


class Odd(nn.Module):
    """Layers that are chosen as it runs, or return what is not tensors, or pass their input on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.identity = Block(), Block(), Block(), nn.Identity()
        self.mapping, self.number = Mapping(), Number()

    def forward(self, x: Tensor, which: int = 0) -> Tensor:
        chosen = self.a if which else self.b
        x = chosen.forward(self.c(x))
        x = x * self.number(x)
        return self.mapping(self.identity(x))["y"]


with warnings.catch_warnings():
    warnings.simplefilter("ignore")

    @torch.jit.interface
    class Callee(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pass


class Indexed(nn.Module):
    """A layer that is chosen by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor, which: int = 0) -> Tensor:
        block: Callee = self.listed[which]
        return block.forward(x)


class Mapping(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": x.exp()}


class Number(nn.Module):
    def forward(self, x: Tensor) -> int:
        return x.dim()


def with_a_hook(layer: str) -> nn.Module:
    def hook(self: Any, args: tuple[Tensor], out: Tensor) -> Tensor:
        return out * 2

    module = nn.Sequential(Block(), Block())
    module.get_submodule(layer).register_forward_hook(hook)
    return module
