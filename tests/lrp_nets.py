"""Nets for the tests of LRP, each with the shape of an input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import seed
from models import Mlp, noise

WEIGHTED = (nn.Linear, nn.Conv2d)


class Convolutional(nn.Module):
    """features, flattened, and dense layers."""

    def __init__(self, *features: nn.Module, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.head = nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def pooled(pool: nn.Module, width: int) -> nn.Module:
    return Convolutional(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(3, 2, 2), nn.ReLU(), width=width)


def normed() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    for statistic in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        statistic.uniform_(0.5, 1.5)
    return Convolutional(nn.Conv2d(1, 3, 3, padding=1), norm, nn.ReLU(), nn.Dropout(), width=192)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (Mlp, (8,)),
    "tanh": (lambda: Mlp(activation=nn.Tanh), (8,)),
    "max": (lambda: pooled(nn.MaxPool2d(2), 18), (1, 8, 8)),
    "average": (lambda: pooled(nn.AvgPool2d(2), 18), (1, 8, 8)),
    "adaptive": (lambda: pooled(nn.AdaptiveAvgPool2d(3), 8), (1, 8, 8)),
    "norm": (normed, (1, 8, 8)),
}


class Residual(nn.Module):
    """Additions that no module shows."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.add, self.activation = add, activation
        self.first, self.second, self.last = (nn.Linear(*sizes, bias=False) for sizes in ((8, 8), (8, 8), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.add(x, self.activation(self.first(x)))
        return self.last(self.activation(self.add(self.second(hidden), hidden)))


class Addition(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Shift(nn.Module):
    """A constant that stands before what it is added to."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = torch.full((3,), by, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.by.expand_as(x).add(x)


class AddedTwice(nn.Module):
    """x + x + x's mean, concatenated with what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        total = x + x
        total += x.mean(1, keepdim=True)
        return self.last(torch.cat([total.flip(1), torch.relu(x)], 1))


FREE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: NETS[name] for name in ("mlp", "tanh", "max", "average", "adaptive")},
    "overlapping": (lambda: pooled(nn.MaxPool2d(3, 1, 1), 98), (1, 8, 8)),
    "residual": (lambda: Residual(torch.add, torch.relu), (8,)),
    "residual in place": (lambda: Residual(lambda a, b: (2 * b).add_(a), F.relu), (8,)),
    "residual of modules": (lambda: Residual(Addition(), nn.ReLU()), (8,)),
    "residual of tanh": (lambda: Residual(lambda a, b: a + b, torch.tanh), (8,)),
    "residual of gelu": (lambda: Residual(lambda a, b: a + b, F.gelu), (8,)),
    "subtraction": (lambda: Residual(lambda a, b: a - 0.5 * b, torch.relu), (8,)),
    "addition of itself": (AddedTwice, (8,)),
}


def built(name: str, bias: bool = True) -> tuple[nn.Module, Tensor]:
    """A net with inputs, always the same, in float64; its weights so large that an epsilon of 1e-9 changes nothing."""
    make, shape = {**NETS, **FREE}[name]
    seed()
    model = make().double().eval()
    for layer in layers_of(model):
        layer.weight.data *= 4
        layer.bias = layer.bias if bias else None
    return model, noise(4, *shape).double()


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, WEIGHTED)]
