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
    "optional": lambda: Subject(Optional(), (noise(4, 6), None), 1),
}
NAMES = tuple(_BUILDERS)


@cache
def subject(name: str) -> Subject:
    """The subject of this name; always the same weights and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        built = _BUILDERS[name]()
    built.module.eval()
    return built
