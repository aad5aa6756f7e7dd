"""Coalitions that all examples share, made part by part, and how the values there become features' scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import comb, prod

import torch
from torch import Tensor

from .features import Features
from .spec import Slide


class Shared(ABC):
    """A list of count coalitions; repeats: some may come more than once, or lack no feature."""

    count: int
    repeats = False

    @abstractmethod
    def part(self, start: int, stop: int) -> Tensor:
        """Coalitions start to stop: bool [stop - start, features]."""

    def shuffled(self, start: int, stop: int) -> list[Tensor] | None:
        """Whose row an input's absent features are there: int64 [stop - start, rows] each; None: the baseline's."""
        return None

    def cuts(self, most: int) -> Iterator[tuple[int, int]]:
        """Parts (start, stop) of at most so many coalitions, which a model that mixes rows may see together."""
        for start in range(0, self.count, most):
            yield start, min(start + most, self.count)

    @abstractmethod
    def begin(self, full: Tensor) -> None:
        """Take the output with all features, [outputs], before any other."""

    @abstractmethod
    def add(self, values: Tensor, start: int, coalitions: Tensor) -> None:
        """Take the values [c, outputs] of the coalitions from start on; parts come in order."""

    @abstractmethod
    def result(self) -> Tensor:
        """Scores [outputs, features]."""


class Alone(Shared):
    """Each feature is missing once: it gets what the output loses.

    still: features that get zero, whatever the values: bool [features]. drawn: who takes a place, as in shuffled.
    """

    def __init__(self, features: int, device: torch.device, still: Tensor, drawn: list[Tensor] | None = None) -> None:
        self.count, self._device, self._still, self._drawn = features, device, still, drawn
        self._parts: list[Tensor] = []

    def shuffled(self, start: int, stop: int) -> list[Tensor] | None:
        """Whose row an input's absent features are there."""
        return None if self._drawn is None else [each[start:stop].to(self._device) for each in self._drawn]

    def part(self, start: int, stop: int) -> Tensor:
        """Coalitions start to stop."""
        present = torch.ones(stop - start, self.count, dtype=torch.bool, device=self._device)
        present.diagonal(start).fill_(False)
        return present

    def begin(self, full: Tensor) -> None:
        """Take the output with all features."""
        self._full = full

    def add(self, values: Tensor, start: int, coalitions: Tensor) -> None:
        """Take the values of coalitions from start on."""
        self._parts.append(self._full - values)

    def result(self) -> Tensor:
        """Scores [outputs, features]."""
        parts = self._parts or [self._full.new_zeros(0, len(self._full))]
        scores = (parts[0] if len(parts) == 1 else torch.cat(parts)).t()
        return scores.masked_fill(self._still.to(scores.device), 0) if self._still.any() else scores


class Windows(Shared):
    """Each window is missing once: a feature gets the mean of what the output loses by the windows that hold it.

    A feature is a cell of the grid that the borders of the windows make. inputs: [examples, ...] each.
    """

    def __init__(self, slide: Slide, inputs: Sequence[Tensor]) -> None:
        self._device = inputs[0].device
        shapes = [x.shape[1:] for x in inputs]
        self._axes = [
            [_Axis(*each, self._device) for each in zip(shape, window, stride, strict=True)]
            for shape, window, stride in zip(shapes, slide.windows, slide.strides, strict=True)
        ]
        self._sizes = [prod(len(axis.holds) for axis in axes) for axes in self._axes]
        self._cells = [prod(axis.cells for axis in axes) for axes in self._axes]
        self.count = sum(self._sizes)
        self.features = Features(
            tuple([self._ids(i, x) for i, x in enumerate(inputs)]),
            sum(self._cells),
            torch.arange(sum(self._cells)),
            tuple([x.shape for x in inputs]),
        )

    def _ids(self, i: int, x: Tensor) -> Tensor:
        cells = [axis.cell_of.to(x.device) for axis in self._axes[i]]
        first = torch.full([1] * x.dim(), sum(self._cells[:i]), dtype=torch.int32, device=x.device)
        ids = torch.zeros((), dtype=torch.int32, device=x.device)
        for axis, cell in zip(self._axes[i], cells, strict=True):
            ids = ids[..., None] * axis.cells + cell
        return first + ids

    def part(self, start: int, stop: int) -> Tensor:
        """Coalitions start to stop: the first axis of a window moves fastest."""
        present = torch.ones(stop - start, sum(self._cells), dtype=torch.bool, device=self._device)
        first_window = first_cell = 0
        for axes, size, cells in zip(self._axes, self._sizes, self._cells, strict=True):
            begin, end = max(start, first_window), min(stop, first_window + size)
            if begin < end:
                held = _held(axes, torch.arange(begin - first_window, end - first_window, device=present.device))
                present[begin - start : end - start, first_cell : first_cell + cells] = ~held
            first_window, first_cell = first_window + size, first_cell + cells
        return present

    def begin(self, full: Tensor) -> None:
        """Take the output with all features."""
        self._full = full.to(torch.promote_types(full.dtype, torch.float32))
        self._total = self._full.new_zeros(len(full), self.features.count)
        self._times = self._full.new_zeros(self.features.count)

    def add(self, values: Tensor, start: int, coalitions: Tensor) -> None:
        """Take the values of coalitions from start on."""
        absent = (~coalitions).to(self._total.dtype)
        self._total += (self._full - values).t() @ absent
        self._times += absent.sum(0)

    def result(self) -> Tensor:
        """Scores [outputs, features]."""
        return self._total.float() / self._times.float()


