"""How near a perturbed input is to the one that is explained: the weight of a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..plan.arguments import Arguments
from ..plan.features import Features

DISTANCES = ("cosine", "euclidean")
# What torch takes for the norm of a vector of zeros.
_LEAST_NORM = 1e-8


@dataclass(frozen=True, slots=True)
class ExpKernel:
    """exp(-distance^2 / (2 kernel_width^2)) of inputs, flattened and joined; distance_mode: cosine or euclidean."""

    distance_mode: str = "cosine"
    kernel_width: float = 1.0

    def __post_init__(self) -> None:
        if self.distance_mode not in DISTANCES:
            raise ArgumentError(f"distance_mode: got {self.distance_mode!r}; expected one of {list(DISTANCES)}")
        if not self.kernel_width * self.kernel_width > 0:
            raise ArgumentError(f"kernel_width: got {self.kernel_width!r}; expected a positive number")

    def __call__(self, original_inp: Any, perturbed_inp: Any, _: Any = None, **kwargs: Any) -> float:
        """The weight of one sample."""
        x, at = _flat(original_inp), _flat(perturbed_inp)
        if self.distance_mode == "euclidean":
            distance = torch.linalg.vector_norm(x - at)
        else:
            distance = 1 - torch.cosine_similarity(x, at, dim=0)
        return math.exp(-(float(distance) ** 2) / (2 * self.kernel_width**2))

    def weights(self, products: Tensor, coalitions: Tensor) -> Tensor:
        """The weights of coalitions [g, n, features], of which products has a row each: float64 [g, n].

        What an input at a coalition and the explained one have in common is a sum over features: it is not made.
        """
        own, mixed, base = products.unbind(-1)
        present = torch.stack([own - mixed, own - base], -1)
        absent = torch.stack([mixed, base], -1).sum(1, keepdim=True)
        dot, square = (coalitions.double() @ present + absent).unbind(-1)
        whole = own.sum(1, keepdim=True)
        if self.distance_mode == "euclidean":
            squared = (whole - 2 * dot + square).clamp(min=0)
        else:
            norms = whole.sqrt().clamp(min=_LEAST_NORM) * square.clamp(min=0).sqrt().clamp(min=_LEAST_NORM)
            squared = (1 - dot / norms).square()
        return (squared / (-2 * self.kernel_width**2)).exp()


def products(arguments: Arguments, features: Features, groups: int) -> Tensor:
    """Sums over each feature's elements of input^2, input * baseline and baseline^2: float64 [groups, count, 3].

    groups: 1, all rows of all inputs, which may have different numbers of them; or one for each example.
    """
    found = torch.zeros(3, groups, features.count, dtype=torch.float64, device=arguments.device)
    for x, b, ids in zip(arguments.inputs, arguments.baselines, features.ids, strict=True):
        if x is None or b is None or ids is None:
            continue
        x, base = torch.broadcast_tensors(x.double(), b.like_rows().double())
        each = torch.stack([x * x, x * base, base * base]).reshape(3, groups, x.numel() // groups).to(found.device)
        ids = ids.expand_as(x)[None] if groups == 1 else ids
        index = ids.reshape(len(ids), each.shape[2]).long().to(found.device)
        if len(index) == 1:
            found.index_add_(2, index[0], each)
        else:
            found.scatter_add_(2, index.expand_as(each), each)
    return found.permute(1, 2, 0)


def _flat(x: Any) -> Tensor:
    return torch.cat([each.flatten().float() for each in (x if isinstance(x, tuple) else (x,)) if each is not None])
