"""Small models, each with inputs that it takes: the subjects of the case table."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = namedtuple("Pair", ["hidden", "scores"])


@dataclass(frozen=True)
class Subject:
    """A model with inputs, a target and additional arguments.

    distribution: baselines [7, ...] to draw from, in the form of inputs.
    peer: the same model in a form that captum can explain, where it cannot explain module.
    """

    module: nn.Module
    inputs: Any
    target: Any = None
    extra: tuple[Any, ...] = ()
    peer: Callable[..., Tensor] | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)

    @property
    def examples(self) -> int:
        return next(len(x) for x in self.tensors if x is not None)

    @property
    def distribution(self) -> Any:
        drawn = tuple(None if x is None else noise(7, *x.shape[1:], seed=31 + i) for i, x in enumerate(self.tensors))
        return drawn if isinstance(self.inputs, tuple) else drawn[0]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int, most: int = 20, seed: int = 0) -> Tensor:
    """Ids from 1 on; 0 is left for references."""
    return torch.randint(1, most, shape, generator=torch.Generator().manual_seed(seed))


class Mlp(nn.Sequential):
    def __init__(self, features: int = 8, outputs: int = 3, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__(nn.Linear(features, 16), activation(), nn.Linear(16, 8), activation(), nn.Linear(8, outputs))


class Cnn(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 4, 4)
        )


class TwoInputs(nn.Module):
    """Takes two inputs of different rank and one row of scale for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(a) * self.second(b.flatten(1)))
        return self.head(hidden) * scale


class ManyKinds(nn.Module):
    """Takes an additional argument of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        ids: Tensor,
        power: int,
        nothing: None,
        name: str,
        factors: list[float],
        negate: bool,
        zero_dim: Tensor,
    ) -> Tensor:
        assert nothing is None
        out = getattr(torch, name)(self.body(x)) ** power + bias[:, None] * x.sum(1, keepdim=True) + ids[:, None]
        return (-out if negate else out) * sum(factors) * zero_dim


class Number(nn.Module):
    """One number an example: [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp(outputs=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(1)


class Volume(nn.Module):
    """Three-dimensional output: [B, 2, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).unflatten(1, (2, 4))


class Flat(nn.Module):
    """Takes inputs [B] without features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.body(x[:, None]))


class Tokens(nn.Module):
    """Tokens x features with a residual, functional activations, and the mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(x + F.relu(self.inner(x))).mean(1))


class Wrapped(nn.Module):
    """The scores of body inside another form of output."""

    def __init__(self, body: nn.Module, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.form = body, form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.body(x))


class Ignores(nn.Module):
    """Does not use its second input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp(6)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.body(a)


class Optional(nn.Module):
    """Takes None for its second input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp(6)

    def forward(self, a: Tensor, b: Tensor | None) -> Tensor:
        return self.body(a if b is None else a + b)


class Skip(nn.Module):
    """Convolutions around which a skip connection leads; modules only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act1 = nn.Conv2d(1, 3, 3, padding=1), nn.ReLU()
        self.inner, self.act2 = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
        self.pool, self.body, self.act3, self.head = nn.AvgPool2d(2), nn.Linear(27, 5), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act1(self.stem(x))
        hidden = self.act2(self.inner(hidden)) + hidden
        return self.head(self.act3(self.body(self.pool(hidden).flatten(1))))


class Joined(nn.Module):
    """Takes two inputs and a row of scale for each example; modules only, but for what is linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 3)
        self.tanh, self.relu = nn.Tanh(), nn.ReLU()

    def forward(self, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        hidden = torch.cat([self.tanh(self.first(a)), self.relu(self.second(b.flatten(1)))], 1)
        return self.head(hidden) * scale


class Twice(nn.Module):
    """Calls one of its layers twice, in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act1, self.act2, self.head = nn.Linear(8, 8), nn.Tanh(), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.inner(self.act1(self.inner(x)))))


class Siamese(nn.Module):
    """Calls one of its layers twice, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act1, self.act2, self.head = nn.Linear(4, 6), nn.Tanh(), nn.Tanh(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x[:, :4], x[:, 4:]
        return self.head(self.act1(self.inner(first)) - 2 * self.act2(self.inner(second)))


class Embedded(nn.Module):
    """Token ids, and ids of their kinds, in two embedding layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(20, 5), nn.Embedding(3, 5)
        self.body, self.act, self.head = nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)

    def forward(self, words: Tensor, kinds: Tensor) -> Tensor:
        return self.head(self.act(self.body(self.words(words) + self.kinds(kinds))).mean(1))


class Compared(nn.Module):
    """Two rows of token ids in one embedding layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(20, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.words(a).mean(1)) * self.body(self.words(b).mean(1))))


class Recurrent(nn.Module):
    """A layer that returns a tuple, in which not all tensors have their rows first."""

    def __init__(self, layer: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(6, 3)


class Lstm(Recurrent):
    def __init__(self) -> None:
        super().__init__(nn.LSTM(4, 6, num_layers=2, batch_first=True))

    def forward(self, x: Tensor) -> Tensor:
        out, (h, c) = self.layer(x)
        return self.head(torch.tanh(out.mean(1) + h[-1] * c[0] + h[0]))


class Gru(Recurrent):
    def __init__(self) -> None:
        super().__init__(nn.GRU(4, 6, num_layers=2, batch_first=True))

    def forward(self, x: Tensor) -> Tensor:
        out, h = self.layer(x)
        return self.head(torch.tanh(out.mean(1) + h[-1] * h[0]))


class Merged(nn.Module):
    """A layer that sees the tokens of all examples as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x.flatten(0, 1)))
        return self.head(hidden.view(x.shape[0], x.shape[1], 6).mean(1))


