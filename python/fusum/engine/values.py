"""The model's values at the ends of every example's path, for the convergence delta; none is computed twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..plan.arguments import Baseline
from ..plan.points import quadrature
from ..plan.spec import Line
from .batch import Baselines, Batch, Block
from .model import Model, check_rows


class Values:
    """f(input) and f(baseline) of the explained number, block by block.

    shares: whether one row's value may serve all examples with the same inputs. Then a baseline that many examples
    start from is evaluated once, and so are copies without noise.
    """

    __slots__ = ("_batch", "_distinct", "_kept", "_model", "_shares")

    def __init__(self, model: Model, batch: Batch, shares: bool) -> None:
        self._model, self._batch = model, batch
        self._shares = shares and not batch.has_travelling_extra()
        self._distinct: dict[str, Tensor] = {}
        self._kept: dict[float, Tensor] = {}

    def keep(self, line: Line, part: slice, reached: Tensor, examples: int) -> None:
        """Keep the values at those nodes of a part of the line that lie on an end of it."""
        if line.method == "gausslegendre":
            return
        for i, node in enumerate(quadrature(line.method, line.n_steps)[0][part]):
            if node in (0.0, 1.0):
                self._kept[node] = reached[i * examples : (i + 1) * examples]

    def change(self, block: Block, rows: int | None) -> Tensor:
        """f(input) - f(baseline) for each example of a block; rows: most rows that the model sees at once."""
        end, start = self._kept.pop(1.0, None), self._kept.pop(0.0, None)
        with torch.no_grad():
            if end is None:
                at = tuple(None if x is None else Baseline(x) for x in block.inputs)
                end = self._at("inputs", self._all_inputs(), at, block, rows)
            if start is None:
                start = self._at("baselines", self._batch.baselines, block.baselines, block, rows)
            return end - start

    def _all_inputs(self) -> Baselines | None:
        """The inputs of the whole batch where they are at hand: noise makes them block by block."""
        batch = self._batch
        if batch.noise is not None and any(batch.stdevs):
            return None
        return tuple(None if x is None else Baseline(x).copies(batch.samples) for x in batch.arguments.inputs)

    def _at(self, name: str, whole: Baselines | None, operands: Baselines, block: Block, rows: int | None) -> Tensor:
        """The values of one end for a block: from the distinct rows of the whole batch where those are fewer."""
        present = [b for b in whole or () if b is not None]
        if self._shares and present and all(b.shared for b in present):
            out = self._once(name, whole, 1, 1)
            return self._read(out.expand(block.examples, *out.shape[1:]), block)
        if self._shares and len(present) == 1 and present[0].index is not None:
            distinct, index = len(present[0].value), present[0].index[block.start : block.stop]
            if distinct < self._batch.examples:
                return self._read(self._once(name, whole, distinct, rows or distinct)[index], block)
        return self._read(self._run(operands, block.examples, block.extra(1)), block)

    def _once(self, name: str, operands: Baselines | None, distinct: int, step: int) -> Tensor:
        """The model's output at distinct rows, kept for the blocks to come."""
        if name not in self._distinct:
            bare = tuple(b and Baseline(b.value) for b in operands or ())
            parts = [(i, min(i + step, distinct)) for i in range(0, distinct, step)]
            cuts = ((tuple(b and b.rows(i, j) for b in bare), j - i) for i, j in parts)
            extra = self._batch.arguments.extra
            self._distinct[name] = torch.cat([self._run(cut, count, extra) for cut, count in cuts])
        return self._distinct[name]

    def _run(self, operands: Baselines, rows: int, extra: tuple[Any, ...]) -> Tensor:
        inputs = self._batch.arguments.inputs
        at = tuple(
            None if x is None or b is None else b.like((rows, *x.shape[1:]))
            for x, b in zip(inputs, operands, strict=True)
        )
        out = self._model(at, extra, rows)
        check_rows(out, rows)
        return out

    def _read(self, out: Tensor, block: Block) -> Tensor:
        found = self._batch.arguments.target.select(out, block.target_rows(1, out.device))
        return found.reshape(block.examples, -1).sum(1)  # of several numbers that no target picks from, their sum


def completeness_gap(scores: Iterable[Tensor | None], change: Tensor) -> Tensor:
    """Sum of an example's scores minus the change of the model's value: [examples]."""
    sums = [s.flatten(1).sum(1) if s.dim() > 1 else s for s in scores if s is not None]
    return sum(sums[1:], sums[0]) - change
