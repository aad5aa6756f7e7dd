"""The one loop: evaluates a plan's points block by block, walks back, folds the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import ArgumentError
from ..plan import points as draw
from ..plan.arguments import Arguments, normalise
from ..plan.chunks import even
from ..plan.spec import PLAIN, Call, Fold, Gradient, Line, Noise, Once, Other, Pair, RandomLine, Relevance
from ..rules.reach import check_reach
from ..rules.tape import Tape
from ..rules.turn import Ruled, is_ruled, ruled
from ..settings import Settings, current
from .batch import Baselines, Batch, Block, Tensors
from .first import PathSum, may_stop, nodes, stops
from .gradients import differentiate
from .many import ManyPairing
from .model import bare, check_rows, keeps_rows_apart, uncompiled, view
from .pairs import Pairing
from .planning import Planning
from .pools import layout, learn
from .support import insist
from .tunnel import Score, Scores, smooth, smooth_other
from .values import Values, completeness_gap


def run(call: Call) -> Any:
    """The attributions of one call, in the form of its inputs; with a delta one an example if it was asked for."""
    settings = current()
    if settings.strict:
        insist(call.plan)
    noise = call.plan.noise
    with scope():
        if noise is not None and isinstance(call.plan.points, Other):
            return smooth_other(noise, call.plan.points, call.inputs)
        arguments = normalise(call)
        job = Job(call, arguments, settings)
        if noise is not None:
            scores, delta = smooth(noise, arguments.inputs, job.tunnel(noise))
        else:
            scores, delta = job.all(Batch(arguments, arguments.examples, job.baselines))
    result = scores[0] if arguments.single else scores
    return (result, delta) if call.return_convergence_delta else result


def convergence_delta(call: Call, attributions: Any) -> Tensor:
    """Sum of each example's attributions minus the change of the model from call's baselines to its inputs."""
    with scope():
        arguments = normalise(call)
        scores = attributions if isinstance(attributions, tuple) else (attributions,)
        if len(scores) != len(arguments.inputs):
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


class scope:
    """Gradients on; inference mode, the rule of an attribution outside and the JIT's optimiser off.

    The optimiser would compile anew for every batch size.

    A class and not a generator, because it is entered at every call and some calls take 300 microseconds.
    """

    __slots__ = ("_inference", "_optimised", "_outer", "_was_grad")

    def __enter__(self) -> None:
        self._optimised = torch._C._get_graph_executor_optimize()
        torch._C._set_graph_executor_optimize(False)
        self._inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else None
        if self._inference is not None:
            self._inference.__enter__()
        self._outer = ruled(PLAIN, 0) if is_ruled() else None
        if self._outer is not None:
            self._outer.__enter__()
        self._was_grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(True)

    def __exit__(self, *error: object) -> None:
        torch._C._set_grad_enabled(self._was_grad)
        if self._outer is not None:
            self._outer.__exit__(None, None, None)
        if self._inference is not None:
            self._inference.__exit__(None, None, None)
        torch._C._set_graph_executor_optimize(self._optimised)


class Job:
    """One call while it runs: its plan, model and arguments, and how its rows are cut."""

    __slots__ = (
        "arguments",
        "forward_func",
        "model",
        "pairing",
        "plan",
        "planning",
        "settings",
        "wants_delta",
    )

    def __init__(self, call: Call, arguments: Arguments, settings: Settings) -> None:
        self.plan = call.plan
        self.settings = settings
        ruled = not isinstance(call.plan.rule, Gradient)
        self.forward_func = bare(call.forward_func) if ruled else call.forward_func
        self.model = uncompiled(view(self.forward_func)) if ruled else view(self.forward_func)
        self.arguments = arguments
        self.pairing = self._pairing()
        self.wants_delta = call.return_convergence_delta
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
            gradients = self._line(self.plan.points, block, points, values)
        else:
            gradients, reached = self._step(self._single_points(block), block, 1)
        how = self.plan.fold
        assert isinstance(how, Fold)
        baselines = block.baselines or block.inputs
        scores = tuple([_fold(how, *each) for each in zip(gradients, block.inputs, baselines, strict=True)])
        if self.wants_delta and isinstance(self.plan.rule, Relevance):
            return scores, -completeness_gap(scores, self._output(block) if reached is None else reached)
        if values is None:
            return scores, None
        return scores, completeness_gap(scores, values.change(block, self.rows))

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

    def _line(self, line: Line, block: Block, points: int, values: Values | None) -> Tensors:
        """The weighted sum of the gradients along the line, in float32 for half types."""
        pairs = list(zip(block.inputs, block.baselines, strict=True))
        alphas, weights = draw.quadrature_tensors(line.method, line.n_steps, self.arguments.device)
        sums = [None if x is None else PathSum(x) for x in block.inputs]
        stopping = [s for s in sums if s is not None] if self._may_stop(line) else ()
        done = 0
        while done < line.n_steps:
            part = slice(done, min(done + points, line.n_steps))
            a, w = (alphas, weights) if points == line.n_steps else (alphas[part], weights[part])
            at = tuple([x if x is None or b is None else ops.path_points(x, b.value, b.index, a) for x, b in pairs])
            rows_before = self.rows
            gradients, reached = self._step(at, block, part.stop - done, stopping)
            if values is not None and reached is not None:
                values.keep(line, part, reached, block.examples)
            for total, gradient in zip(sums, gradients, strict=True):
                if total is not None and gradient is not None:
                    total.add(gradient, w)
            del at, gradients  # or they would weigh on the next points
            done = part.stop
            if self.rows != rows_before and self.rows is not None and done < line.n_steps:
                points = even(line.n_steps - done, max(1, self.rows // block.examples))
        return tuple([None if s is None else s.result() for s in sums])

    def _may_stop(self, line: Line) -> bool:
        """Whether the way back may stop at first convolutions: it gains by that, and nobody set the rows.

        A sum at a convolution's output takes more memory than one at its input.
        """
        if line.n_steps == 1 or self.plan.rule is not PLAIN or self.arguments.max_rows or self.settings.max_rows:
            return False
        return may_stop(self.model.key, self.arguments.inputs, line.n_steps)

    def _step(
        self, at: Tensors, block: Block, points: int, sums: Sequence[PathSum] = ()
    ) -> tuple[Tensors, Tensor | None]:
        """Gradients at the given rows, and the explained numbers there where they are known.

        sums: what they are added to, if the way back may stop before the inputs.
        """
        if self.plan.rule.function is not None:
            return self._replaced_step(at, block, points), None
        with self.measuring(points * block.examples):
            return self._fused_step(at, block, points, sums)

    def evaluate(
        self, at: Tensors, extra: tuple[Any, ...], rows: int, tape: Tape | None = None, recording: bool = False
    ) -> Tensor:
        """The output at given rows, [rows, ...], in a graph that goes back by the plan's rule."""
        # A rule takes leaves that need gradients for parameters.
        given = tuple([x if x is None else x.requires_grad_().view_as(x) for x in at])
        with ruled(self.plan.rule, self.model.rows(rows), tape, recording):
            out = self.model(given, extra, rows)
        if out.dim() == 0 or out.shape[0] != rows:
            self._check_rows(out, rows)
        if not recording:
            check_reach(self.plan.rule, self.model.key, out)
        return out

    def _fused_step(
        self, at: Tensors, block: Block, points: int, sums: Sequence[PathSum]
    ) -> tuple[Tensors, Tensor | None]:
        rows = points * block.examples
        leaves = [x.requires_grad_() for x in at if x is not None]
        if self.plan.rule is PLAIN and not is_ruled():
            with layout(self.model.key, leaves) if sums else nullcontext():
                out = self.model(at, block.extra(points), rows)
            if out.dim() == 0 or out.shape[0] != rows:
                self._check_rows(out, rows)
        else:
            out = self.evaluate(at, block.extra(points), rows)
        reached = self.arguments.target.pick(out, block.target_rows(points, out.device))
        found: Tensors = differentiate(reached, self._ends(reached, leaves, sums) if sums else leaves)
        if len(found) < len(at):
            rest = iter(found)
            found = tuple([None if x is None else next(rest) for x in at])
        return found, reached.detach().flatten() if self.wants_delta else None

    def _ends(self, reached: Tensor, leaves: list[Tensor], sums: Sequence[PathSum]) -> list[Any]:
        graph = nodes(reached.grad_fn)
        learn(self.model.key, leaves, graph)
        return stops(graph, leaves, sums)

    def _check_rows(self, out: Tensor, rows: int) -> None:
        """A method that looks once at a whole batch may explain its rows together, as in captum; others may not."""
        once = self.plan.noise is None and isinstance(self.plan.points, Once)
        if not (once and rows == self.arguments.examples and out.dim()):
            check_rows(out, rows)

    def _replaced_step(self, at: Tensors, block: Block, points: int) -> Tensors:
        given = tuple(x.requires_grad_() if x is not None and x.is_floating_point() else x for x in at)
        extra = block.extra(points, repeat_all=True) or None
        forward = self.forward_func if isinstance(self.plan.rule, Gradient) else Ruled(self.plan.rule, self.model.call)
        gradients = self.plan.rule.function(forward, given, block.raw_target(points), extra)  # type: ignore[misc]
        return tuple(g if g is None else g.detach() for g in gradients)


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
