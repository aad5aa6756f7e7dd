"""Which feature each element of the inputs belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError


@dataclass(frozen=True, slots=True)
class Features:
    """ids: an input's features, int32 [1 or examples, ...], numbered 0 to count - 1. labels: a user's numbers of them.

    shapes: of the inputs. in_order: every element is a feature of its own, numbered from the first to the last.
    """

    ids: tuple[Tensor | None, ...]
    count: int
    labels: Tensor
    shapes: tuple[torch.Size | None, ...]
    in_order: bool = False

    @property
    def total(self) -> int:
        """The largest number a user gave, plus one: features from zero to there that no element has do nothing."""
        return int(self.labels[-1]) + 1 if self.count else 0

    def spread(self, scores: Tensor) -> tuple[Tensor | None, ...]:
        """Scores [*outputs, count] of features as those of elements: [*outputs, ...] for each input."""
        pairs = zip(self.ids, self.shapes, strict=True)
        if self.in_order:
            sizes = [i.numel() for i in self.ids if i is not None]
            parts = iter((scores,) if len(sizes) == 1 else scores.split(sizes, -1))
            return tuple([None if s is None else next(parts).reshape(*scores.shape[:-1], *s[1:]) for s in self.shapes])
        return tuple([None if i is None or s is None else _spread(scores, i, s) for i, s in pairs])

    def held_by(self, index: int) -> Tensor:
        """Which features have elements in an input: bool [count]."""
        ids = self.ids[index]
        found = torch.zeros(self.count, dtype=torch.bool, device=self.labels.device)
        return found if ids is None else found.index_fill_(0, ids.flatten().to(found.device).long(), True)


def _spread(scores: Tensor, ids: Tensor, shape: torch.Size) -> Tensor:
    outputs = scores.shape[:-1]
    if ids.numel() == 0:
        return scores.new_zeros((*outputs, *shape[1:]))
    if ids.shape[0] == 1:
        return scores[..., ids.flatten().long().to(scores.device)].reshape(*outputs, *shape[1:])
    if not outputs or outputs[0] != ids.shape[0]:
        raise ArgumentError(
            f"feature_mask: got {ids.shape[0]} rows for an output of shape {tuple(outputs)}; "
            "expected one row, as the model returns no row an example"
        )
    flat = ids.reshape(len(ids), -1).long().to(scores.device)
    index = flat.view(len(flat), *[1] * (len(outputs) - 1), -1).expand(*outputs, -1)
    return scores.gather(-1, index).reshape(*outputs, *shape[1:])


def of_elements(inputs: Sequence[Tensor | None]) -> Features:
    """Every element of an example is a feature of its own."""
    return _of_elements(_shapes(inputs), tuple([None if x is None else x.device for x in inputs]))


@lru_cache(maxsize=4)
def _of_elements(shapes: tuple[torch.Size | None, ...], devices: tuple[torch.device | None, ...]) -> Features:
    ids: list[Tensor | None] = []
    count = 0
    with torch.inference_mode(False):
        for shape, device in zip(shapes, devices, strict=True):
            if shape is None:
                ids.append(None)
                continue
            n = shape[1:].numel()
            ids.append(torch.arange(count, count + n, dtype=torch.int32, device=device).view(1, *shape[1:]))
            count += n
        in_order = all(shape is None or shape.numel() for shape in shapes)
        return Features(tuple(ids), count, torch.arange(count), shapes, in_order)


def of_mask(mask: Any, inputs: Sequence[Tensor | None], name: str = "feature_mask") -> Features:
    """Elements of one number are one feature; of_elements where there is no mask.

    Arguments:
        mask: integers that broadcast to an input, or a tuple of those; inputs may share numbers.
        inputs: [examples, ...] each.

    Raises:
        ArgumentError: as many masks as inputs, their shapes, or numbers from zero up do not fit.
    """
    if mask is None:
        return of_elements(inputs)
    masks = mask if isinstance(mask, tuple) else (mask,)
    if len(masks) != len(inputs):
        raise ArgumentError(f"{name}: got {len(masks)} masks; expected one for each of {len(inputs)} inputs")
    wide = [
        None if x is None else _fitted(f"{name}[{i}]" if len(masks) > 1 else name, m, x)
        for i, (m, x) in enumerate(zip(masks, inputs, strict=True))
    ]
    present = [m for m in wide if m is not None]
    labels, places = torch.unique(torch.cat([m.flatten() for m in present]), return_inverse=True)
    if len(labels) and int(labels[0]) < 0:
        raise ArgumentError(f"{name}: got the feature number {int(labels[0])}; expected numbers from 0")
    parts = iter(places.int().split([m.numel() for m in present]))
    ids = [
        None if m is None or x is None else _expanded(next(parts).view(m.shape), x).to(x.device)
        for m, x in zip(wide, inputs, strict=True)
    ]
    return Features(tuple(ids), len(labels), labels, _shapes(inputs))


def _fitted(name: str, mask: Any, x: Tensor) -> Tensor:
    """A mask with as many dimensions as its input, on the CPU."""
    if not isinstance(mask, Tensor):
        raise ArgumentTypeError(f"{name}: got {type(mask).__name__}; expected a tensor of integers")
    if mask.is_floating_point() or mask.is_complex():
        raise ArgumentTypeError(f"{name}: got a tensor of {mask.dtype}; expected integers")
    if mask.dim() <= x.dim():
        mask = mask.reshape(*[1] * (x.dim() - mask.dim()), *mask.shape)
        if all(m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)):
            integers: Tensor = mask.detach().cpu().long()
            return integers
    raise ArgumentError(
        f"{name}: got shape {tuple(mask.shape)} for an input of shape {tuple(x.shape)}; "
        "expected a shape that broadcasts to it"
    )


def _expanded(ids: Tensor, x: Tensor) -> Tensor:
    return ids.expand(ids.shape[0], *x.shape[1:]).contiguous()


def _shapes(inputs: Sequence[Tensor | None]) -> tuple[torch.Size | None, ...]:
    return tuple([None if x is None else x.shape for x in inputs])
