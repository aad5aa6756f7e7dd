"""The default ``gradient_func``: gradients of the explained number with respect to given tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..plan.arguments import as_extra
from ..plan.target import Target
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
        no_parameters = not isinstance(forward_fn, torch.nn.Module) and not inspect.signature(forward_fn).parameters
        out = explained(forward_fn() if no_parameters else forward_fn(*items, *as_extra(additional_forward_args)))
        if out.dim() == 0:
            raise ArgumentError("forward_fn: returned a tensor with no dimensions; expected one row an example")
        target = Target.of(target_ind, len(out))
        return differentiate(out, items, target.cotangent(out, device_rows(target, out)))


def device_rows(target: Target, out: Tensor) -> Tensor | None:
    """The target's rows on the device of out."""
    return None if target.rows is None else target.rows.to(out.device)


def differentiate(out: Tensor, inputs: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """cotangent pulled back from out to inputs; an unused input gets zeros, but not all of them may be unused."""
    if not out.requires_grad:
        raise ArgumentError(
            "forward_func: its output carries no gradient; expected it to depend on inputs differentiably"
        )
    found = torch.autograd.grad(out, inputs, cotangent, allow_unused=True)
    if None not in [g if g is None else 0 for g in found]:
        return found
    if all(g is None for g in found):
        raise ArgumentError(
            "forward_func: its output does not depend on inputs; expected it to depend on them differentiably"
        )
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True))