class _Axis:
    """Windows along one axis. holds: which cells each covers, [windows, cells]. cell_of: the cell of each place."""

    def __init__(self, size: int, window: int, stride: int, device: torch.device) -> None:
        starts = torch.arange(-(-(size - window) // stride) + 1, device=device) * stride
        ends = (starts + window).clamp(max=size)
        edges = torch.unique(torch.cat([starts, ends, starts.new_tensor([0, size])]))
        self.cells = len(edges) - 1
        self.holds = (starts[:, None] <= edges[:-1]) & (edges[1:] <= ends[:, None])
        self.cell_of = torch.arange(self.cells, dtype=torch.int32, device=device).repeat_interleave(edges.diff())


def _held(axes: list[_Axis], windows: Tensor) -> Tensor:
    """Which cells windows cover: bool [windows, cells]."""
    held = torch.ones(len(windows), 1, dtype=torch.bool, device=windows.device)
    for axis in axes:
        along = axis.holds[windows % len(axis.holds)]
        windows = windows // len(axis.holds)
        held = (held[:, :, None] & along[:, None, :]).flatten(1)
    return held


class Joining(Shared):
    """Features join one by one: each gets what the output gains, on average over orders [n, features].

    The empty coalition comes first, then those of one order after the other.
    """

    repeats = True

    def __init__(self, orders: Tensor) -> None:
        self._orders, self._ranks = orders, torch.argsort(orders, dim=1)
        self.count = orders.numel() + 1

    def part(self, start: int, stop: int) -> Tensor:
        """Coalitions start to stop."""
        at = torch.arange(start, stop, device=self._orders.device) - 1
        features = self._orders.shape[1]
        return (self._ranks[at // features] <= (at % features)[:, None]) & (at >= 0)[:, None]

    def cuts(self, most: int) -> Iterator[tuple[int, int]]:
        """Parts of one order each."""
        yield 0, 1
        features = self._orders.shape[1]
        for first in range(1, self.count, features):
            for start in range(first, first + features, most):
                yield start, min(start + most, first + features)

    def begin(self, full: Tensor) -> None:
        """Take the output with all features."""
        dtype = torch.promote_types(full.dtype, torch.float32)
        self._total = full.new_zeros(self._orders.shape[1], len(full), dtype=dtype)

    def add(self, values: Tensor, start: int, coalitions: Tensor) -> None:
        """Take the values of coalitions from start on."""
        values = values.to(self._total.dtype)
        if start == 0:
            self._empty = self._last = values[:1]
            values, start = values[1:], 1
        features = self._orders.shape[1]
        before = torch.cat([self._last, values[:-1]])
        before[-(start - 1) % features :: features] = self._empty
        self._total.index_add_(0, self._orders.flatten()[start - 1 : start - 1 + len(values)], values - before)
        self._last = values[-1:] if len(values) else self._last

    def result(self) -> Tensor:
        """Scores [outputs, features]."""
        return (self._total.t() / len(self._orders)).float()


class Everything(Shared):
    """All 2^features coalitions, that of all features by begin: Shapley values by their definition."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.count, self._bits = 2**features - 1, torch.arange(features, device=device)
        self._with, self._without = _weights(features, device)

    def part(self, start: int, stop: int) -> Tensor:
        """Coalitions start to stop: the bits of their numbers."""
        numbers = torch.arange(start, stop, device=self._bits.device)
        return (numbers[:, None] >> self._bits) & 1 == 1

    def begin(self, full: Tensor) -> None:
        """Take the output with all features."""
        self._total = full.double()[:, None] * self._with[-1:].expand(len(self._bits))

    def add(self, values: Tensor, start: int, coalitions: Tensor) -> None:
        """Take the values of coalitions from start on."""
        sizes = coalitions.sum(1, keepdim=True)
        weights = torch.where(coalitions, self._with[sizes], self._without[sizes])
        self._total += values.double().t() @ weights

    def result(self) -> Tensor:
        """Scores [outputs, features]."""
        return self._total.float()


@lru_cache(maxsize=16)
def _weights(features: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How much the value at a coalition of each size counts for features that it has, and for those that it lacks."""
    shares = [1 / (features * comb(features - 1, size)) for size in range(features)]
    with torch.inference_mode(False):
        pair = torch.tensor([[0.0, *shares], [*shares, 0.0]], dtype=torch.float64, device=device)
        return pair[0], -pair[1]
