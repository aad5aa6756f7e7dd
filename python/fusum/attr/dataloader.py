"""Scores of features for a metric of a whole DataLoader.

Arguments of ``attribute``:

    dataloader: yields the same batches whenever it is read: a tensor, or a list or tuple of elements. Those that are
        explained are tensors [examples, ...], of the same shape in all batches but for the examples.
    input_roles: what each element is for, as InputRole says: 0 is explained, 1 is not given to the model (say, a
        label), 2 is given to it. None: all are explained.
    baselines: for each explained element a number or a tensor [1, ...]; None: zero.
    feature_mask: for each explained element integers [1, ...]: what has one number, also in several, is one feature.
        None: every number of an example is one.
    reduce: takes what it returned for the batch before (None for the first), what the model returned for a batch, and
        the elements of that, of which some are replaced. None: all outputs behind each other.
    to_metric: takes what reduce returned last, and returns the metric, a tensor. None: that is the metric.
    perturbations_per_pass: the loader is read once, and then once for so many features; what reduce returned is held
        for each of them.
    show_progress: show a bar.
    return_input_shape: False: a tensor [numbers of the metric, largest feature + 1].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from .. import profile, progress
from ..engine.model import Model, explained, view
from ..engine.scope import scope
from ..errors import ArgumentError, ArgumentTypeError
from ..plan.arguments import Baseline, as_baselines, promoted
from ..plan.features import Features, of_mask
from ..settings import flag, positive_int
from .base import Attribution, bar, no_future
from .perturbation import FeatureAblation

# No feature has this number: nothing is replaced.
_NONE = -1


class InputRole(IntEnum):
    """What an element of a batch is for: to be explained, neither explained nor forwarded, or only forwarded."""

    need_attr = 0
    no_forward = 1
    need_forward = 2


class DataLoaderAttribution(Attribution):
    """What a metric of all batches of a loader loses when a feature is replaced by its baseline in every one of them.

    Arguments:
        attr_method: a FeatureAblation object, of which the model is taken.

    Raises:
        ArgumentTypeError: attr_method is any other object.
    """

    def __init__(self, attr_method: Attribution) -> None:
        if type(attr_method) is not FeatureAblation:
            got = f"{type(attr_method).__module__}.{type(attr_method).__name__}"
            raise ArgumentTypeError(f"attr_method: got {got}; expected {FeatureAblation.__module__}.FeatureAblation")
        Attribution.__init__(self, attr_method.forward_func)
        self.attr_method = attr_method

    def attribute(
        self,
        dataloader: Iterable[Any],
        input_roles: tuple[int, ...] | None = None,
        baselines: Any = None,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        reduce: Callable[[Any, Any, tuple[Any, ...]], Any] | None = None,
        to_metric: Callable[[Any], Tensor] | None = None,
        perturbations_per_pass: int = 1,
        show_progress: bool = False,
        return_input_shape: bool = True,
    ) -> Tensor | tuple[Tensor, ...]:
        """Scores [numbers of the metric, ...] for the elements of a batch that are explained.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        per_pass = positive_int("perturbations_per_pass", perturbations_per_pass)
        flag("return_input_shape", return_input_shape)
        if isinstance(dataloader, Iterator) or not hasattr(dataloader, "__iter__"):
            got = type(dataloader).__name__
            raise ArgumentTypeError(f"dataloader: got {got}; expected a loader that can be read more than once")
        counted = nullcontext() if profile.calls is None else profile.timed(type(self).__name__, None)
        with counted, bar(self, show_progress), scope():
            first = next(iter(dataloader), None)
            opened = _open(first, view(self.forward_func), input_roles, baselines, feature_mask)
            lost = _Metrics(opened, reduce, to_metric).lost(dataloader, per_pass)
            return opened.build(lost, return_input_shape)

    attribute_future = no_future


