"""Layer-wise relevance propagation: the relevance of a value is the value times what a backward brings it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..backward import run_backward
from ..errors import ArgumentError, ArgumentTypeError
from ..plan.propagation import EpsilonRule, IdentityRule, PropagationRule
from . import elementwise
from .change import with_slope
from .deeplift import LINEAR
from .intercept import Table
from .names import operators
from .state import Pass, below, varies
from .tape import rescale

_DEFAULT = EpsilonRule()
_MODULE_CALL = nn.Module._call_impl.__code__


class _Back(torch.autograd.Function):
    """y, of which gradients go back to x by a function."""

    @staticmethod
    def forward(ctx: Any, back: Any, y: Tensor, x: Tensor) -> Tensor:
        ctx.back = back
        return y.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.back(gradient)


class _Stabilised(torch.autograd.Function):
    """y, of which gradients go back times y / (y + epsilon), epsilon of the sign of y: none where y is zero."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, epsilon: float) -> Tensor:
        # Not of y itself, which may be written over. In place, as new memory is what takes time.
        ctx.save_for_backward(y.abs().reciprocal_().mul_(epsilon).add_(1).reciprocal_())
        return y.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


def _back(back: Callable[[Tensor], Tensor], y: Tensor, x: Tensor) -> Tensor:
    """y, of which gradients go back to x by a function."""
    apply: Any = _Back.apply
    return apply(back, y, x)  # type: ignore[no-any-return]


def _stabilised(y: Tensor, rule: PropagationRule) -> Tensor:
    apply: Any = _Stabilised.apply
    return apply(y, rule.STABILITY_FACTOR)  # type: ignore[no-any-return]


def _kept_from_zero(y: Tensor, epsilon: float) -> Tensor:
    return y + torch.where(y < 0, -epsilon, epsilon)


def _rule(running: Pass) -> PropagationRule:
    """The rule of the module that is being called."""
    return _called(running)[1]


def _called(running: Pass) -> tuple[str, PropagationRule]:
    """The name and the rule of the module that is being called; told by the stack, for nothing is put on models."""
    frame = sys._getframe(1) if running.rule.modules else None
    while frame is not None:
        if frame.f_code is _MODULE_CALL:
            found: tuple[str, PropagationRule] = running.rule.modules.get(id(frame.f_locals["self"]), ("", _DEFAULT))
            return found
        frame = frame.f_back
    return "", _DEFAULT


def shared(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sums, averages and maxima of varying tensors: relevance goes to each in its share."""
    rule, varying = _rule(running), [a for a in args if varies(a)]
    with below():
        found = op(*args, **kwargs)
        y, *others = found if isinstance(found, (tuple, list)) else (found,)
        # The terms of a sum share what they add up to under every rule: all of it can go to one operand only.
        passes = isinstance(rule, IdentityRule) and len(varying) == 1
        y = _identity(op, rule, varying[0], y) if passes else _stabilised(y, rule)
    return (y, *others) if others else y


def weighted(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Layers (x, weight, bias, ...), by the rule of the module that calls them."""
    if any(varies(a) for a in args[1:]):
        raise _without_rule(running, op, "weights that depend on the inputs")
    rule = _rule(running)
    if type(rule).weights is PropagationRule.weights:
        return shared(running, op, args, kwargs)
    with below():
        y = op(*args, **kwargs)
        changed = (args[0], *rule.weights(*args[1:3]), *args[3:])
        return _by_others(op, changed, kwargs, rule, y)


def _identity(op: Any, rule: PropagationRule, x: Tensor, y: Tensor) -> Tensor:
    if x.shape != y.shape:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ArgumentError(f"rule: got IdentityRule for {op} from and to {shapes}; expected equal shapes")
    factor = y.detach() / _kept_from_zero(x.detach(), rule.STABILITY_FACTOR)
    return _back(lambda gradient: gradient * factor, y, x)


def _by_others(op: Any, changed: tuple[Any, ...], kwargs: dict[str, Any], rule: PropagationRule, y: Tensor) -> Tensor:
    """Back through the operator with other weights than those that made y."""
    x = changed[0]
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        other = op(at, *changed[1:], **kwargs)
    factor = y.detach() / _kept_from_zero(other.detach(), rule.STABILITY_FACTOR)

    def back(gradient: Tensor) -> Tensor:
        (found,) = run_backward(other, gradient * factor, (at,), keep_graph=True)
        assert found is not None
        return found

    return _back(back, y, x)


def batch_norm(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Batch norm by running statistics."""
    if args[5]:
        raise ArgumentError(f"forward_func: calls {op} in training mode; expected evaluation mode (model.eval())")
    return weighted(running, op, args, kwargs)


def product(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Matrix products with a constant; place of the constant is told by what varies."""
    if [varies(a) for a in args].count(True) > 1:
        raise _without_rule(running, op, "a product of two tensors that depend on the inputs")
    return shared(running, op, args, kwargs)


def scaled(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A varying tensor times, or over, a constant."""
    if (varies(args[0]) and varies(args[1])) or (op._schema.name.endswith("div") and not varies(args[0])):
        raise _without_rule(running, op, "a product or quotient of tensors that depend on the inputs")
    with below():
        return op(*args, **kwargs)


def activation(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Relevance passes an activation unchanged: its value over its input takes the place of the derivative."""
    x, call = elementwise.of_varying(op, args, kwargs)
    with below():
        y, slope = with_slope(call, x)
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        at = x.detach()
        back = lambda g: rescale(g, at, zero, y, zero, slope, 1e-10).to(at.dtype)  # noqa: E731
        return _back(back, y, x)


def other(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """No rule."""
    raise _without_rule(running, op, "an operator for which LRP has no rule")


def _without_rule(running: Pass, op: Any, what: str) -> ArgumentTypeError:
    name, rule = _called(running)
    who = f"rule: got {rule} on module {name!r}, which" if name else "forward_func:"
    return ArgumentTypeError(
        f"{who} calls {op}: {what}; expected linear and convolution layers, batch norm, activations, pools, additions "
        "and views"
    )


_WEIGHTED = operators("weighted")
_ACTIVATIONS = operators("activation")
_SHARED = operators("shared")
_PRODUCTS = ["mm", "bmm", "matmul", "addmm", "baddbmm", "mv", "addmv"]

TABLE = Table(
    (LINEAR | {"relu", "native_dropout"}) - set(_SHARED) - set(_WEIGHTED),
    {
        **dict.fromkeys(_WEIGHTED, weighted),
        **dict.fromkeys(["batch_norm", "native_batch_norm", "cudnn_batch_norm"], batch_norm),
        **dict.fromkeys(_ACTIVATIONS, activation),
        **dict.fromkeys(_SHARED, shared),
        **dict.fromkeys(_PRODUCTS, product),
        **dict.fromkeys(["mul", "div"], scaled),
    },
    other,
)
