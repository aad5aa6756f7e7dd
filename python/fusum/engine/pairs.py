"""Examples against baselines: the baselines run first and leave a tape, then the examples go back along it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from ..backward import run_backward
from ..plan.spec import Fold, Pair
from ..rules.tape import Tape, Unpairable
from .batch import Block, Tensors
from .gradients import differentiate
from .values import completeness_gap

if TYPE_CHECKING:
    from .run import Job

_functorch: Any = torch._C._functorch
# Models in which a tensor's rows cannot be told by its shape: they run a baseline row for every example.
_unpairable: WeakSet[Any] = WeakSet()


@dataclass(slots=True)
class Recorded:
    """The forward of some baseline rows: what it left at each operator, and the model's output."""

    tape: Tape
    out: Tensor


@dataclass(slots=True)
class Part:
    """Multipliers [n, B, ...] of n baselines; the baselines [n, 1 or B, ...]; f's change [n, B], if wanted."""

    multipliers: list[Tensor | None]
    baselines: list[Tensor | None]
    change: Tensor | None


class Pairing:
    """The evaluations of one job whose points are pairs."""

    __slots__ = ("_common", "_job", "_pair")

    def __init__(self, job: Job, pair: Pair) -> None:
        self._job, self._pair = job, pair
        self._common: dict[tuple[int, int], Recorded] = {}  # baselines that all blocks share

    @property
    def count(self) -> int:
        """Baselines of each example."""
        if not self._pair.many:
            return 1
        sizes = [len(b.value) for b in self._job.arguments.baselines if b is not None and b.value.dim()]
        return self._pair.each or max(sizes)

    def score(self, block: Block, points: int) -> tuple[Tensors, Tensor | None]:
        """Scores of a block's examples, and their deltas if wanted; points: most baselines at once."""
        whole = self._pair.many and callable(self._job.plan.fold)  # a user's function sees all pairs at once
        try:
            return self._sum(block, self._parts(block, self.count if whole else points))
        except Unpairable:
            _unpairable.add(self._job.model.key)
            self._common.clear()
            return self._sum(block, self._parts(block, self.count if whole else points))

    def _sum(self, block: Block, parts: Iterator[Part]) -> tuple[Tensors, Tensor | None]:
        """The mean of the parts' scores, and a delta for each pair, an example's side by side."""
        totals: list[Tensor | None] = [None] * len(block.inputs)
        gaps = []
        for part in parts:
            scores = self._fold(block, part)
            for i, s in enumerate(scores):
                total = totals[i]
                if s is not None:
                    totals[i] = s.sum(0) if total is None else total.add_(s.sum(0))
            if part.change is not None:
                flat = [s if s is None else s.flatten(0, 1) for s in scores]
                gaps.append(completeness_gap(flat, part.change.flatten()).view(-1, block.examples))
        means = tuple([t if t is None else t / self.count for t in totals]) if self._pair.many else tuple(totals)
        return means, torch.cat(gaps).t().flatten() if gaps else None

    def _fold(self, block: Block, part: Part) -> list[Tensor | None]:
        """Scores [n, B, ...] from multipliers."""
        how, xs = self._job.plan.fold, block.inputs
        if how is Fold.GRADIENT:
            return part.multipliers
        if how is Fold.TIMES_CHANGE:
            rows = zip(part.multipliers, xs, part.baselines, strict=True)
            return [None if m is None or x is None or b is None else m * (x - b) for m, x, b in rows]
        assert callable(how)
        # As captum hands them over: all baselines of an example side by side.
        m, x, b = (
            tuple([t if t is None else _of_pairs(t, like) for t, like in zip(each, part.multipliers, strict=True)])
            for each in (part.multipliers, [None if x is None else x[None] for x in xs], part.baselines)
        )
        shape = (block.examples, -1)
        return [s if s is None else s.unflatten(0, shape).transpose(0, 1) for s in how(m, x, b)]

    def _parts(self, block: Block, points: int) -> Iterator[Part]:
        job, pair = self._job, self._pair
        apart = (
            job.plan.rule.function is not None
            or job.model.high is not None
            or block.batch.has_travelling_extra()
            or job.model.key in _unpairable
            or (pair.many and job.model.low > 1)
            or pair.each == 1
        )
        if apart or not (pair.many or (block.examples > 1 and all(b is None or b.shared for b in block.baselines))):
            return self._row_by_row(block, points)
        return self._shared(block, points)

    def _row_by_row(self, block: Block, points: int) -> Iterator[Part]:
        """A baseline row for every row of the examples."""
        job, n = self._job, self.count
        for first in range(0, n, points):
            count = min(points, n - first)
            baselines = self._baselines(block, first, count)
            rows, extra = count * block.examples, block.extra(count)
            at = [_rows(b, x, count) for b, x in zip(baselines, block.inputs, strict=True)]
            recorded = self._record(tuple(at), extra, rows)
            xs = tuple([x if x is None else x.repeat(count, *[1] * (x.dim() - 1)) for x in block.inputs])
            reached, found = self._back(recorded.tape, xs, block, count)
            shape = (count, block.examples)
            change = None
            if job.wants_delta:
                start = job.arguments.target.pick(recorded.out, block.target_rows(count, reached.device))
                change = reached.reshape(shape) - start.reshape(shape)
            yield Part([None if m is None else m.unflatten(0, shape) for m in found], baselines, change)

    def _back(self, tape: Tape, xs: Tensors, block: Block, count: int) -> tuple[Tensor, Tensors]:
        """The explained numbers of rows, and their multipliers."""
        job, rows = self._job, count * block.examples
        leaves = [x.detach().requires_grad_() for x in xs if x is not None]
        with job.measuring(rows):
            if job.plan.rule.function is None:
                reached = self._reach(tape, xs, leaves, block, count)
                found = list(differentiate(reached, leaves))
            else:
                seen = []

                def forward() -> Tensor:
                    seen.append(self._reach(tape, xs, leaves, block, count))
                    return seen[-1]

                found = list(job.plan.rule.function(forward, tuple(leaves)))
                reached = seen[-1]
        rest = iter(found)
        return reached.detach(), tuple([x if x is None else next(rest).detach() for x in xs])

    def _reach(self, tape: Tape, xs: Tensors, leaves: list[Tensor], block: Block, count: int) -> Tensor:
        """The explained numbers of the examples, in a graph that goes back by the rule."""
        job, rows = self._job, count * block.examples
        tape.start(job.model.rows(rows))
        rest = iter(leaves)
        at = tuple([x if x is None else next(rest) for x in xs])
        out = job.evaluate(at, block.extra(count), rows, tape)
        tape.finish()
        if job.plan.rule.function is not None and job.arguments.target.raw is None and not job.wants_delta:
            return out  # a function that explains something else than the output
        return job.arguments.target.pick(out, block.target_rows(count, out.device))

    def _shared(self, block: Block, points: int) -> Iterator[Part]:
        """Baselines that stand against every example: each is evaluated once, and so is each example."""
        n = self.count
        size = n if self._job.rows is None or self._pair.each else min(n, max(self._job.rows, points))
        if self._pair.many and size == block.examples and not self._pair.each:
            size += 1 if size < n else -1  # or a tensor's rows could be an example's or a baseline's
        for start in range(0, n, size):
            stop = min(start + size, n)
            recorded = self._baselines_once(block, start, stop)
            yield from self._against(block, recorded, start, stop, points)

    def _baselines_once(self, block: Block, start: int, stop: int) -> Recorded:
        """The forward of baselines start to stop; kept for other blocks where they are all and for all."""
        if (start, stop) in self._common:
            return self._common[start, stop]
        each = self._pair.each
        operands = self._baselines(block, start, stop - start)
        if each:
            at = [None if b is None else b.transpose(0, 1).flatten(0, 1) for b in operands]
        else:
            pairs = zip(operands, block.inputs, strict=True)
            at = [None if b is None or x is None else b[:, 0].expand(-1, *x.shape[1:]) for b, x in pairs]
        rows = (stop - start) * (block.examples if each else 1)
        recorded = self._record(tuple(at), block.batch.arguments.extra, rows, each)
        if not each and stop - start == self.count:
            self._common[start, stop] = recorded
        return recorded

    def _against(self, block: Block, recorded: Recorded, start: int, stop: int, points: int) -> Iterator[Part]:
        job, tape, b = self._job, recorded.tape, block.examples
        leaves = [x.detach().requires_grad_() for x in block.inputs if x is not None]
        with job.measuring(b):
            reached = self._reach(tape, block.inputs, leaves, block, 1)
            change = self._change(block, recorded, reached, stop - start) if job.wants_delta else None
            for first in range(start, stop, points):
                count = min(points, stop - first)
                tape.turn(first - start, count)
                found = iter(self._multipliers(tape, reached, leaves, last=first + count == stop))
                multipliers = [None if x is None else next(found) for x in block.inputs]
                part = None if change is None else change[first - start : first - start + count]
                yield Part(multipliers, self._baselines(block, first, count), part)

    def _multipliers(self, tape: Tape, reached: Tensor, leaves: list[Tensor], last: bool) -> list[Tensor]:
        """[n, B, ...]: one backward for all n baselines that the tape is set to."""
        if not self._pair.many:
            return [m[None] for m in differentiate(reached, leaves)]

        def back(root: Tensor) -> tuple[Tensor, ...]:
            tape.vmapped(_functorch.maybe_get_level(root))
            found = run_backward(reached, root, leaves, keep_graph=not last)
            return tuple([torch.zeros_like(x) if m is None else m for m, x in zip(found, leaves, strict=True)])

        roots = torch.ones_like(reached).expand(tape.count, *reached.shape)
        return list(torch.func.vmap(back)(roots))

    def _change(self, block: Block, recorded: Recorded, reached: Tensor, count: int) -> Tensor:
        """f(example) - f(baseline) for every baseline, of which every example has its own target: [count, B]."""
        out, b = recorded.out, block.examples
        if self._pair.each:
            rows = out.unflatten(0, (b, count)).transpose(0, 1).flatten(0, 1)
        else:
            rows = out[:, None].expand(count, b, *out.shape[1:]).flatten(0, 1)
        start = self._job.arguments.target.pick(rows, block.target_rows(count, out.device))
        return reached.detach().reshape(1, b) - start.reshape(count, b)

    def _record(self, at: Tensors, extra: tuple[Any, ...], rows: int, each: int = 0) -> Recorded:
        tape = Tape(self._job.model.rows(rows), each)
        out = self._job.evaluate(at, extra, rows, tape, recording=True)
        return Recorded(tape, out.detach())

    def _baselines(self, block: Block, first: int, count: int) -> list[Tensor | None]:
        """Baselines first to first + count of a block's examples: [count, 1 or B, ...]."""
        pair = self._pair
        found: list[Tensor | None] = []
        for b, x in zip(block.baselines if not pair.many else self._job.arguments.baselines, block.inputs, strict=True):
            if b is None or x is None:
                found.append(None)
            elif b.value.dim() == 0:
                found.append(b.value.view(1, 1, *[1] * (x.dim() - 1)).expand(count, *[-1] * x.dim()))
            elif not pair.many:
                found.append((b.value if b.index is None else b.value[b.index])[None])
            elif pair.each:
                rows = b.value[block.start * pair.each : block.stop * pair.each]
                found.append(rows.unflatten(0, (-1, pair.each))[:, first : first + count].transpose(0, 1))
            else:
                found.append(b.value[first : first + count, None])
        return found


def _rows(b: Tensor | None, x: Tensor | None, count: int) -> Tensor | None:
    """Baselines [n, 1 or B, ...] as rows [n * B, ...] that a model may write to."""
    if b is None or x is None:
        return None
    return b.expand(count, *x.shape).flatten(0, 1).clone()


def _of_pairs(t: Tensor, like: Tensor | None) -> Tensor:
    """[n or 1, B or 1, ...] as [B * n, ...]."""
    assert like is not None
    return t.expand(like.shape).transpose(0, 1).flatten(0, 1)