@dataclass(slots=True)
class _Opened:
    """A loader's batches as a model's inputs: what its elements are for, and what stands in for features.

    single: batches are tensors, not lists or tuples of them.
    """

    model: Model
    roles: list[InputRole]
    single: bool
    features: Features
    baselines: list[Baseline]

    def elements(self, batch: Any) -> tuple[Any, ...]:
        """The elements of a batch, like those of the first."""
        elements, single = _elements(batch)
        if single != self.single or len(elements) != len(self.roles):
            expected = "a tensor" if self.single else f"{len(self.roles)} elements"
            raise ArgumentError(f"dataloader: got a batch of {_form(batch)}; expected {expected}, as in the first")
        for (i, x), shape in zip(_explained(elements, self.roles), self.features.shapes, strict=True):
            if shape is None or x.shape[1:] != shape[1:]:
                expected = f"expected examples of shape {tuple((shape or x.shape)[1:])}, as in the first batch"
                raise ArgumentError(f"dataloader: got a batch with shape {tuple(x.shape)} at {i}; {expected}")
        return elements

    def rows(self, elements: tuple[Any, ...]) -> int:
        """How many examples a batch has."""
        return len(elements[self.roles.index(InputRole.need_attr)])

    def without(self, feature: int, elements: tuple[Any, ...]) -> tuple[Any, ...]:
        """The elements of a batch with a feature replaced; copies, as a model may write to them."""
        found = list(elements)
        operands = zip(_explained(elements, self.roles), self.features.ids, self.baselines, strict=True)
        for (i, x), ids, baseline in operands:
            assert ids is not None
            found[i] = torch.where(ids.to(x.device) == feature, baseline.value.to(x.device), x)
        return tuple(found)

    def forward(self, elements: tuple[Any, ...], rows: int) -> Any:
        """What the model returns for a batch."""
        pairs = zip(elements, self.roles, strict=True)
        given = tuple([x for x, role in pairs if role is not InputRole.no_forward])
        returned = self.model.call(*self.model.given(given, (), rows))
        return returned if rows >= self.model.low else self.model.result(returned, rows)

    def build(self, scores: Tensor, return_input_shape: bool) -> Tensor | tuple[Tensor, ...]:
        """Scores [numbers, features] in the form of the inputs, or by the user's numbers of features."""
        if not return_input_shape:
            wide = scores.new_zeros(len(scores), self.features.total)
            return wide.index_copy_(1, self.features.labels.to(scores.device), scores)
        spread = tuple([s for s in self.features.spread(scores) if s is not None])
        return spread[0] if self.single else spread


def _open(first: Any, model: Model, input_roles: Any, baselines: Any, feature_mask: Any) -> _Opened:
    """The first batch of a loader tells what all are."""
    if first is None:
        raise ArgumentError("dataloader: got no batch; expected at least one")
    elements, single = _elements(first)
    roles = _roles(input_roles, len(elements))
    inputs = tuple([x for _, x in _explained(elements, roles)])
    for name, given in (("baselines", baselines), ("feature_mask", feature_mask)):
        items = given if isinstance(given, tuple) else (given,)
        for i, item in enumerate(items):
            if isinstance(item, Tensor) and item.shape[:1] != (1,):
                at = f"{name}[{i}]" if isinstance(given, tuple) else name
                expected = "expected 1 for the first dimension, as it serves batches of any size"
                raise ArgumentError(f"{at}: got shape {tuple(item.shape)}; {expected}")
    features = of_mask(feature_mask, inputs)
    operands = as_baselines(baselines, promoted(inputs, baselines), distribution=False)
    return _Opened(model, roles, single, features, [b for b in operands if b is not None])


def _elements(batch: Any) -> tuple[tuple[Any, ...], bool]:
    """The elements of a batch, and whether it is one tensor."""
    if isinstance(batch, Tensor):
        return (batch,), True
    if isinstance(batch, (list, tuple)):
        return tuple(batch), False
    raise ArgumentTypeError(f"dataloader: got a batch of {_form(batch)}; expected a tensor, or a list or tuple")


def _form(batch: Any) -> str:
    return f"{len(batch)} elements" if isinstance(batch, (list, tuple)) else type(batch).__name__


def _explained(elements: Sequence[Any], roles: Sequence[InputRole]) -> list[tuple[int, Tensor]]:
    """The tensors that are explained, each behind its place."""
    found = [(i, x) for i, (x, role) in enumerate(zip(elements, roles, strict=True)) if role is InputRole.need_attr]
    for i, x in found:
        if not isinstance(x, Tensor):
            got = type(x).__name__
            raise ArgumentTypeError(f"dataloader: got {got} at {i}; expected a tensor, as it is to be explained")
        if x.dim() == 0 or len(x) == 0:
            expected = "expected at least one example along the first dimension"
            raise ArgumentError(f"dataloader: got a batch with shape {tuple(x.shape)} at {i}; {expected}")
    return found


