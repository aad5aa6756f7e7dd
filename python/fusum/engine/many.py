"""Examples against each of many baselines: every example and every baseline is evaluated once, every pair goes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import progress
from ..errors import ArgumentError
from ..plan.spec import Fold, Pair
from ..rules.tape import Tape, Unpairable
from .batch import Block, Tensors
from .cpu import run_backward
from .gradients import filled, require_gradient
from .memory import is_out_of_memory
from .pairs import Pairing, Reached, Recorded
from .values import completeness_gap

if TYPE_CHECKING:
    from .run import Job

_functorch: Any = torch._C._functorch


@dataclass(slots=True)
class Part:
    """Multipliers [n, B, ...] for n baselines; inputs [B, ...]; baselines [n, 1 or B, ...]; f's change [n, B]."""

    multipliers: list[Tensor | None]
    inputs: Tensors
    baselines: list[Tensor | None]
    change: Tensor | None


class ManyPairing(Pairing):
    """The evaluations of one job in which each example has many baselines."""

    __slots__ = ("_each", "_kept")

    def __init__(self, job: Job, pair: Pair) -> None:
        Pairing.__init__(self, job)
        self._each = pair.each
        self._kept: Recorded | None = None

    def forget(self) -> None:
        """Baselines that were kept run again."""
        self._kept = None

    @property
    def count(self) -> int:
        """Baselines of each example."""
        sizes = [len(b.value) for b in self._job.arguments.baselines if b is not None and b.value.dim()]
        return self._each or max(sizes)

    def _score(self, block: Block, points: int) -> tuple[Tensors, Tensor | None]:
        if callable(self._job.plan.fold):
            points = self.count  # a user's function sees all pairs at once
        apart = self.runs_apart(block) or self._job.model.low > 1
        if not (apart or self._each) and block.examples == self.count:
            # A tensor's rows could be those of examples or of baselines; of fewer examples they cannot.
            cuts = ((block.start, block.stop - 1), (block.stop - 1, block.stop))
            found = [self._score(block.batch.block(*cut), points) for cut in cuts]
            scores = zip(*(scores for scores, _ in found), strict=True)
            joined = tuple([None if any(s is None for s in column) else torch.cat(column) for column in scores])
            deltas = [delta for _, delta in found if delta is not None]
            return joined, torch.cat(deltas) if deltas else None
        return self._mean(block, self._row_by_row(block, points) if apart else self._shared(block, points))

    def _mean(self, block: Block, parts: Iterator[Part]) -> tuple[Tensors, Tensor | None]:
        """The mean of the parts' scores, and a delta for each pair, an example's side by side."""
        totals: list[Tensor | None] = []
        gaps = []
        for part in parts:
            scores = self._fold_part(block, part)
            totals = totals or [None] * len(scores)
            for i, s in enumerate(scores):
                total = totals[i]
                if s is not None:
                    totals[i] = s.sum(0) if total is None else total.add_(s.sum(0))
            if part.change is not None:
                flat = [s if s is None else s.flatten(0, 1) for s in scores]
                gaps.append(completeness_gap(flat, part.change.flatten()).view(-1, block.examples))
        return tuple([t if t is None else t / self.count for t in totals]), torch.cat(
            gaps
        ).t().flatten() if gaps else None

    def _fold_part(self, block: Block, part: Part) -> list[Tensor | None]:
        """Scores [n, B, ...] from multipliers."""
        how, xs = self._job.plan.fold, part.inputs
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

    def _row_by_row(self, block: Block, points: int) -> Iterator[Part]:
        """A baseline row for every row of the examples."""
        job, n = self._job, self.count
        for first in range(0, n, points):
            count = min(points, n - first)
            baselines = self._many(block, first, count)
            at = tuple([_rows(b, x, count) for b, x in zip(baselines, block.inputs, strict=True)])
            recorded = self.record(at, block.extra(count), count * block.examples)
            xs = tuple([x if x is None else x.repeat(count, *[1] * (x.dim() - 1)) for x in block.inputs])
            reached, found = self.back(recorded.tape, xs, block, count)
            progress.advance(count * block.examples)
            shape = (count, block.examples)
            change = None
            if job.wants_delta:
                start = job.arguments.target.pick(recorded.out, block.target_rows(count, recorded.out.device))
                change = reached.numbers.detach().reshape(shape) - start.reshape(shape)
            inputs = block.inputs
            if reached.held is not None:
                inputs = tuple([v[: block.examples] for v in reached.held.values])  # the same for each baseline
                baselines = [None if v is None else v.unflatten(0, shape) for v in recorded.values]
            yield Part([None if m is None else m.unflatten(0, shape) for m in found], inputs, baselines, change)

    def _shared(self, block: Block, points: int) -> Iterator[Part]:
        """Baselines that stand against every example: each is evaluated once, and so is each example."""
        n, size = self.count, self._most(block, points)
        for start in range(0, n, size):
            stop = min(start + size, n)
            yield from self._against(block, self._recorded(block, start, stop), start, stop, points)

    def _most(self, block: Block, points: int) -> int:
        """Baselines to run at once: not as many as examples, or a tensor's rows might be those or these."""
        n, rows = self.count, self._job.rows
        if rows is None or self._each or rows >= n:
            return n
        size = max(rows, points)
        while size > 1 and block.examples in (size, n % size):
            size -= 1
        return size

    def _recorded(self, block: Block, start: int, stop: int) -> Recorded:
        """The forward of baselines start to stop; kept for other blocks where they are all and for all."""
        if self._kept is not None:
            return self._kept
        operands = self._many(block, start, stop - start)
        if self._each:
            at = [None if b is None else b.transpose(0, 1).flatten(0, 1) for b in operands]
        else:
            pairs = zip(operands, block.inputs, strict=True)
            at = [None if b is None or x is None else b[:, 0].expand(-1, *x.shape[1:]) for b, x in pairs]
        rows = (stop - start) * (block.examples if self._each else 1)
        recorded = self.record(tuple(at), block.batch.arguments.extra, rows, self._each)
        if not self._each and stop - start == self.count:
            self._kept = recorded
        return recorded

    def _against(self, block: Block, recorded: Recorded, start: int, stop: int, points: int) -> Iterator[Part]:
        job, tape = self._job, recorded.tape
        reached = self.reach(tape, block.inputs, block, 1)
        held = reached.held
        change = self._change(block, recorded, reached.numbers, stop - start) if job.wants_delta else None
        for first in range(start, stop, points):
            count = min(points, stop - first)
            tape.turn(first - start, count)
            found = self._multipliers(tape, reached, last=first + count == stop)
            progress.advance(count * block.examples)
            part = None if change is None else change[first - start : first - start + count]
            if held is None:
                rest = iter(found)
                multipliers = [None if x is None else next(rest) for x in block.inputs]
                yield Part(multipliers, block.inputs, self._many(block, first, count), part)
            else:
                baselines = [self._held(v, first - start, count) for v in recorded.values]
                yield Part(held.all(found, offset=1), tuple(held.values), baselines, part)

    def _held(self, values: Tensor | None, first: int, count: int) -> Tensor | None:
        """Baselines first to first + count of those in a layer's values: [count, 1 or B, ...]."""
        if values is None:
            return None
        if self._each:
            values = values.unflatten(0, (-1, self._each)).transpose(0, 1)
        return values[first : first + count] if self._each else values[first : first + count, None]

    def _multipliers(self, tape: Tape, reached: Reached, last: bool) -> list[Tensor]:
        """[n, B, ...]: one backward for all n baselines that the tape is set to."""
        numbers, leaves = reached.numbers, reached.leaves
        unused = self._job.stepper.unused(reached.held)

        def back(root: Tensor) -> tuple[Tensor, ...]:
            tape.vmapped(_functorch.maybe_get_level(root))
            found = run_backward(numbers, root, leaves, keep_graph=not last)
            return filled(found, leaves, unused)

        if unused is not None and not numbers.requires_grad:
            return list(filled([None] * len(leaves), leaves, unused))
        require_gradient(numbers)
        roots = torch.ones_like(numbers).expand(tape.count, *numbers.shape)
        _functorch._set_vmap_fallback_warning_enabled(False)
        try:
            return list(torch.func.vmap(back)(roots))
        except ArgumentError:
            raise
        except RuntimeError as error:  # an operator's backward that vmap does not serve
            if is_out_of_memory(error):
                raise
            raise Unpairable from error
        finally:
            _functorch._set_vmap_fallback_warning_enabled(True)

    def _change(self, block: Block, recorded: Recorded, reached: Tensor, count: int) -> Tensor:
        """f(example) - f(baseline) for every baseline, of which every example has its own target: [count, B]."""
        out, b = recorded.out, block.examples
        if self._each:
            rows = out.unflatten(0, (b, count)).transpose(0, 1).flatten(0, 1)
        else:
            rows = out[:, None].expand(count, b, *out.shape[1:]).flatten(0, 1)
        start = self._job.arguments.target.pick(rows, block.target_rows(count, out.device))
        return reached.detach().reshape(1, b) - start.reshape(count, b)

    def _many(self, block: Block, first: int, count: int) -> list[Tensor | None]:
        """Baselines first to first + count of a block's examples: [count, 1 or B, ...]."""
        each = self._each
        found: list[Tensor | None] = []
        for b, x in zip(self._job.arguments.baselines, block.inputs, strict=True):
            if b is None or x is None:
                found.append(None)
            elif b.value.dim() == 0:
                found.append(b.value.expand(count, 1, *[1] * (x.dim() - 1)))
            elif each:
                rows = b.value[block.start * each : block.stop * each].unflatten(0, (-1, each))
                found.append(rows[:, first : first + count].transpose(0, 1))
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
