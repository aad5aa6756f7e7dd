"""The default ``gradient_func``: gradients of the explained number with respect to given tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, NoGradientError
from ..plan.arguments import as_extra
from ..plan.target import Target
from .cpu import run_backward
from .model import explained


def compute_gradients(
    forward_fn: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    target_ind: Any = None,
    additional_forward_args: Any = None,
) -> tuple[Tensor, ...]:
    """Gradients of forward_fn's explained numbers with respect to inputs, which require gradients already.

    Arguments:
        forward_fn: takes inputs and additional_forward_args, or nothing at all.
        inputs: a tensor or a tuple of tensors, examples along the first dimension.
        target_ind: a target in any form, with an index for each row of the output where it has several.
        additional_forward_args: one more argument, or a tuple of them.

    Raises:
        ArgumentError: the output has no rows or does not depend on inputs, or the target does not fit it.
    """
    items = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.enable_grad():
        given = (*items, *as_extra(additional_forward_args)) if _takes_arguments(forward_fn) else ()
        out = explained(forward_fn(*given))
        if out.dim() == 0:
            raise ArgumentError("forward_fn: returned a tensor with no dimensions; expected one row an example")
        target = Target.of(target_ind, len(out))
        rows = None if target.rows is None else target.rows.to(out.device)
        return differentiate(target.pick(out, rows), items)


def _takes_arguments(function: Callable[..., Any]) -> bool:
    if isinstance(function, torch.nn.Module):
        return True
    try:
        return bool(inspect.signature(function).parameters)
    except ValueError:  # compiled functions have no signature, and nobody compiles one that takes nothing
        return True


@dataclass(frozen=True, slots=True)
class Unused:
    """Which tensors of layers may have no influence: not all of a layer's, unless any; layers: how many each has."""

    layers: tuple[int, ...] = ()
    any: bool = False


def differentiate(
    numbers: Tensor, inputs: Sequence[Any], keep_graph: bool = False, unused: Unused | None = None
) -> tuple[Tensor, ...]:
    """Gradients of each of the explained numbers; zeros for a tensor of no influence, if it may be one."""
    if unused is not None and not numbers.requires_grad:
        return filled([None] * len(inputs), inputs, unused)
    require_gradient(numbers)
    found = run_backward(numbers, torch.ones_like(numbers), inputs, keep_graph)  # one root for autograd, not one a row
    return filled(found, inputs, unused)


def require_gradient(numbers: Tensor) -> None:
    """Raise unless numbers may be differentiated."""
    if numbers.is_complex():
        raise ArgumentError(f"forward_func: returned {numbers.dtype}; expected real numbers")
    if not numbers.requires_grad:
        raise NoGradientError(
            "forward_func: its output carries no gradient; expected it to depend on inputs differentiably"
        )


def filled(
    found: Sequence[Tensor | None], inputs: Sequence[Tensor], unused: Unused | None = None
) -> tuple[Tensor, ...]:
    """Gradients with zeros for tensors of no influence, if they may be."""
    if unused is None:
        if not [g for g in found if g is not None]:
            raise NoGradientError("forward_func: its output does not depend on any of inputs; expected it to")
    elif not unused.any:
        start = 0
        for i, size in enumerate(unused.layers):
            start += size
            if not [g for g in found[start - size : start] if g is not None]:
                which = f"layer {i + 1} of {len(unused.layers)}" if len(unused.layers) > 1 else "it"
                hint = "grad_kwargs={'allow_unused': True} gives zeros where a method takes it"
                raise NoGradientError(
                    f"layer: the output does not depend on what {which} holds; expected it to ({hint})"
                )
    return tuple([torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)])
