"""The autograd node of every rule that compares an example with its baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backward import run_backward
from .state import Pass, below
from .tape import Entry, Tape

Tensors = tuple[Tensor, ...]
# back(step, gradients of the outputs, values, the baselines' values) -> gradients of the values.
Back = Callable[["Step", tuple[Tensor | None, ...], Tensors, Tensors], tuple[Tensor, ...]]


@dataclass(slots=True)
class Step:
    """One operator of the examples' forward: call evaluates it on its varying tensors, back is its rule."""

    call: Callable[..., Any]
    back: Back
    tape: Tape
    entry: Entry
    eps: float
    autocast: tuple[str, torch.dtype] | None = None
    slope: Tensor | None = None
    value: Any = None

    def pair(self, ref: Tensor, x: Tensor) -> Tensor:
        """A tensor of the baselines as it stands against one of the examples."""
        return self.tape.pair(ref, x)


class _Change(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, *xs: Tensor) -> Any:
        ctx.step = step
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*xs)
        y = step.value
        step.value = None
        outputs = y if isinstance(y, tuple) else (y,)
        ctx.mark_non_differentiable(*[t for t in outputs if not (t.is_floating_point() or t.is_complex())])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        xs = ctx.saved_tensors
        if all(g is None for g in gradients):
            return (None,) * (1 + len(xs))
        step = ctx.step
        if step.autocast is not None:
            with torch.autocast(step.autocast[0], dtype=step.autocast[1]):
                return _Change._back(step, xs, gradients)
        return _Change._back(step, xs, gradients)

    @staticmethod
    def _back(step: Step, xs: Tensors, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        refs = tuple([step.pair(ref, x) for ref, x in zip(step.entry.tensors, xs, strict=True)])
        found = step.back(step, gradients, xs, refs)
        return (None, *[g if g is None else g.to(x.dtype) for g, x in zip(found, xs, strict=True)])


def of_first(op: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Any]:
    """An operator as a function of its first operand, of which it holds none: a tape would keep its graph alive."""
    return lambda x: op(x, *rest, **kwargs)


def change(
    running: Pass,
    op: Any,
    xs: Tensors,
    call: Callable[..., Any],
    back: Back,
    sloped: bool = False,
    entry: Entry | None = None,
    constant: Tensor | None = None,
) -> Any:
    """call(*xs) with the rule back; xs are the tensors that depend on the explained ones."""
    tape = running.tape
    assert tape is not None
    if running.recording:
        tape.record(op, xs, call, constant)
        with below():
            return call(*xs)
    step = Step(call, back, tape, entry or tape.next(op, xs), running.rule.eps, _autocast(xs[0].device.type))
    if tape.copies:
        with below():
            xs = tuple([x.clone() for x in xs])
    with below():
        if sloped:
            step.value, step.slope = with_slope(call, xs[0])
        else:
            with torch.no_grad():
                step.value = _detached(call(*[x.detach() for x in xs]))
        apply: Any = _Change.apply
        return apply(step, *xs)


def with_slope(call: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """An elementwise operator's value and derivative."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        y = call(at)
        if not y.requires_grad:
            return y, torch.zeros_like(x)
        (slope,) = run_backward(y, torch.ones_like(y), (at,))
    assert slope is not None
    return y.detach(), slope


def _autocast(device: str) -> tuple[str, torch.dtype] | None:
    """The autocast that an operator runs in: its backward evaluates it again."""
    return (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None


def _detached(y: Any) -> Any:
    return tuple([t.detach() for t in y]) if isinstance(y, (tuple, list)) else y.detach()
