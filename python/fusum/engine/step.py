"""One evaluation of a model, and the way back from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plan.arguments import Arguments
from ..plan.spec import PLAIN, Cam, Fold, Gradient, Once, Plan
from ..rules.reach import check_reach
from ..rules.tape import Tape
from ..rules.turn import Ruled, is_ruled, ruled
from .batch import Block, Tensors
from .first import PathSum, nodes, stops
from .gradients import Unused, differentiate
from .layers import conducted, guided_cam, neuron_model
from .model import ONE_OPERATOR, Model, bare, check_rows, uncompiled, view
from .perceptron import Perceptron, explained
from .probe import Mode
from .site import Held, Site


@dataclass(slots=True)
class Evaluation:
    """A forward: its output [rows, ...], the tensors that are explained, and what layers held that are looked at."""

    out: Tensor
    leaves: list[Tensor]
    held: Held | None = None


@dataclass(slots=True)
class Step:
    """A way back: a gradient for each input, or each tensor of layers; the explained numbers, if they are wanted."""

    gradients: Tensors
    reached: Tensor | None = None
    held: Held | None = None


class Stepper:
    """Evaluates the model of one call and goes back by its plan's rule, to its inputs or to layers.

    site: the layers that are looked at, if any. inside: which inputs that are what layers hold may be unused.
    perceptron: the model's layers, where they go forward and back in one operator.
    """

    __slots__ = (
        *("_arguments", "_forward_func", "_plan", "_wants_reached"),
        *("inside", "model", "perceptron", "site", "weighs_inputs"),
    )

    def __init__(
        self, plan: Plan, forward_func: Any, arguments: Arguments, wants_reached: bool, model: Model | None = None
    ) -> None:
        self._plan, self._forward_func, self._arguments = plan, forward_func, arguments
        self._wants_reached = wants_reached
        # Whether layers are looked at to weigh the gradients of inputs.
        self.weighs_inputs = plan.read is not None or (isinstance(plan.fold, Cam) and plan.fold.guided is not None)
        self.inside: Unused | None = None
        self.site: Site | None = None
        self.perceptron: Perceptron | None = None
        self.model = self._model() if model is None else model

    def _model(self) -> Model:
        """The model that is evaluated: as far as the plan's neuron, where it reads one."""
        plan = self._plan
        where = plan.where if plan.read is None else plan.read.layer
        if where is None and isinstance(plan.rule, Gradient):
            return self._whole(view(self._forward_func))
        self._forward_func = bare(self._forward_func)
        model = view(self._forward_func)
        if where is None:
            model = self._whole(model)
        if not isinstance(plan.rule, Gradient) and (
            where is None or not isinstance(model.call, torch.jit.ScriptModule)
        ):
            model = uncompiled(model)
        if where is None:
            return model
        reads = plan.read is not None and not plan.read.conducts
        differentiable, replaced = plan.fold not in (Fold.VALUE, Fold.CREDIT), plan.fold is not Fold.VALUE and not reads
        site = Site(model, where, self._arguments.max_rows, differentiable, replaced)
        if plan.read is not None and reads:
            return neuron_model(site, plan.read.selector)
        self.site = site
        return site.model

    def _whole(self, model: Model) -> Model:
        """A model that is explained as a whole, which may be a perceptron."""
        self.perceptron = explained(model.call, self._plan, self._arguments)
        return model if self.perceptron is None else model.only(model.call, ONE_OPERATOR)

    def evaluate(
        self,
        at: Tensors,
        extra: tuple[Any, ...],
        rows: int,
        tape: Tape | None = None,
        recording: bool = False,
    ) -> Evaluation:
        """The model at given rows, in a graph that goes back by the plan's rule."""
        plain = self._plan.rule is PLAIN and not is_ruled()
        inside = self.site is not None and not self.weighs_inputs
        leaves = [] if inside else [x.requires_grad_() for x in at if x is not None]
        # A rule takes leaves that need gradients for parameters.
        given = at if plain or inside else tuple([x if x is None else x.view_as(x) for x in at])
        held = None
        with nullcontext() if plain else ruled(self._plan.rule, self.model.rows(rows), tape, recording):
            if self.site is None:
                out = self.model(given, extra, rows)
            else:
                held = self.site.look(Mode.LEAVES if inside else Mode.WATCH, given, extra, rows)
                out = held.out
        if out.dim() == 0 or out.shape[0] != rows:
            self._check_rows(out, rows)
        if not plain and not recording:
            check_reach(self._plan.rule, self.model.key, out)
        return Evaluation(out, leaves if held is None or not inside else held.leaves, held)

    def _check_rows(self, out: Tensor, rows: int) -> None:
        """A method that looks once at a whole batch may explain its rows together, as in captum; others may not."""
        once = self._plan.noise is None and isinstance(self._plan.points, Once)
        if not (once and rows == self._arguments.examples and out.dim()):
            check_rows(out, rows)

    def step(self, at: Tensors, block: Block, points: int, sums: Sequence[PathSum] = ()) -> Step:
        """Gradients at the given rows; sums: what they are added to, if the way back may stop before the inputs."""
        if self._plan.rule.function is not None:
            return Step(self._replaced(at, block, points))
        if self._plan.fold is Fold.VALUE:
            return self._values(at, block, points)
        if self.perceptron is not None:
            gradients, reached, _ = self.at_once(at, None, block, points)
            return Step((gradients,), reached if self._wants_reached else None)
        rows = points * block.examples
        done = self.evaluate(at, block.extra(points), rows)
        reached = self._arguments.target.pick(done.out, block.target_rows(points, done.out.device))
        kept = reached.detach().flatten() if self._wants_reached else None
        if done.held is not None and not self.weighs_inputs:
            found = differentiate(reached, done.leaves, unused=self.unused(done.held))
            return Step(tuple(done.held.all(found)), kept, done.held)
        return Step(self._to_inputs(at, done, reached, sums), kept, done.held)

    def at_once(
        self, at: Tensors, references: Tensor | None, block: Block, points: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`Perceptron.run` at the given rows, compared with references where the plan's rule does so."""
        (rows,) = at
        assert self.perceptron is not None
        assert rows is not None
        chosen = block.target_rows(points, rows.device)
        eps = getattr(self._plan.rule, "eps", 0.0)
        return self.perceptron.run(rows, references, self._arguments.target, chosen, eps)

    def _to_inputs(self, at: Tensors, done: Evaluation, reached: Tensor, sums: Sequence[PathSum]) -> Tensors:
        how, read = self._plan.fold, self._plan.read
        if done.held is None:
            ends = self._ends(reached, done.leaves, sums) if sums else done.leaves
            found: Sequence[Tensor] = differentiate(reached, ends, unused=self.inside)
        elif read is not None:
            found = conducted(read, reached, done.held, done.leaves)
        else:
            assert isinstance(how, Cam)
            found = guided_cam(how, reached, done.held, done.leaves)
        rest = iter(found)
        return tuple(found) if len(found) == len(at) else tuple([None if x is None else next(rest) for x in at])

    def unused(self, held: Held | None) -> Unused | None:
        """Which of the explained tensors may have no influence."""
        where = self._plan.where
        return None if held is None or where is None else Unused(held.sizes, where.may_be_unused)

    def _values(self, at: Tensors, block: Block, points: int) -> Step:
        """What layers hold, and nothing else."""
        held = self.look(at, block.extra(points), points * block.examples)
        return Step(tuple(held.values), held=held)

    def look(self, at: Tensors, extra: tuple[Any, ...], rows: int) -> Held:
        """What layers hold at given rows."""
        assert self.site is not None
        with torch.no_grad():
            return self.site.look(Mode.WATCH, at, extra, rows, stop=True)

    def _ends(self, reached: Tensor, leaves: list[Tensor], sums: Sequence[PathSum]) -> list[Any]:
        return stops(nodes(reached.grad_fn), leaves, sums)

    def _replaced(self, at: Tensors, block: Block, points: int) -> Tensors:
        given = tuple(x.requires_grad_() if x is not None and x.is_floating_point() else x for x in at)
        extra = block.extra(points, repeat_all=True) or None
        rule = self._plan.rule
        forward = self._forward_func if isinstance(rule, Gradient) else Ruled(rule, self.model.call)
        gradients = rule.function(forward, given, block.raw_target(points), extra)  # type: ignore[misc]
        return tuple(g if g is None else g.detach() for g in gradients)
