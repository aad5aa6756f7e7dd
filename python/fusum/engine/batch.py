"""The examples that one run explains: a user's inputs, or noisy copies of them made block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..plan.arguments import Arguments, Baseline

Tensors = tuple[Tensor | None, ...]
Baselines = tuple[Baseline | None, ...]


@dataclass(slots=True)
class Batch:
    """examples examples: samples copies of every input, side by side.

    noise: a draw [examples, ...] an input, scaled by stdevs, or None. coefficients: a position on the line for each.
    """

    arguments: Arguments
    examples: int
    baselines: Baselines
    samples: int = 1
    noise: Tensors | None = None
    stdevs: tuple[float, ...] = ()
    coefficients: Tensor | None = None

    def block(self, start: int, stop: int) -> Block:
        """Examples start to stop."""
        baselines = self.baselines
        if stop - start < self.examples:
            baselines = tuple([b and b.rows(start, stop) for b in baselines])
        return Block(self, start, stop, stop - start, self._inputs(start, stop), baselines)

    def _inputs(self, start: int, stop: int) -> Tensors:
        xs = self.arguments.inputs
        if self.noise is None:
            return xs if stop - start == self.examples else tuple(x if x is None else x[start:stop] for x in xs)
        copies = []
        for x, z, stdev in zip(xs, self.noise, self.stdevs, strict=True):
            part = z if z is None or stop - start == self.examples else z[start:stop]
            copies.append(None if x is None or part is None else ops.noisy_copies(x, part, stdev, self.samples, start))
        return tuple(copies)

    def has_travelling_extra(self) -> bool:
        """Whether any additional argument differs from example to example."""
        return any(self.travels(a) for a in self.arguments.extra)

    def travels(self, a: Any) -> bool:
        """Whether a has rows for every example: its first dimension is a multiple of their number."""
        return isinstance(a, Tensor) and a.dim() > 0 and len(a) > 0 and len(a) % self.arguments.examples == 0


@dataclass(slots=True)
class Block:
    """Examples start to stop of a batch, with their inputs and baselines."""

    batch: Batch
    start: int
    stop: int
    examples: int
    inputs: Tensors
    baselines: Baselines

    def target_rows(self, points: int, device: torch.device) -> Tensor | None:
        """The target's index of each row, where each example has its own: [points * examples, k]."""
        rows = self.batch.arguments.target.rows
        return None if rows is None else self._spread(rows.to(device), points)

    def raw_target(self, points: int) -> Any:
        """The target in the form that the user gave, an entry for each row where each example has its own."""
        target = self.batch.arguments.target
        if isinstance(target.raw, list):
            return [target.raw[e // self.batch.samples] for e in range(self.start, self.stop)] * points
        return target.raw if target.rows is None else self._spread(target.raw, points)

    def extra(self, points: int, repeat_all: bool = False) -> tuple[Any, ...]:
        """additional_forward_args for points copies of these examples.

        A tensor whose first dimension is a multiple of the number of examples travels with them; all else is passed
        whole. repeat_all: other tensors are repeated as well, as a replaced gradient_func written for captum expects.
        """
        given = self.batch.arguments.extra
        if not given or (points == self.batch.samples == 1 and self.examples == self.batch.examples):
            return given
        return tuple(self._spread_extra(a, points, repeat_all) for a in given)

    def _spread_extra(self, a: Any, points: int, repeat_all: bool) -> Any:
        if self.batch.travels(a):
            return self._spread(a, points)
        return _repeat(a, points) if repeat_all and isinstance(a, Tensor) and a.dim() else a

    def _spread(self, a: Tensor, points: int) -> Tensor:
        batch = self.batch
        group = len(a) // batch.arguments.examples
        if batch.samples > 1:
            copied = torch.arange(self.start, self.stop, device=a.device) // batch.samples
            a = a[copied] if group == 1 else a.unflatten(0, (-1, group))[copied].flatten(0, 1)
        elif self.examples < batch.examples:
            a = a[self.start * group : self.stop * group]
        return a if points == 1 else _repeat(a, points)


def _repeat(a: Tensor, points: int) -> Tensor:
    return a.repeat(points, *[1] * (a.dim() - 1))
