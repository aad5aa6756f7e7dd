"""Examples against baselines: the baselines run first and leave a tape, then the examples go back along it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from torch import Tensor

from .. import ops, progress
from ..plan.arguments import Baseline
from ..plan.spec import Fold
from ..rules.tape import Overwritten, Tape, Unpairable
from .batch import Baselines, Block, Tensors
from .gradients import differentiate
from .model import remember, remembers
from .site import Held
from .values import completeness_gap

if TYPE_CHECKING:
    from .run import Job

# Models of which tensors cannot be paired with those of shared baselines, and models that write over tensors.
_unpairable: WeakSet[Any] = WeakSet()
_overwriting: WeakSet[Any] = WeakSet()


@dataclass(slots=True)
class Recorded:
    """The forward of baseline rows: what it left at each operator, the model's output, and what is explained there."""

    tape: Tape
    out: Tensor
    values: Tensors


@dataclass(slots=True)
class Reached:
    """The forward of examples: the explained numbers, the leaves they depend on, and what layers held, if asked for."""

    numbers: Tensor
    leaves: list[Tensor]
    held: Held | None


class Pairing:
    """The evaluations of one job in which each example has one baseline."""

    __slots__ = ("_apart", "_common", "_copies", "_job")

    def __init__(self, job: Job) -> None:
        self._job = job
        self._common: Recorded | None = None  # the baselines that all blocks share
        self._apart = remembers(_unpairable, job.model.key)
        self._copies = remembers(_overwriting, job.model.key)

    @property
    def count(self) -> int:
        """Baselines of each example."""
        return 1

    def score(self, block: Block, points: int) -> tuple[Tensors, Tensor | None]:
        """Scores of a block's examples, and their deltas if wanted; points: most baselines at once."""
        for _ in range(2):
            try:
                return self._score(block, points)
            except Unpairable:
                self._apart = True
                remember(_unpairable, self._job.model.key)
            except Overwritten:
                self._copies = True
                remember(_overwriting, self._job.model.key)
            self.forget()
        return self._score(block, points)

    def forget(self) -> None:
        """Baselines that were kept run again."""
        self._common = None

    def _score(self, block: Block, points: int) -> tuple[Tensors, Tensor | None]:
        job = self._job
        if job.stepper.perceptron is not None:
            return self._at_once(block)
        recorded = self._baselines(block)
        reached, multipliers = self.back(recorded.tape, block.inputs, block, 1)
        progress.advance(block.examples)
        if reached.held is None:
            scores = self._fold(multipliers, block.inputs, block.baselines)
        else:
            baselines = tuple([Baseline(value) for value in recorded.values if value is not None])
            scores = self._fold(multipliers, tuple(reached.held.values), baselines)
        if not job.wants_delta:
            return scores, None
        b = block.examples
        rows = recorded.out.expand(b, *recorded.out.shape[1:])
        start = job.arguments.target.pick(rows, block.target_rows(1, rows.device))
        return scores, completeness_gap(scores, reached.numbers.detach().reshape(b) - start.reshape(b))

    def _at_once(self, block: Block) -> tuple[Tensors, Tensor | None]:
        """Both forwards and the way back in one operator."""
        (x,), (baseline,) = block.inputs, block.baselines
        assert x is not None
        assert baseline is not None
        start = baseline.like((1 if baseline.shared else block.examples, *x.shape[1:]))
        multipliers, reached, ends = self._job.stepper.at_once(block.inputs, start, block, 1)
        progress.advance(block.examples)
        scores = self._fold((multipliers,), block.inputs, block.baselines)
        return scores, completeness_gap(scores, reached - ends) if self._job.wants_delta else None

    def _baselines(self, block: Block) -> Recorded:
        """The forward of a block's baselines: of one row where that stands against every example."""
        shared = (
            block.examples > 1 and not self.runs_apart(block) and all(b is None or b.shared for b in block.baselines)
        )
        if shared and self._common is not None:
            return self._common
        rows = 1 if shared else block.examples
        pairs = zip(block.baselines, block.inputs, strict=True)
        at = tuple([None if b is None or x is None else b.like((rows, *x.shape[1:])).detach() for b, x in pairs])
        recorded = self.record(at, block.extra(1), rows)
        if shared:
            self._common = recorded
        return recorded

    def _fold(self, multipliers: Tensors, xs: Tensors, baselines: Baselines) -> Tensors:
        how = self._job.plan.fold
        if how is Fold.GRADIENT:
            return multipliers
        rows = zip(multipliers, xs, baselines, strict=True)
        if how is Fold.TIMES_CHANGE:
            return tuple(
                [
                    None if m is None or x is None or b is None else ops.times_change(m, x, b.value, b.index)
                    for m, x, b in rows
                ]
            )
        assert callable(how)
        values = [None if b is None or x is None else b.like(tuple(x.shape)) for _, x, b in rows]
        return tuple(how(multipliers, xs, tuple(values)))

    def runs_apart(self, block: Block) -> bool:
        """Whether a baseline row must run for every row of the examples."""
        job = self._job
        return (
            job.plan.rule.function is not None
            or job.model.high is not None
            or block.batch.has_travelling_extra()
            or self._apart
        )

    def record(self, at: Tensors, extra: tuple[Any, ...], rows: int, each: int = 0) -> Recorded:
        tape = Tape(self._job.model.rows(rows), each, copies=self._copies)
        done = self._job.stepper.evaluate(at, extra, rows, tape, recording=True)
        if self._job.plan.rule.function is None:
            self._job.arguments.target.check(done.out)
        return Recorded(tape, done.out.detach(), at if done.held is None else tuple(done.held.values))

    def back(self, tape: Tape, xs: Tensors, block: Block, count: int) -> tuple[Reached, Tensors]:
        """The explained numbers of rows, and their multipliers."""
        function = self._job.plan.rule.function
        if function is not None:
            return self._replaced(function, tape, xs, block, count)
        reached = self.reach(tape, xs, block, count)
        found = differentiate(reached.numbers, reached.leaves, unused=self._job.stepper.unused(reached.held))
        if reached.held is not None:
            return reached, tuple(reached.held.all(found))
        rest = iter(found)
        return reached, tuple([x if x is None else next(rest).detach() for x in xs])

    def _replaced(
        self, function: Callable[..., Any], tape: Tape, xs: Tensors, block: Block, count: int
    ) -> tuple[Reached, Tensors]:
        """By a function that takes gradients in a way of its own."""
        leaves = tuple([x.detach().requires_grad_() for x in xs if x is not None])
        seen: list[Reached] = []

        def forward() -> Tensor:
            rest = iter(leaves)
            seen.append(self.reach(tape, tuple([x if x is None else next(rest) for x in xs]), block, count))
            return seen[-1].numbers

        found = iter(function(forward, leaves))
        return seen[-1], tuple([x if x is None else next(found).detach() for x in xs])

    def reach(self, tape: Tape, xs: Tensors, block: Block, count: int) -> Reached:
        """The explained numbers of the examples, in a graph that goes back by the rule."""
        job, rows = self._job, count * block.examples
        tape.start(job.model.rows(rows))
        at = tuple([x if x is None or x.requires_grad else x.detach() for x in xs])
        with job.measuring(rows):
            done = job.stepper.evaluate(at, block.extra(count), rows, tape)
        tape.finish()
        numbers = done.out
        # A function of a user's may explain something else than the output.
        if job.plan.rule.function is None or job.arguments.target.raw is not None or job.wants_delta:
            numbers = job.arguments.target.pick(done.out, block.target_rows(count, done.out.device))
        return Reached(numbers, done.leaves, done.held)