def _roles(given: Any, count: int) -> list[InputRole]:
    if given is None:
        return [InputRole.need_attr] * count
    if not isinstance(given, (tuple, list)):
        raise ArgumentTypeError(f"input_roles: got {type(given).__name__}; expected a tuple of integers")
    if len(given) != count:
        raise ArgumentError(f"input_roles: got {len(given)} for batches of {count} elements; expected one for each")
    for role in given:
        if isinstance(role, bool) or not isinstance(role, int):
            raise ArgumentTypeError(f"input_roles: got {role!r} ({type(role).__name__}); expected 0, 1 or 2")
        if role not in (0, 1, 2):
            raise ArgumentError(f"input_roles: got {role}; expected 0, 1 or 2")
    if 0 not in given:
        raise ArgumentError(f"input_roles: got {tuple(given)}; expected a 0 for an element to be explained")
    if any(role and not isinstance(role, InputRole) for role in given):
        text = (
            "input_roles: 1 is not given to the model and 2 is, as captum's documentation says; captum's code has it "
            "the other way round (fusum.attr.dataloader.InputRole says by name which is meant)"
        )
        warnings.warn(text, UserWarning, stacklevel=4)
    return [InputRole(role) for role in given]


def _collected(before: list[Tensor] | None, output: Any, _: tuple[Any, ...]) -> list[Tensor]:
    """reduce where none is given: all outputs, to be put behind each other at the end."""
    out, outputs = explained(output), before or []
    if out.dim() == 0:
        raise ArgumentError("reduce: got None for a model that returns one number a batch; expected a function")
    outputs.append(out)
    return outputs


class _Metrics:
    """Metrics of passes over a loader with features replaced."""

    def __init__(self, opened: _Opened, reduce: Any, to_metric: Any) -> None:
        for name, function in (("reduce", reduce), ("to_metric", to_metric)):
            if function is not None and not callable(function):
                raise ArgumentTypeError(f"{name}: got {type(function).__name__}; expected a function")
        self._opened, self._reduce, self._to_metric = opened, reduce or _collected, to_metric
        self._rows: int | None = None  # of a pass

    def lost(self, dataloader: Iterable[Any], per_pass: int) -> Tensor:
        """What the metric loses by each feature: [numbers, features]."""
        count = self._opened.features.count
        (full,) = self._pass(dataloader, [_NONE])
        found = []
        for start in range(0, count, per_pass):
            metrics = self._pass(dataloader, range(start, min(start + per_pass, count)))
            for metric in metrics:
                if metric.shape != full.shape:
                    shapes = f"got shape {tuple(metric.shape)} with a feature replaced and {tuple(full.shape)} without"
                    raise ArgumentError(f"{self._last}: {shapes}; expected the same")
            found += [(full - metric).reshape(-1) for metric in metrics]
        return torch.stack(found, dim=1) if found else full.new_zeros(full.numel(), 0)

    @property
    def _last(self) -> str:
        return "reduce" if self._to_metric is None else "to_metric"

    @torch.no_grad()
    def _pass(self, batches: Iterable[Any], absent: Sequence[int]) -> list[Tensor]:
        """The metric without each of some features."""
        states: list[Any] = [None] * len(absent)
        seen = 0
        for batch in batches:
            elements = self._opened.elements(batch)
            rows = self._opened.rows(elements)
            seen += rows
            if self._rows is None:
                progress.expect(rows * (1 + self._opened.features.count))
            for i, feature in enumerate(absent):
                given = self._opened.without(feature, elements)
                states[i] = self._reduce(states[i], self._opened.forward(given, rows), given)
                progress.advance(rows)
        if seen != (self._rows or seen) or not seen:
            expected = f"expected {self._rows or 'some'}, as in the first"
            raise ArgumentError(f"dataloader: got {seen} examples in a later pass; {expected}")
        self._rows = seen
        return [self._metric(state) for state in states]

    def _metric(self, state: Any) -> Tensor:
        if self._reduce is _collected:
            state = torch.cat(state)
        metric = state if self._to_metric is None else self._to_metric(state)
        if not isinstance(metric, Tensor):
            raise ArgumentTypeError(f"{self._last}: returned {type(metric).__name__}; expected a tensor")
        if not metric.dtype.is_signed:
            raise ArgumentTypeError(f"{self._last}: returned a tensor of {metric.dtype}; expected signed numbers")
        return metric
