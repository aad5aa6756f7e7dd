"""The mean of an operator's own gradient on the straight line from the baseline's values to the example's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import StrictError
from ..plan.points import quadrature
from ..settings import current
from .change import Step, Tensors, change
from .state import Pass, varies

_NODES = 32


def product(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Products of two varying tensors: d(ab) = da (b + b') / 2 + db (a + a') / 2, the gradient in the middle."""
    return _straight(running, op, args, kwargs, 1)


def line(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any differentiable operator; says so once for each, as only a closed form is exact for all of them."""
    if current().strict:
        raise StrictError(f"strict: DeepLift has no rule for {op}: its gradient would be averaged along a line")
    if running.recording and running.tape is not None and op.name() not in running.tape.named:
        running.tape.named.add(op.name())
        warnings.warn(
            f"DeepLift has no rule for {op}: its gradient is averaged along the line from baselines to inputs",
            UserWarning,
            stacklevel=2,
        )
    return _straight(running, op, args, kwargs, _NODES)


def _straight(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], nodes: int) -> Any:
    flat, build = flatten(args, kwargs)
    places = [i for i, a in enumerate(flat) if varies(a)]
    operands = tuple([flat[i] for i in places])
    flat = [None if i in places else a for i, a in enumerate(flat)]  # a tape would keep their graph alive

    def call(*xs: Tensor) -> Any:
        changed = list(flat)
        for place, x in zip(places, xs, strict=True):
            changed[place] = x
        positional, named = build(changed)
        return op(*positional, **named)

    return change(running, op, operands, call, partial(_back, nodes=nodes))


def _back(step: Step, gradients: tuple[Tensor | None, ...], xs: Tensors, refs: Tensors, *, nodes: int) -> Tensors:
    wanted = [i for i, g in enumerate(gradients) if g is not None]

    def outputs(*at: Tensor) -> Tensors:
        found = step.call(*at)
        every = found if isinstance(found, (tuple, list)) else (found,)
        return tuple([every[i] for i in wanted])

    totals: list[Tensor] = []
    for node, weight in zip(*quadrature("gausslegendre", nodes), strict=True):
        at = [torch.lerp(ref.expand_as(x), x, node) for x, ref in zip(xs, refs, strict=True)]
        back: Any = torch.func.vjp(outputs, *at)[1]
        found = back(tuple([gradients[i] for i in wanted]))
        parts = [weight * g for g in found]
        totals = parts if not totals else [t + part for t, part in zip(totals, parts, strict=True)]
    return tuple(totals)


def flatten(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The arguments with lists of tensors opened, and the way back."""
    flat: list[Any] = []
    sizes: list[int | None] = []
    for a in (*args, *kwargs.values()):
        opened = isinstance(a, (list, tuple)) and any(isinstance(t, Tensor) for t in a)
        sizes.append(len(a) if opened else None)
        flat.extend(a if opened else [a])

    def build(changed: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        values, at = [], 0
        for size in sizes:
            values.append(changed[at] if size is None else changed[at : at + size])
            at += 1 if size is None else size
        return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

    return flat, build
