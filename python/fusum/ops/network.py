"""The layers of the op ``perceptron`` in pure PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError

_aten: Any = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Activation:
    """y(x), and a gradient times its slope at x."""

    forward: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor, Tensor], Tensor]  # of gradient, x and y


ACTIVATIONS = {
    "none": Activation(lambda x: x, lambda g, x, y: g),
    "relu": Activation(torch.relu, lambda g, x, y: _aten.threshold_backward(g, y, 0)),
    "tanh": Activation(torch.tanh, lambda g, x, y: _aten.tanh_backward(g, y)),
    "sigmoid": Activation(torch.sigmoid, lambda g, x, y: _aten.sigmoid_backward(g, y)),
    "silu": Activation(torch.nn.functional.silu, lambda g, x, y: _aten.silu_backward(g, x)),
    "gelu": Activation(torch.nn.functional.gelu, lambda g, x, y: _aten.gelu_backward(g, x)),
}


@dataclass(frozen=True, slots=True)
class Layers:
    """Weights, biases and activations, layer after layer."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    activations: Sequence[Activation]

    def forward(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What each layer returns, and its activation."""
        found: list[tuple[Tensor, Tensor]] = []
        for weight, bias, activation in zip(self.weights, self.biases, self.activations, strict=True):
            x = torch.addmm(bias, found[-1][1] if found else rows, weight.t())
            found.append((x, activation.forward(x)))
        return found

    def back(self, gradient: Tensor, at: list[tuple[Tensor, Tensor]], slope: Callable[..., Tensor]) -> Tensor:
        """The gradient of the first layer's input from that of the last activation.

        slope: of a layer's index, the gradient, and what the layer holds: the gradient of what it returns.
        """
        for i in reversed(range(len(self.weights))):
            gradient = slope(i, gradient, *at[i]) @ self.weights[i]
        return gradient


def checked(
    points: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activations: Sequence[str],
    fail: Callable[[str, Tensor, str], None],
) -> Layers:
    """The layers, after calling fail for what does not fit what comes before."""
    if points.dim() != 2:
        fail("points", points, "two dimensions")
    if not weights or not len(weights) == len(biases) == len(activations):
        counts = f"{len(weights)} with {len(biases)} biases and {len(activations)} activations"
        raise ArgumentError(f"weights: got {counts}; expected as many of each, at least one")
    width = points.shape[1]
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        if weight.dim() != 2 or weight.shape[1] != width or weight.dtype != points.dtype:
            fail("weights", weight, f"a matrix of {width} columns, as points")
        width = weight.shape[0]
        if bias.shape != (width,) or bias.dtype != points.dtype:
            fail("biases", bias, f"{width} numbers, as points")
        if activation not in ACTIVATIONS:
            raise ArgumentError(f"activations: got {activation}; expected some of {list(ACTIVATIONS)}")
    return Layers(weights, biases, [ACTIVATIONS[name] for name in activations])


def run(
    points: Tensor, references: Tensor | None, layers: Layers, columns: Tensor, eps: float, rescale: Callable[..., Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """``fusum.ops.perceptron``; rescale: its reference."""
    at = layers.forward(points)
    compared = None if references is None else layers.forward(references)
    out = at[-1][1]
    index = columns.expand(len(points))[:, None]
    gradient = torch.zeros_like(out).scatter_(1, index, 1)

    def slope(i: int, gradient: Tensor, x: Tensor, y: Tensor) -> Tensor:
        activation = layers.activations[i]
        if compared is None or activation is ACTIVATIONS["none"]:
            return activation.back(gradient, x, y)
        return rescale(gradient, x, *_others(activation, x, y, *compared[i]), eps)  # type: ignore[no-any-return]

    reached = out.gather(1, index)[:, 0]
    if compared is None:
        return layers.back(gradient, at, slope), reached, reached.new_empty(0)
    ends = compared[-1][1]
    index = (columns.expand(len(ends)) if len(columns) == 1 else columns)[:, None]
    ends = ends.expand(len(index), -1).gather(1, index)[:, 0]
    return layers.back(gradient, at, slope), reached, ends


def _others(activation: Activation, x: Tensor, y: Tensor, x_ref: Tensor, y_ref: Tensor) -> tuple[Any, ...]:
    """The operands of rescale after x."""
    if activation is ACTIVATIONS["relu"]:
        return x_ref, None, None, None
    return x_ref, y, y_ref, activation.back(torch.ones_like(x), x, y)
