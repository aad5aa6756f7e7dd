"""The one loop: evaluates a plan's points block by block, walks back, folds the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .. import ops, progress
from ..errors import ArgumentError
from ..plan import points as draw
from ..plan.arguments import Arguments, normalise
from ..plan.chunks import even
from ..plan.spec import PERTURBING, PLAIN, Call, Cam, Fold, Line, Noise, Other, Pair, RandomLine, Relevance
from ..settings import Settings, current
from .batch import Baselines, Batch, Block, Tensors
from .first import PathSum, may_stop
from .inside import enter
from .layers import StepSum, fold
from .many import ManyPairing
from .model import Model, check_rows, keeps_rows_apart
from .pairs import Pairing
from .perturb import perturb, perturb_future
from .planning import Planning
from .scope import scope
from .step import Step, Stepper
from .support import insist
from .tunnel import Score, Scores, smooth, smooth_other
from .values import Values, completeness_gap


def run(call: Call) -> Any:
    """The attributions of one call, in the form of its inputs; with a delta one an example if it was asked for."""
    settings = current()
    if settings.strict:
        insist(call.plan)
    noise = call.plan.noise
    many = isinstance(call.plan.points, Pair) and call.plan.points.many  # vmap's views would be copied on the way back
    with scope(sparing=_is_cut(call, settings), plainly=many):
        if noise is not None and isinstance(call.plan.points, Other):
            return smooth_other(noise, call.plan.points, call.inputs)
        arguments = normalise(call)
        job = Job(call, arguments, settings)
        if isinstance(call.plan.points, PERTURBING):
            return perturb(job, call)
        if isinstance(call.plan.points, (Line, RandomLine)) and call.plan.points.inside:
            return _inside(job, call, settings)
        scores, delta = job.scores()
        result = job.build(scores)
        if delta is not None and delta.dim() > 1:  # one for each of a list of layers
            return result, list(delta.unbind(1))
    return (result, delta) if call.return_convergence_delta else result


def _is_cut(call: Call, settings: Settings) -> bool:
    """Whether somebody has set how much the model sees at once, for the sake of memory."""
    noise = call.plan.noise
    parts = noise is not None and noise.partition < noise.samples
    return parts or bool(call.internal_batch_size or settings.max_rows or settings.memory)


def run_future(call: Call) -> Any:
    """A future of the same, of a model that returns futures; no gradient is taken."""
    with scope():
        return perturb_future(Job(call, normalise(call), current()), call)


def _inside(outer: Job, call: Call, settings: Settings) -> Any:
    """The attributions of a path between what layers hold."""
    entered = enter(outer, call)
    inner = Job(entered.call, entered.arguments, settings, entered.model)
    inner.stepper.inside = entered.unused
    scores, delta = inner.scores()
    assert outer.stepper.site is not None
    if entered.change is not None:
        with torch.no_grad():
            delta = completeness_gap(scores, entered.change)
    result = outer.stepper.site.build(scores)
    return (result, delta) if call.return_convergence_delta else result


def convergence_delta(call: Call, attributions: Any) -> Tensor:
    """Sum of each example's attributions minus the change of the model from call's baselines to its inputs."""
    with scope():
        arguments = normalise(call)
        scores = attributions if isinstance(attributions, tuple) else (attributions,)
        scores = tuple(s for each in scores for s in (each if isinstance(each, (tuple, list)) else (each,)))
        if call.plan.where is None and len(scores) != len(arguments.inputs):
            raise ArgumentError(
                f"attributions: got {len(scores)}; expected one for each of {len(arguments.inputs)} inputs"
            )
        for i, s in enumerate(scores):
            if s is not None and (not isinstance(s, Tensor) or s.shape[:1] != (arguments.examples,)):
                got = tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__
                raise ArgumentError(f"attributions[{i}]: got {got}; expected a tensor of {arguments.examples} examples")
        job = Job(call, arguments, current())
        batch = Batch(arguments, arguments.examples, arguments.baselines)
        values = job.values(batch)
        changes = [c for _, c in job.planning.pieces(batch, 1, lambda block, _: values.change(block, job.rows))]
        with torch.no_grad():
            return completeness_gap(scores, torch.cat(changes))


class Job:
    """One call while it runs: its plan, model and arguments, and how its rows are cut."""

    __slots__ = ("arguments", "model", "pairing", "plan", "planning", "settings", "stepper", "wants_delta")

    def __init__(self, call: Call, arguments: Arguments, settings: Settings, model: Model | None = None) -> None:
        self.plan = call.plan
        self.settings = settings
        self.arguments = arguments
        self.wants_delta = call.return_convergence_delta
        self.stepper = Stepper(call.plan, call.forward_func, arguments, self.wants_delta, model)
        self.model = self.stepper.model
        self.pairing = self._pairing()
        self.planning = Planning(call.plan, self.model, arguments, settings, self.points)

    def _pairing(self) -> Pairing | None:
        points = self.plan.points
        if not isinstance(points, Pair):
            return None
        return ManyPairing(self, points) if points.many else Pairing(self)

    @property
    def baselines(self) -> Baselines:
        """A baseline for each example; none where they are many for each."""
        return () if self.points > 1 and self.pairing is not None else self.arguments.baselines

    @property
    def points(self) -> int:
        """Evaluations of each example."""
        if self.pairing is not None:
            return self.pairing.count
        return self.plan.points.n_steps if isinstance(self.plan.points, Line) else 1

    @property
    def rows(self) -> int | None:
        """How many rows the model sees at once; None: all."""
        return self.planning.rows

    def measuring(self, rows: int) -> AbstractContextManager[None]:
        """A context in which a model's first evaluation, of rows rows, tells how many may run at once from then on."""
        return self.planning.measuring(rows)

    def coefficients(self, examples: int) -> Tensor | None:
        """Random positions on the line, where the plan wants them."""
        if not isinstance(self.plan.points, RandomLine):
            return None
        return draw.coefficients(examples, self.arguments.device)

    def tunnel(self, noise: Noise) -> Score:
        """How a tunnel gets the scores of this plan for noisy copies."""
        baselines: dict[int, Baselines] = {}

        def score(
            samples: int, drawn: Tensors, stdevs: tuple[float, ...]
        ) -> Iterator[tuple[int, Scores, Tensor | None]]:
            if samples not in baselines:  # drawn once for all partitions of one size, as captum does
                baselines[samples] = self._copied_baselines(samples, noise.draw_baselines)
            copies = self.arguments.examples * samples
            coefficients = self.coefficients(copies)
            batch = Batch(self.arguments, copies, baselines[samples], samples, drawn, stdevs, coefficients)
            return self.blocks(batch)

        return score

    def _copied_baselines(self, samples: int, drawn: bool) -> Baselines:
        if not drawn:
            return tuple(b and b.copies(samples) for b in self.arguments.baselines)
        draws = self.arguments.examples * samples
        return tuple(
            b.drawn(draw.choices(len(b.value), draws, b.value.device)) if b and b.value.dim() else b
            for b in self.arguments.baselines
        )

    def scores(self) -> tuple[Scores, Tensor | None]:
        """Scores and deltas of all examples, folded over noisy copies where the plan wants those."""
        noise = self.plan.noise
        progress.expect(self.arguments.examples * self.points * (1 if noise is None else noise.samples))
        if noise is not None:
            return smooth(noise, self.arguments.inputs, self.tunnel(noise))
        return self.all(Batch(self.arguments, self.arguments.examples, self.baselines))

    def build(self, scores: Scores) -> Any:
        """Scores in the form of what they are for: the inputs, or what layers hold."""
        stepper = self.stepper
        if stepper.site is None or stepper.weighs_inputs:
            return scores[0] if self.arguments.single else scores
        return stepper.site.build(scores)

    def all(self, batch: Batch) -> tuple[Scores, Tensor | None]:
        """Scores and deltas of a whole batch."""
        blocks = list(self.blocks(batch))
        if len(blocks) == 1:
            return blocks[0][1:]
        columns = zip(*(scores for _, scores, _ in blocks), strict=True)
        joined = tuple(None if column[0] is None else torch.cat(column) for column in columns)
        deltas = [delta for *_, delta in blocks if delta is not None]
        return joined, torch.cat(deltas) if deltas else None

    def blocks(self, batch: Batch) -> Iterator[tuple[int, Scores, Tensor | None]]:
        """(start, scores, delta) of blocks of examples."""
        values = self.values(batch) if self.wants_delta and self._has_ends() else None
        for start, found in self.planning.pieces(
            batch, self.points, lambda block, points: self._block(block, points, values)
        ):
            yield start, *found

    def _has_ends(self) -> bool:
        """Whether scores sum to a change of the model between two ends that are evaluated for the delta alone."""
        return self.pairing is None and not isinstance(self.plan.rule, Relevance)

    def values(self, batch: Batch) -> Values:
        """The model's values at the ends of every example's path."""
        return Values(self.model, batch, shares=keeps_rows_apart(self.model.key))

    def _block(self, block: Block, points: int, values: Values | None) -> tuple[Scores, Tensor | None]:
        if self.pairing is not None:
            return self.pairing.score(block, points)
        if isinstance(self.plan.points, Line):
            step = self._line(self.plan.points, block, points, values)
        else:
            step = self._step(self._single_points(block), block, 1)
        scores = self._scores(block, step)
        if self.wants_delta and isinstance(self.plan.rule, Relevance):
            return scores, self._relevance_gaps(scores, self._output(block) if step.reached is None else step.reached)
        if values is None:
            return scores, None
        return scores, completeness_gap(scores, values.change(block, self.rows))

    def _scores(self, block: Block, step: Step) -> Scores:
        how, stepper = self.plan.fold, self.stepper
        if stepper.weighs_inputs and isinstance(how, Cam):
            return step.gradients
        if stepper.site is None or stepper.weighs_inputs:
            assert isinstance(how, Fold)
            baselines = block.baselines or block.inputs
            return tuple([_fold(how, *each) for each in zip(step.gradients, block.inputs, baselines, strict=True)])
        if how is not Fold.TIMES_CHANGE:
            return fold(how, step.gradients, step.held)
        # The layer's change between the ends of a path on which the gradient was taken.
        rows = block.examples
        pairs = zip(block.inputs, block.baselines, strict=True)
        start = tuple([None if x is None or b is None else b.like((rows, *x.shape[1:])) for x, b in pairs])
        ends = [stepper.look(at, block.extra(1), rows).values for at in (block.inputs, start)]
        return tuple([None if g is None else g * (x - b) for g, x, b in zip(step.gradients, *ends, strict=True)])

    def _relevance_gaps(self, scores: Scores, reached: Tensor) -> Tensor:
        """What an example's relevance lacks of the explained number; of each of a list of layers: [examples, layers]"""
        form = None if self.stepper.site is None else self.stepper.site.form
        if form is None:
            return -completeness_gap(scores, reached)
        rest = iter(scores)
        gaps = [-completeness_gap([next(rest) for call in calls for _ in call], reached) for calls in form]
        return torch.stack(gaps, dim=1) if self.plan.where is not None and self.plan.where.several else gaps[0]

    def _output(self, block: Block) -> Tensor:
        """The explained numbers of a block's inputs."""
        with torch.no_grad():
            out = self.model(block.inputs, block.extra(1), block.examples)
            check_rows(out, block.examples)
            return self.arguments.target.pick(out, block.target_rows(1, out.device)).reshape(block.examples)

    def _single_points(self, block: Block) -> Tensors:
        coefficients = block.batch.coefficients
        if coefficients is None:
            return tuple([x if x is None else x.detach() for x in block.inputs])
        c = coefficients[block.start : block.stop]
        pairs = zip(block.inputs, block.baselines, strict=True)
        return tuple([x if x is None or b is None else ops.random_points(x, b.value, b.index, c) for x, b in pairs])

    def _line(self, line: Line, block: Block, points: int, values: Values | None) -> Step:
        """The sum of the gradients along the line, weighted or times what layers change, in float32 for half types."""
        pairs = list(zip(block.inputs, block.baselines, strict=True))
        alphas, weights = draw.quadrature_tensors(line.method, line.n_steps, self.arguments.device)
        sums = self._sums(block) if self.stepper.site is None or self.stepper.weighs_inputs else []
        stopping = [s for s in sums if isinstance(s, PathSum)] if self._may_stop(line) else ()
        done = 0
        while done < line.n_steps:
            part = slice(done, min(done + points, line.n_steps))
            a, w = (alphas, weights) if points == line.n_steps else (alphas[part], weights[part])
            at = tuple([x if x is None or b is None else ops.path_points(x, b.value, b.index, a) for x, b in pairs])
            rows_before = self.rows
            step = self._step(at, block, part.stop - done, stopping)
            if values is not None and step.reached is not None:
                values.keep(line, part, step.reached, block.examples)
            sums = sums or self._layer_sums(block, step)
            beside = step.held.values if self.plan.fold is Fold.TIMES_STEPS and step.held else [w] * len(sums)
            for total, gradient, with_ in zip(sums, step.gradients, beside, strict=True):
                if total is not None and gradient is not None:
                    total.add(gradient, with_)
            del at, step, beside  # or they would weigh on the next points
            done = part.stop
            if self.rows != rows_before and self.rows is not None and done < line.n_steps:
                points = even(line.n_steps - done, max(1, self.rows // block.examples))
        return Step(tuple([None if s is None else s.result() for s in sums]))

    def _sums(self, block: Block) -> list[PathSum | StepSum | None]:
        return [None if x is None else PathSum(x) for x in block.inputs]

    def _layer_sums(self, block: Block, step: Step) -> list[PathSum | StepSum | None]:
        b = block.examples
        if self.plan.fold is Fold.TIMES_STEPS:
            return [None if g is None else StepSum(b) for g in step.gradients]
        return [None if g is None else PathSum(g[:b]) for g in step.gradients]

    def _may_stop(self, line: Line) -> bool:
        """Whether the way back may stop at first convolutions: it gains by that, and nobody set the rows.

        A sum at a convolution's output takes more memory than one at its input.
        """
        if line.n_steps == 1 or self.plan.rule is not PLAIN or self.arguments.max_rows or self.settings.max_rows:
            return False
        if self.stepper.site is not None:
            return False
        return may_stop(self.model.key, self.arguments.inputs, line.n_steps)

    def _step(self, at: Tensors, block: Block, points: int, sums: Sequence[PathSum] = ()) -> Step:
        """Gradients at the given rows; sums: what they are added to, if the way back may stop before the inputs."""
        rows = points * block.examples
        if self.plan.rule.function is not None:
            step = self.stepper.step(at, block, points)
        else:
            with self.measuring(rows):
                step = self.stepper.step(at, block, points, sums)
        progress.advance(rows)
        return step


def _fold(how: Fold, gradient: Tensor | None, x: Tensor | None, baseline: Any) -> Tensor | None:
    """Scores from gradients; where the input is NaN, so is its score."""
    if gradient is None or x is None:
        return None
    if how is Fold.TIMES_CHANGE:
        return ops.times_change(gradient, x, baseline.value, baseline.index)
    if how is Fold.TIMES_INPUT:
        return x * gradient
    score = gradient.abs() if how is Fold.ABS else gradient
    return torch.where(x == x, score, x) if x.is_floating_point() else score
