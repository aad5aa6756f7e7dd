"""The ideal loops of the methods that replace features: every coalition that is not yet known runs once.

The inputs themselves run in the same chunks as the rest. They are for one input tensor; see ideal.py for `rows` and
the rest.
"""

from collections.abc import Callable
from functools import cache
from math import comb

import torch
from torch import Tensor

from .ideal import Model, Tensors, cuts

Kept = Callable[[slice], Tensor]  # some of the coalitions -> 1 for the elements they keep, else 0: [c, ...]


@torch.no_grad()
def values(
    model: Model,
    x: Tensor,
    count: int,
    kept: Kept,
    rows: int,
    baseline: float,
    target: int | None,
    extra: Tensor | None = None,
) -> Tensor:
    """The explained numbers of all examples at count coalitions: [count, B]."""
    found = []
    for part in cuts(count, max(1, rows // len(x))):
        keep = kept(part)[:, None]
        batch = (keep * x if baseline == 0 else torch.where(keep == 1, x, baseline)).flatten(0, 1)
        copies = len(batch) // len(x)
        out = model(batch) if extra is None else model(batch, extra.repeat(copies, *[1] * (extra.dim() - 1)))
        found.append((out if target is None else out[:, target]).reshape(copies, len(x)))
    return found[0] if len(found) == 1 else torch.cat(found)


@cache
def each_element(shape: torch.Size, device: torch.device) -> Tensor:
    """Every element as a feature of its own: [1, ...]."""
    return torch.arange(shape.numel(), device=device).view(1, *shape)


def of_elements(coalitions: Tensor, ids: Tensor, x: Tensor) -> Kept:
    """Which elements coalitions bool [C, M] keep, ids [1, ...] being the features of elements."""
    numbers = coalitions.to(x.dtype)
    if ids.numel() == coalitions.shape[1]:
        return lambda part: numbers[part].view(-1, *ids.shape[1:])
    return lambda part: numbers[part].index_select(1, ids.flatten()).view(-1, *ids.shape[1:])


def spread(scores: Tensor, ids: Tensor, x: Tensor) -> Tensors:
    """Scores [B, M] of features as those of elements."""
    return (scores.index_select(1, ids.flatten()).view(-1, *ids.shape[1:]).expand(x.shape),)


def feature_ablation(
    model: Model,
    inputs: Tensors,
    rows: int,
    *,
    feature_mask: Tensor | None = None,
    baselines: float = 0,
    target: int | None = None,
    additional_forward_args: Tensor | None = None,
) -> Tensors:
    """FeatureAblation."""
    (x,) = inputs
    ids = each_element(x.shape[1:], x.device) if feature_mask is None else feature_mask
    count = ids.numel() if feature_mask is None else int(ids.max()) + 1
    coalitions = torch.ones(count + 1, count, dtype=torch.bool, device=x.device)
    coalitions[1:].fill_diagonal_(False)
    found = values(
        model, x, len(coalitions), of_elements(coalitions, ids, x), rows, baselines, target, additional_forward_args
    )
    return spread((found[0] - found[1:]).t(), ids, x)


@cache
def windows(
    shape: torch.Size, window: tuple[int, ...], strides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is left by no window, then by each of those that slide over a shape; and how many windows hold an element"""
    held = torch.ones(1, *[1] * len(shape), dtype=torch.bool, device=device)
    for axis, (size, width, stride) in enumerate(zip(shape, window, strides, strict=True)):
        starts = torch.arange(0, size - width + stride, stride, device=device)
        places = torch.arange(size, device=device)
        along = (starts[:, None] <= places) & (places < starts[:, None] + width)
        around = [1] * len(shape)
        around[axis] = size
        held = (held[:, None] & along.view(1, len(starts), *around)).flatten(0, 1)
    return torch.cat([torch.ones_like(held[:1]), ~held]), held.float().sum(0)


def occlusion(
    model: Model,
    inputs: Tensors,
    rows: int,
    *,
    sliding_window_shapes: tuple[int, ...],
    strides: tuple[int, ...],
    target: int | None = None,
) -> Tensors:
    """Occlusion with a baseline of zero."""
    (x,) = inputs
    kept, times = windows(x.shape[1:], sliding_window_shapes, strides, x.device)
    found = values(model, x, len(kept), lambda part: kept[part].to(x.dtype), rows, 0, target)
    lost = (found[0] - found[1:]).t()
    return ((lost @ (~kept[1:]).flatten(1).to(lost.dtype)).view_as(x).div_(times),)


def shapley_value_sampling(
    model: Model,
    inputs: Tensors,
    rows: int,
    *,
    n_samples: int,
    feature_mask: Tensor | None = None,
    target: int | None = None,
) -> Tensors:
    """ShapleyValueSampling from a baseline of zero, for at most 62 features; coalitions have the bits of a number."""
    (x,) = inputs
    ids = each_element(x.shape[1:], x.device) if feature_mask is None else feature_mask
    count = ids.numel() if feature_mask is None else int(ids.max()) + 1
    orders = torch.stack([torch.randperm(count) for _ in range(n_samples)]).to(x.device)
    joined = torch.cat([orders.new_zeros(n_samples, 1), (1 << orders).cumsum(1)], dim=1)
    numbers, place = joined.unique(return_inverse=True)
    coalitions = (numbers[:, None] >> torch.arange(count, device=x.device)) & 1 == 1
    found = values(model, x, len(coalitions), of_elements(coalitions, ids, x), rows, 0, target)
    gains = found[place].diff(dim=1).flatten(0, 1)
    total = gains.new_zeros(count, len(x)).index_add_(0, orders.flatten(), gains)
    return spread(total.t() / n_samples, ids, x)


@cache
def all_coalitions(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All coalitions of features [2^count, count], and how much the value at each weighs for a feature's score."""
    coalitions = (torch.arange(2**count, device=device)[:, None] >> torch.arange(count, device=device)) & 1 == 1
    weights = torch.tensor([0.0] + [1 / (count * comb(count - 1, size)) for size in range(count)] + [0.0])
    sizes = coalitions.sum(1, keepdim=True)
    return coalitions, torch.where(coalitions, weights.to(device)[sizes], -weights.to(device)[sizes + 1])


def shapley_values(model: Model, inputs: Tensors, rows: int, *, target: int | None = None) -> Tensors:
    """ShapleyValues of an input's elements from a baseline of zero."""
    (x,) = inputs
    ids = each_element(x.shape[1:], x.device)
    coalitions, weights = all_coalitions(ids.numel(), x.device)
    found = values(model, x, len(coalitions), of_elements(coalitions, ids, x), rows, 0, target)
    return spread(found.t() @ weights, ids, x)