class Overwriting(nn.Module):
    """Layers that write over what they take."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act1 = nn.Linear(8, 8), nn.ReLU(inplace=True)
        self.inner, self.act2, self.head = nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.inner(self.act1(self.stem(x)))))


class Backbone(nn.Module):
    """Turns gradients off around its first layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.act, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.inner(self.stem(x))
        return self.head(self.act(hidden))


class Recorder(nn.Module):
    """Notes how many rows each call of a model sees; refuses, as a full memory would, more than capacity of them."""

    def __init__(self, body: Callable[..., Any], capacity: int | None = None) -> None:
        super().__init__()
        self.body, self.capacity = body, capacity
        self.rows: list[int] = []
        self.train(getattr(body, "training", False))

    def forward(self, *args: Any) -> Any:
        self.rows.append(next(len(a) for a in args if isinstance(a, Tensor)))
        if self.capacity is not None and self.rows[-1] > self.capacity:
            raise torch.OutOfMemoryError("Tried to allocate more than there is")
        return self.body(*args)


def _kinds_extra() -> tuple[Any, ...]:
    return (noise(4, seed=5), torch.arange(4), 2, None, "tanh", [0.5, 1.0], True, torch.tensor(1.5))


def _wrapped(form: Callable[[Tensor], Any]) -> Subject:
    body = Mlp()
    return Subject(Wrapped(body, form), noise(5, 8), 1, peer=body)


def _ignores() -> Subject:
    module = Ignores()
    return Subject(module, (noise(4, 6), noise(4, 2, seed=1)), 0, peer=lambda a, b: module(a, b) + 0 * b.sum())


_BUILDERS: dict[str, Callable[[], Subject]] = {
    "mlp": lambda: Subject(Mlp(), noise(5, 8), 1),
    "smooth": lambda: Subject(Mlp(activation=nn.Tanh), noise(5, 8), 1),
    "one_row": lambda: Subject(Mlp(), noise(1, 8), 2),
    "cnn": lambda: Subject(Cnn(), noise(3, 1, 8, 8), 2),
    "two_inputs": lambda: Subject(
        TwoInputs(), (noise(4, 6), noise(4, 2, 3, seed=1)), 1, (noise(4, 1, seed=2).abs() + 1,)
    ),
    "many_kinds": lambda: Subject(ManyKinds(), noise(4, 6), 1, _kinds_extra()),
    "number": lambda: Subject(Number(), noise(5, 8)),
    "column": lambda: Subject(Mlp(outputs=1), noise(5, 8)),
    "volume": lambda: Subject(Volume(), noise(3, 6), (1, 2)),
    "flat": lambda: Subject(Flat(), noise(6), 0),
    "tokens": lambda: Subject(Tokens(), noise(3, 7, 5), 0),
    "linear": lambda: Subject(nn.Linear(8, 3), noise(5, 8), 1),
    "in_a_dict": lambda: _wrapped(lambda out: {"hidden": 2 * out, "logits": out}),
    "in_a_tuple": lambda: _wrapped(lambda out: (out, 2 * out)),
    "in_a_namedtuple": lambda: _wrapped(lambda out: Pair(out, 2 * out)),
    "in_an_object": lambda: _wrapped(lambda out: SimpleNamespace(loss=None, logits=out)),
    "ignores": _ignores,
    "skip": lambda: Subject(Skip(), noise(4, 1, 6, 6), 2),
    "joined": lambda: Subject(Joined(), (noise(4, 6), noise(4, 2, 3, seed=1)), 1, (noise(4, 1, seed=2).abs() + 1,)),
    "twice": lambda: Subject(Twice(), noise(5, 8), 1),
    "siamese": lambda: Subject(Siamese(), noise(5, 8), 1),
    "embedded": lambda: Subject(Embedded(), (tokens(4, 6), tokens(4, 6, most=3, seed=1)), 1),
    "compared": lambda: Subject(Compared(), (tokens(4, 6), tokens(4, 3, seed=1)), 1),
    "lstm": lambda: Subject(Lstm(), noise(5, 3, 4), 1),
    "gru": lambda: Subject(Gru(), noise(5, 3, 4), 1),
    "merged": lambda: Subject(Merged(), noise(5, 3, 4), 1),
    "overwriting": lambda: Subject(Overwriting(), noise(5, 8), 1),
    "backbone": lambda: Subject(Backbone(), noise(5, 8), 1),
    "optional": lambda: Subject(Optional(), (noise(4, 6), None), 1),
}
NAMES = tuple(_BUILDERS)


def register(builders: dict[str, Callable[[], Subject]]) -> None:
    """Let subject know more models."""
    _BUILDERS.update(builders)


@cache
def subject(name: str) -> Subject:
    """The subject of this name; always the same weights and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        built = _BUILDERS[name]()
    built.module.eval()
    return built
