"""Rules of softmax and of normalisation: composed of sums, elementwise functions and products."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .change import Step, Tensors, change, of_first
from .state import Pass, below
from .straight import line
from .tape import rescale

Gradients = tuple[Tensor | None, ...]


def softmax(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """exp(x - logsumexp(x)): so no multiplier is above 1, also where all of x rises; a quotient's would be."""
    return _along(running, op, args, kwargs, _softmax_back)


def log_softmax(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x - logsumexp(x)."""
    return _along(running, op, args, kwargs, _log_softmax_back)


def logsumexp(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """log(sum of exp(x)): elementwise, sum, elementwise."""
    return _along(running, op, args, kwargs, _logsumexp_back)


def _along(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], back: Any) -> Any:
    x, dims, *rest = args
    dims = [dims] if isinstance(dims, int) else list(dims)
    keep = bool(rest and rest[0])
    return change(running, op, (x,), of_first(op, args[1:], kwargs), partial(back, dims=dims, keep=keep))


def _softmax_back(
    step: Step, gradients: Gradients, xs: Tensors, refs: Tensors, *, dims: list[int], keep: bool
) -> Tensors:
    x, ref = _precise(xs[0]), _precise(refs[0])
    logs, logs_ref = (t - _total(t, dims) for t in (x, ref))
    y = logs.exp()
    g = rescale(_only(gradients), logs, logs_ref, y, logs_ref.exp(), y, step.eps)
    return (g + _of_logsumexp(step, -g.sum(dims, keepdim=True), x, ref, dims),)


def _log_softmax_back(
    step: Step, gradients: Gradients, xs: Tensors, refs: Tensors, *, dims: list[int], keep: bool
) -> Tensors:
    g = _only(gradients)
    return (g + _of_logsumexp(step, -g.sum(dims, keepdim=True), _precise(xs[0]), _precise(refs[0]), dims),)


def _logsumexp_back(
    step: Step, gradients: Gradients, xs: Tensors, refs: Tensors, *, dims: list[int], keep: bool
) -> Tensors:
    g, x = _only(gradients), xs[0]
    for dim in () if keep else sorted(d % x.dim() for d in dims):
        g = g.unsqueeze(dim)
    return (_of_logsumexp(step, g, _precise(x), _precise(refs[0]), dims),)


def _of_logsumexp(step: Step, g: Tensor, x: Tensor, ref: Tensor, dims: list[int]) -> Tensor:
    """Of log(sum of exp(x)): elementwise, sum, elementwise."""
    shift = torch.maximum(_total(x, dims), _total(ref, dims))  # the same for both, so that it changes no result
    e, e_ref = (x - shift).exp(), (ref - shift).exp()
    s, s_ref = e.sum(dims, keepdim=True), e_ref.sum(dims, keepdim=True)
    # The logarithms are not taken of the sums, of which one may be too small.
    to_sum = rescale(g, s, s_ref, _total(x, dims), _total(ref, dims), 1 / s, step.eps)
    return rescale(to_sum.expand_as(e + e_ref), x, ref, e, e_ref, e, step.eps)


def _total(x: Tensor, dims: list[int]) -> Tensor:
    """logsumexp, or 0 where all of x is masked."""
    found = x.logsumexp(dims, keepdim=True)
    return torch.where(found == -torch.inf, 0, found)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _only(gradients: Gradients) -> Tensor:
    (g,) = gradients
    assert g is not None
    return g


def layer_norm(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """native_layer_norm(x, shape, weight, bias, eps)."""
    x, shape, weight, _, eps = args
    back = partial(_layer_norm_back, dims=len(shape), weight=weight, eps=eps, centred=True)
    return change(running, op, (x,), of_first(op, args[1:], kwargs), back)


def rms_norm(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """rms_norm(x, shape, weight, eps)."""
    x, shape, weight, eps = args
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    back = partial(_layer_norm_back, dims=len(shape), weight=weight, eps=eps, centred=False)
    return change(running, op, (x,), of_first(op, args[1:], kwargs), back)


def group_norm(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """native_group_norm(x, weight, bias, N, C, elements, groups, eps)."""
    x, weight, bias, _, *rest = args
    *_, groups, eps = rest

    def call(x: Tensor) -> Any:
        return op(x, weight, bias, len(x), *rest)  # of this call's rows: the baselines' may be fewer or more

    back = partial(_group_norm_back, groups=groups, weight=weight, eps=eps)
    return change(running, op, (x,), call, back)


def batch_norm(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """batch_norm(x, weight, bias, mean, variance, training, ...): affine unless the batch's own statistics are used."""
    if args[5]:
        return line(running, op, args, kwargs)
    with below():
        return op(*args, **kwargs)


def instance_norm(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """instance_norm(x, weight, bias, mean, variance, use_input_stats, momentum, eps, cudnn)."""
    x, weight, bias, mean, variance, from_input, _, eps, _ = args
    if from_input:
        return torch.nn.functional.group_norm(x, x.shape[1], weight, bias, eps)
    return torch.nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)


def _layer_norm_back(
    step: Step,
    gradients: Gradients,
    xs: Tensors,
    refs: Tensors,
    *,
    dims: int,
    weight: Tensor | None,
    eps: float,
    centred: bool,
) -> Tensors:
    g = gradients[0]
    assert g is not None
    along = list(range(-dims, 0))
    return (_normalised(g if weight is None else g * weight, xs[0], refs[0], along, eps, centred),)


def _group_norm_back(
    step: Step, gradients: Gradients, xs: Tensors, refs: Tensors, *, groups: int, weight: Tensor | None, eps: float
) -> Tensors:
    (g, *_), (x,), (ref,) = gradients, xs, refs
    assert g is not None
    if weight is not None:
        g = g * weight.view(-1, *[1] * (x.dim() - 2))
    by_group, x, ref = (t.reshape(t.shape[0], groups, -1) for t in (g, x, ref))
    return (_normalised(by_group, x, ref, [-1], eps, True).reshape(g.shape),)


def _normalised(g: Tensor, x: Tensor, ref: Tensor, dims: list[int], eps: float, centred: bool) -> Tensor:
    """Of d / sqrt(mean of d^2 + eps), d being x, or x less its mean: the product of d and an elementwise function."""
    acc = torch.promote_types(x.dtype, torch.float32)
    g, x, ref = g.to(acc), x.to(acc), ref.to(acc)
    if centred:
        x, ref = x - x.mean(dims, keepdim=True), ref - ref.mean(dims, keepdim=True)
    r, r_ref = ((t * t).mean(dims, keepdim=True).add(eps).rsqrt() for t in (x, ref))
    middle = (x + ref) / 2
    # 1 / sqrt(v) changes by -r r' / (1 / r + 1 / r') for each unit of v: never 0 / 0, also where v is the same.
    to_square = (g * middle).sum(dims, keepdim=True) * -(r * r_ref) / (1 / r + 1 / r_ref)
    elements = math.prod([x.shape[d] for d in dims])
    found = g * (r + r_ref) / 2 + to_square * 2 * middle / elements
    return found - found.mean(dims, keepdim=True) if centred else found
