"""Scores of layers, and of inputs through layers, from what a forward held there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..errors import ArgumentError, NoGradientError
from ..plan.neuron import select
from ..plan.spec import Cam, Fold, Neuron
from ..rules.guided import guided
from ..rules.turn import is_ruled
from .batch import Tensors
from .cpu import run_backward
from .first import nodes, wide
from .gradients import Unused, differentiate, filled
from .model import Model
from .probe import Mode
from .site import Held, Site

# Of how many dimensions tensors may be, by the mode in which they are resized.
_MODES = {
    **dict.fromkeys(("nearest", "nearest-exact", "area"), (3, 4, 5)),
    **{"linear": (3,), "bilinear": (4,), "bicubic": (4,), "trilinear": (5,)},
}


def neuron_model(site: Site, selector: Any) -> Model:
    """The model up to a layer: its output is one neuron of each example, [rows], or one number of the batch, [1].

    Where gradients are taken the latter is the first of rows that add up to it.
    """

    def numbers(*args: Any) -> Tensor:
        rows = next(len(a) for a in args if isinstance(a, Tensor) and a.dim())
        if is_ruled():
            site.acquaint(args)
        held = site.watch(args, rows, Mode.WATCH, stop=True)
        found = select(selector, last_call(held), rows, may_be_one=True)
        return found if len(found) == rows or not site.differentiable else pad(found, (0, rows - 1))

    model = site.model
    return model.only(numbers, (model.part, "neuron", selector if isinstance(selector, (int, str)) else None))


def last_call(held: Held, tensors: Sequence[Tensor] | None = None) -> list[Tensor]:
    """What the layer held at its last call, or other tensors of the same shapes."""
    last = held.form[0][-1]
    found = held.raw[-len(last) :] if tensors is None else tensors
    return [rows.first(t)[: held.rows].contiguous() for rows, t in zip(last, found, strict=True)]


def conducted(neuron: Neuron, reached: Tensor, held: Held, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of inputs through a neuron: its own, weighed by that of the explained numbers with respect to it."""
    last = held.raw[-len(held.form[0][-1]) :]
    explained = [t for t in last if t.requires_grad]
    if not explained:
        raise NoGradientError("layer: what it holds does not depend on inputs differentiably; expected it to")
    found = iter(differentiate(reached, explained, unused=Unused((len(explained),), neuron.layer.may_be_unused)))
    outer = [next(found) if t.requires_grad else torch.zeros_like(t) for t in last]
    weights = select(neuron.selector, last_call(held, outer), held.rows)
    numbers = select(neuron.selector, last_call(held), held.rows)
    return filled(run_backward(numbers, weights.detach(), leaves), leaves)


def guided_cam(how: Cam, reached: Tensor, held: Held, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Guided gradients of inputs, weighed by the layer's scores."""
    gradients = held.all(differentiate(reached, held.leaves, keep_graph=True, unused=Unused(held.sizes)))
    if len(gradients) > 1:
        raise ArgumentError(f"layer: holds {len(gradients)} tensors; expected one, to weigh the inputs by")
    assert gradients[0] is not None
    scores = cam(how, gradients[0], held.values[0])
    mode = how.guided or "nearest"
    fits = [x.dim() == scores.dim() in _MODES.get(mode, ()) for x in leaves]
    if not all(fits):
        shapes = f"of shape {tuple(scores.shape)} by {mode!r} to inputs of {[x.dim() for x in leaves]} dimensions"
        text = f"the layer's scores {shapes} cannot be resized; inputs that this concerns get empty tensors"
        warnings.warn(text, UserWarning, stacklevel=2)
    with guided(nodes(reached.grad_fn)):
        found = differentiate(reached, leaves)
    pairs = zip(found, fits, strict=True)
    return [g * interpolate(scores, g.shape[2:], mode=mode) if fit else g.new_empty(0) for g, fit in pairs]


def cam(how: Cam, gradient: Tensor, value: Tensor) -> Tensor:
    """Values weighed by the mean of their gradients over places."""
    weights = gradient.mean(dim=tuple(range(2, gradient.dim())), keepdim=True) if gradient.dim() > 2 else gradient
    scores = weights * value
    if how.summed:
        if scores.dim() < 2:
            raise ArgumentError(
                f"layer: holds {tuple(value.shape)}; expected channels behind the examples, to sum over"
            )
        scores = scores.sum(dim=1, keepdim=True)
    return scores.relu() if how.positive else scores


def fold(how: Fold | Cam | Callable[..., Any], gradients: Tensors, held: Held | None) -> Tensors:
    """Scores of layers from gradients and from what they hold, [rows, ...]."""
    if isinstance(how, Cam):
        scored: Callable[[Tensor, Tensor], Tensor] = lambda g, v: cam(how, g, v)  # noqa: E731
    elif how is Fold.TIMES_INPUT:
        scored = torch.mul
    else:
        return gradients
    assert held is not None
    return tuple([None if g is None else scored(g, v) for g, v in zip(gradients, held.values, strict=True)])


class StepSum:
    """The sum over a path's steps of the gradient at a step's start times the change to its end, [B, ...]."""

    __slots__ = ("_examples", "_last", "_total")

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self._total: Tensor | None = None
        self._last: tuple[Tensor, Tensor] | None = None  # of the last point that was added

    def add(self, gradients: Tensor, values: Tensor) -> None:
        """Add the next points' gradients and values, [n * B, ...]."""
        g, v = [t.view(-1, self._examples, *t.shape[1:]) for t in (gradients, values)]
        if self._last is not None:
            self._add(self._last[0] * (v[0] - self._last[1]))
        if len(g) > 1:
            self._add((v[1:] - v[:-1]).mul_(g[:-1]).sum(0, dtype=wide(g)))
        self._last = g[-1].clone(), v[-1].clone()

    def _add(self, part: Tensor) -> None:
        part = part.to(wide(part))
        self._total = part if self._total is None else self._total.add_(part)

    def result(self) -> Tensor:
        """The sum, in float32 for half types."""
        assert self._total is not None
        return self._total
