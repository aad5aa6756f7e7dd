"""Layer-wise relevance propagation: the relevance of a value is the value times what a backward brings it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
        ctx.save_for_backward(y / _kept_from_zero(y, epsilon))  # not y, which may be written over
        return y.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


def _back(back: Callable[[Tensor], Tensor], y: Tensor, x: Tensor) -> Tensor:
    """y, of which gradients go back to x by a function."""
    apply: Any = _Back.apply
    return apply(back, y, x)  # type: ignore[no-any-return]


def _stabilised(y: Tensor, epsilon: float = EpsilonRule().STABILITY_FACTOR) -> Tensor:
    apply: Any = _Stabilised.apply
    return apply(y, epsilon)  # type: ignore[no-any-return]


def _kept_from_zero(y: Tensor, epsilon: float) -> Tensor:
    return y + torch.where(y < 0, -epsilon, epsilon)


def shared(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sums, averages and maxima of varying tensors: relevance goes to each in its share."""
    with below():
        y = op(*args, **kwargs)
        if isinstance(y, (tuple, list)):
            return (_stabilised(y[0]), *y[1:])
        return _stabilised(y)


def weighted(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], place: int = 1) -> Any:
    """Layers with weights, by the rule of the module that owns them; place: of the weight, the bias follows."""
    weight = args[place]
    if any(varies(a) for a in args[place:]):
        raise _without_rule(op, "weights that depend on the inputs")
    rule = running.rule.weights.get(weight.data_ptr(), _DEFAULT) if isinstance(weight, Tensor) else _DEFAULT
    with below():
        y = op(*args, **kwargs)
        if isinstance(rule, IdentityRule):
            return _identity(op, rule, args[0], y)
        if type(rule).weights is PropagationRule.weights:
            return _stabilised(y, rule.STABILITY_FACTOR)
        changed = (*args[:place], *rule.weights(*args[place : place + 2]), *args[place + 2 :])
        return _by_others(op, changed, kwargs, rule, args[0], y)


def _identity(op: Any, rule: IdentityRule, x: Tensor, y: Tensor) -> Tensor:
    if x.shape != y.shape:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ArgumentError(f"rule: got IdentityRule for {op} from and to {shapes}; expected equal shapes")
    factor = y.detach() / _kept_from_zero(x.detach(), rule.STABILITY_FACTOR)
    return _back(lambda gradient: gradient * factor, y, x)


def _by_others(
    op: Any, changed: tuple[Any, ...], kwargs: dict[str, Any], rule: PropagationRule, x: Tensor, y: Tensor
) -> Tensor:
    """Back through the operator with other weights than those that made y of x."""
    found: Any = torch.func.vjp(lambda x: op(x, *changed[1:], **kwargs), x.detach())
    other, back = found
    factor = y.detach() / _kept_from_zero(other, rule.STABILITY_FACTOR)
    return _back(lambda gradient: back(gradient * factor)[0], y, x)


def batch_norm(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Batch norm by running statistics."""
    if args[5]:
        raise ArgumentError(f"forward_func: calls {op} in training mode; expected evaluation mode (model.eval())")
    return weighted(running, op, args, kwargs)


def product(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Matrix products with a constant; place of the constant is told by what varies."""
    if [varies(a) for a in args].count(True) > 1:
        raise _without_rule(op, "a product of two tensors that depend on the inputs")
    return shared(running, op, args, kwargs)


def scaled(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A varying tensor times, or over, a constant."""
    if (varies(args[0]) and varies(args[1])) or (op._schema.name.endswith("div") and not varies(args[0])):
        raise _without_rule(op, "a product or quotient of tensors that depend on the inputs")
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
    raise _without_rule(op, "an operator for which LRP has no rule")


def _without_rule(op: Any, what: str) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"forward_func: calls {op}: {what}; expected linear and convolution layers, batch norm, activations, pools, "
        "additions and views"
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
