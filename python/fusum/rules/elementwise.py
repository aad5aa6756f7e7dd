"""DeepLift's rescale rule: elementwise operators of one varying tensor pass on dy / dx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .change import Step, Tensors, change
from .state import Pass, below, varies
from .straight import product
from .tape import rescale

aten: Any = torch.ops.aten


def relu(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """ReLU, whose derivative and value the kernel knows."""
    return change(running, op, args[:1], op, _relu_back)


def _relu_back(step: Step, gradients: tuple[Tensor | None, ...], xs: Tensors, refs: Tensors) -> Tensors:
    (g,) = gradients
    assert g is not None
    return (rescale(g, xs[0], refs[0], None, None, None, step.eps),)


def elementwise(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any operator whose output element depends on one element of one varying tensor."""
    x, call = of_varying(op, args, kwargs)
    return change(running, op, (x,), call, _back, sloped=True)


def of_varying(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The varying tensor, and the operator as a function of it."""
    place = next(i for i, a in enumerate(args) if varies(a))
    before, after = args[:place], args[place + 1 :]

    def call(x: Tensor) -> Any:
        return op(*before, x, *after, **kwargs)

    shape = torch.broadcast_shapes(*[a.shape for a in args if isinstance(a, Tensor)])
    x = args[place]
    return x if x.shape == shape else x.expand(shape), call


def _back(step: Step, gradients: tuple[Tensor | None, ...], xs: Tensors, refs: Tensors) -> Tensors:
    (g,), (x,), (ref,) = gradients, xs, refs
    assert g is not None
    with torch.no_grad():
        y = step.call(x)
        # The baselines' other arguments may have rows, too: all of theirs are evaluated, then paired.
        y_ref = step.pair(step.entry.call(step.entry.tensors[0]), y)
    slope = step.slope
    if y.dtype != x.dtype:  # the constant operand is more precise
        x, ref, slope = x.to(y.dtype), ref.to(y.dtype), None if slope is None else slope.to(y.dtype)
    return (rescale(g, x, ref, y, y_ref, slope, step.eps),)


def with_constant(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> Any:
    """An operator that is linear for a constant operand at place, unless that is another one for baselines.

    So it is where it was made of the explained tensor in a way that has no gradient, such as a mask x > 0.
    """
    constant, tape = args[place], running.tape
    assert tape is not None
    if not isinstance(constant, Tensor) or constant.dim() == 0:
        with below():
            return op(*args, **kwargs)
    x, call = of_varying(op, args, kwargs)
    if running.recording:
        return change(running, op, (x,), call, _back, constant=constant)
    entry = tape.next(op, (x,))
    theirs = entry.constant
    same = (
        theirs is not None and theirs.shape == constant.shape and (not tape.together or torch.equal(theirs, constant))
    )
    if not same:
        return change(running, op, (x,), call, _back, sloped=True, entry=entry)
    with below():
        return op(*args, **kwargs)


def multiply(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """a * b."""
    if varies(args[0]) and varies(args[1]):
        return product(running, op, args, kwargs)
    return with_constant(running, op, args, kwargs, 1 if varies(args[0]) else 0)


def divide(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """a / b = a * (1 / b)."""
    if not varies(args[1]) and kwargs.get("rounding_mode") is None:
        return with_constant(running, op, args, kwargs, 1)
    if varies(args[0]) and kwargs.get("rounding_mode") is None:
        return args[0] * args[1].reciprocal()
    return elementwise(running, op, args, kwargs)


def where(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """where(condition, a, b) = where(condition, a, 0) + where(condition, 0, b)."""
    condition, a, b = args
    if not (varies(a) and varies(b)):
        return with_constant(running, op, args, kwargs, 0)
    return op(condition, a, torch.zeros_like(b)) + op(condition, torch.zeros_like(a), b)


def masked_fill(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """a where the mask is false."""
    if varies(args[0]) and not varies(args[2]):
        return with_constant(running, op, args, kwargs, 1)
    return torch.where(args[1], args[2], args[0])


def rrelu(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """rrelu_with_noise(x, noise, lower, upper, training, generator), which is leaky_relu in evaluation mode."""
    x, _, lower, upper, training, *_ = args
    if training:
        return elementwise(running, op, args, kwargs)
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2)


def glu(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """a * sigmoid(b) of the two halves."""
    a, b = args[0].chunk(2, args[1])
    return a * b.sigmoid()


def log_sigmoid(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """-softplus(-x), and the buffer of torch's own backward."""
    return -torch.nn.functional.softplus(-args[0]), args[0].detach()
