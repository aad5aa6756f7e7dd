"""The rule of maxima: an output's change goes to the position that won for the example, or to the baseline's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .change import Step, Tensors, change, of_first
from .state import Pass

aten: Any = torch.ops.aten


def max_pool(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Pools with indices over the last dimensions: max_pool2d_with_indices, adaptive_max_pool2d and their like."""
    spatial = 3 if op._schema.name.endswith(("3d", "3d_with_indices")) else 2
    return _maximum(running, op, args, kwargs, list(range(-spatial, 0)))


def max_dim(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """max(x, dim), min(x, dim): values and indices; max(x, y), max(x)."""
    name = op._schema.name.rpartition("::")[2]
    if len(args) > 1 and isinstance(args[1], Tensor):
        return getattr(torch, f"{name}imum")(args[0], args[1])
    if len(args) == 1:
        return getattr(torch, f"a{name}")(args[0])
    x, dim, keep = args
    return max_along(running, op, x, [dim], keep, name == "min")


def extreme(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """amax(x, dims), amin(x, dims)."""
    x, dims, keep = args
    return max_along(running, op, x, list(dims) or list(range(x.dim())), keep, op._schema.name.endswith("amin"))[0]


def of_two(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """maximum(a, b), minimum(a, b)."""
    a, b = torch.broadcast_tensors(*args)
    return max_along(running, op, torch.stack([a, b]), [0], False, op._schema.name.endswith("minimum"))[0]


def max_along(running: Pass, op: Any, x: Tensor, dims: list[int], keep: bool, least: bool) -> tuple[Tensor, Tensor]:
    """The greatest or least values along dims, and where the first of them are."""
    places = sorted(d % x.dim() for d in dims)
    moved = x.movedim(places, list(range(-len(places), 0))) if x.dim() else x
    flat = -moved if least else moved

    def call(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return x.flatten(-len(places)).max(-1)

    value, index = change(running, op, (flat,), call, partial(_back, dims=len(places)))
    value = -value if least else value
    for place in places if keep else ():
        value, index = value.unsqueeze(place), index.unsqueeze(place)
    return value, index


def _maximum(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dims: list[int]) -> Any:
    return change(running, op, args[:1], of_first(op, args[1:], kwargs), partial(_back, dims=len(dims)))


def _back(step: Step, gradients: tuple[Tensor | None, ...], xs: Tensors, refs: Tensors, *, dims: int) -> Tensors:
    """dims: how many last dimensions of x the indices run over."""
    (g, *_), (x,), (ref,) = gradients, xs, refs
    assert g is not None
    with torch.no_grad():
        index = step.call(x)[1]
        index_ref = step.pair(step.entry.call(step.entry.tensors[0])[1], index)
    flat, flat_ref = x.flatten(-dims), ref.flatten(-dims)
    lead = flat.shape[:-1]
    g, at, at_ref = (t.reshape(*lead, -1) for t in (g, index, index_ref.expand(index.shape)))
    flat_ref = flat_ref.expand(flat.shape)
    y, y_ref = flat.gather(-1, at), flat_ref.gather(-1, at_ref)
    rise = y - y_ref
    # |rise| is never more than the change at the winning position, so nothing is divided by less than it.
    up = torch.where(rise > 0, rise / (y - flat_ref.gather(-1, at)), ((rise == 0) & (at == at_ref)).to(rise.dtype))
    down = torch.where(rise < 0, rise / (flat.gather(-1, at_ref) - y_ref), torch.zeros_like(rise))
    found = torch.zeros_like(flat + flat_ref).scatter_add(-1, at, g * up).scatter_add(-1, at_ref, g * down)
    return (found.reshape(found.shape[:-1] + x.shape[x.dim() - dims :]),)
