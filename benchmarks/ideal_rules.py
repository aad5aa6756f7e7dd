"""The ideal loops of the methods that change the backward pass, for nets of convolutions, linear layers and ReLUs.

DeepLift's way back is written out by hand: a pair of an example and a baseline has a gradient of its own but shares its
forward passes with other pairs. See ideal.py for `rows` and the rest.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .ideal import Tensors, cuts, gradients_in_chunks

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]  # gradient at a ReLU's output, its input, its output -> at its input
EPS = 1e-10  # captum's: inputs that are closer take the derivative


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers in order of execution."""
    return [module for module in model.modules() if not list(module.children())]


def activations(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> list[Tensor]:
    """The input of each layer, and last the output."""
    values = [x]
    for layer in layers:
        x = layer(x.flatten(1) if isinstance(layer, nn.Linear) else x)
        values.append(x)
    return values


def transposed(layer: nn.Module, grad: Tensor, row: torch.Size) -> Tensor:
    """The gradient at the input, of shape `row` for each row, of a layer that is linear in it."""
    if isinstance(layer, nn.Linear):
        return (grad @ layer.weight).view(-1, *row)
    assert isinstance(layer, nn.Conv2d)
    shape = grad.new_empty(len(grad), *row)  # only read for its shape
    step = (layer.stride, layer.padding, layer.dilation, False, [0], layer.groups, (True, False, False))
    found: Tensor = torch.ops.aten.convolution_backward(grad, shape, layer.weight, None, *step)[0]
    return found


def back(layers: Sequence[nn.Module], values: Sequence[Tensor], rows: int, target: int | None, rule: Rule) -> Tensor:
    """The gradient at the input for `rows` rows, with `rule` at each ReLU and the last layer linear."""
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    grad = last.weight[target or 0].expand(rows, -1)
    for layer, (x, y) in reversed(list(zip(layers[:-1], pairwise(values[:-1]), strict=True))):
        grad = rule(grad, x, y) if isinstance(layer, nn.ReLU) else transposed(layer, grad, x.shape[1:])
    return grad


def multiplier(x: Tensor, x_ref: Tensor, y: Tensor, y_ref: Tensor) -> Tensor:
    """The change of a ReLU's output for that of its input, or the derivative where the inputs agree."""
    dx = x - x_ref
    return torch.where(dx.abs() < EPS, x > 0, (y - y_ref).div_(dx))


@torch.no_grad()
def deep_lift(model: nn.Module, inputs: Tensors, rows: int, *, target: int | None = None) -> Tensors:
    """DeepLift with a baseline of zero: each example and the baseline forward once, the examples alone backward."""
    (x,) = inputs
    layers = layers_of(model)

    def chunk(x: Tensor) -> Tensor:
        def rule(grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return multiplier(x[:-1], x[-1:], y[:-1], y[-1:]).mul_(grad)

        values = activations(layers, torch.cat((x, torch.zeros_like(x[:1]))))
        return back(layers, values, len(x), target, rule).mul_(x)

    return (torch.cat([chunk(x[cut]) for cut in cuts(len(x), rows)]),)


@torch.no_grad()
def deep_lift_shap(
    model: nn.Module,
    inputs: Tensors,
    rows: int,
    *,
    baselines: Tensor,
    target: int | None = None,
    return_convergence_delta: bool = False,
) -> Tensors:
    """DeepLiftShap: each example and each baseline forward once, each pair of them backward once."""
    (x,) = inputs
    layers, batch = layers_of(model), len(x)
    values = activations(layers, torch.cat((x, baselines)))
    scores = torch.zeros_like(x)
    sums = x.new_empty(batch, len(baselines))
    for some in cuts(batch, rows):
        part = x[some]
        for few in cuts(len(baselines), max(1, rows // len(part))):
            rule = rescale(some, slice(batch + few.start, batch + few.stop))
            base = baselines[few, None]
            grad = back(layers, values, len(base) * len(part), target, rule).view(-1, *part.shape)
            pairs = grad.mul_(part - base)
            scores[some] += pairs.sum(0)
            sums[some, few] = pairs.flatten(2).sum(2).T
    scores /= len(baselines)
    if not return_convergence_delta:
        return (scores,)
    outputs = values[-1][:, target or 0]
    return scores, (sums - outputs[:batch, None] + outputs[batch:]).flatten()


def rescale(examples: slice, baselines: slice) -> Rule:
    """DeepLift's rule for all pairs of the two, each a cut of the rows."""

    def rule(grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
        factor = multiplier(x[examples], x[baselines, None], y[examples], y[baselines, None])
        return factor.flatten(0, 1).mul_(grad)

    return rule


class GuidedReLU(torch.autograd.Function):
    """A ReLU that sends back what is positive in the gradient, where it let something through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clamp_min(0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        found: Tensor = torch.ops.aten.threshold_backward(grad.clamp_min(0), y, 0)
        return found


def guided_backprop(model: nn.Module, inputs: Tensors, rows: int, *, target: int | None = None) -> Tensors:
    """Guided backpropagation."""
    layers = [GuidedReLU.apply if isinstance(layer, nn.ReLU) else layer for layer in layers_of(model)]
    return gradients_in_chunks(lambda x: activations(layers, x)[-1], inputs, rows, target)


def lrp(model: nn.Module, inputs: Tensors, rows: int, *, target: int | None = None) -> Tensors:
    """LRP by the epsilon rule, which is input times gradient here but for its epsilon of 1e-9."""
    grads = gradients_in_chunks(model, inputs, rows, target)
    return tuple(x * grad for x, grad in zip(inputs, grads, strict=True))
