"""Methods that change inputs and watch the output: which coalitions are evaluated, and what becomes of the values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.futures import Future, collect_all

from .. import progress
from ..errors import ArgumentError
from ..plan import coalitions as lists
from ..plan import points as draw
from ..plan.coalitions import Shared
from ..plan.features import Features, of_mask
from ..plan.spec import Ablate, Call, Orders, Permute, Sampled, Slide
from ..settings import positive_int
from .batch import Tensors
from .game import Game
from .inside import at_layer
from .surrogate import explain

if TYPE_CHECKING:
    from .run import Job

# Coalitions of so many features in all, and so many rows, are made at once.
_MOST_BITS, _MOST_ROWS = 2**23, 2**18
# Exact values of so many features are 2^features evaluations.
_MANY, _TOO_MANY = 16, 30


@dataclass(slots=True)
class Opened:
    """A call that is ready to run: which coalitions of what, and how scores are built from those of features.

    rows: whole batches of coalitions start to stop, where a user's function makes them.
    """

    game: Game
    shared: Shared
    rows: Callable[[int, int], Tensors] | None
    build: Callable[[Tensor, torch.Size], Any]


def perturb(job: Job, call: Call) -> Any:
    """The attributions of one call, in the form of its inputs or of what its layer holds."""
    game = _game(job, call)
    if isinstance(call.plan.points, Sampled):
        progress.expect(call.plan.points.n_samples * game.examples)
        return explain(call, game)
    opened = _open(job, call, game)
    shared, rows = opened.shared, opened.rows
    progress.expect(shared.count * game.examples)
    for start, stop in _cuts(game, shared):
        part = shared.part(start, stop)
        if rows is None:
            values = game.values(part, shared.repeats, shared.shuffled(start, stop))
        else:
            values = game.grid(len(part), partial(_behind, rows, start))
        if start == 0:  # the inputs were evaluated with the first part
            shared.begin(game.full.reshape(-1))
        shared.add(values.reshape(len(part), -1), start, part)
    if shared.count == 0:
        shared.begin(game.full.reshape(-1))
    return opened.build(shared.result(), game.outputs)


def _cuts(game: Game, shared: Shared) -> Iterator[tuple[int, int]]:
    """Parts of many coalitions, but where rows are mixed parts of one forward each."""
    if not game.apart:
        return shared.cuts(game.per_eval)
    most = min(_MOST_BITS // max(1, game.features.count), _MOST_ROWS // game.examples)
    return Shared.cuts(shared, max(1, most // game.per_eval) * game.per_eval)


def perturb_future(job: Job, call: Call) -> Future[Any]:
    """As perturb, of a model that returns futures: all forwards are started before the first is waited for."""
    game = _game(job, call)
    opened = _open(job, call, game)
    shared, rows = opened.shared, opened.rows
    cuts = list(shared.cuts(game.per_eval))
    progress.expect(shared.count * game.examples)
    asked = [game.ask(game.inputs(), None)]
    for start, stop in cuts:
        if rows is None:
            batch = game.tiled(shared.part(start, stop), shared.shuffled(start, stop))
        else:
            batch = rows(start, stop)
        asked.append(game.ask(batch, game.repeated(stop - start)))
        progress.advance((stop - start) * game.examples)

    def fold(answers: Future[list[Future[Tensor]]]) -> Any:
        with torch.no_grad():
            full, *values = [answer.value() for answer in answers.value()]
            shared.begin(full.reshape(-1))
            for (start, stop), value in zip(cuts, values, strict=True):
                shared.add(
                    game.by_coalition(value, stop - start, full).reshape(stop - start, -1),
                    start,
                    shared.part(start, stop),
                )
            return opened.build(shared.result(), full.shape)

    return collect_all(asked).then(fold)


def _game(job: Job, call: Call) -> Game:
    per_eval = positive_int("perturbations_per_eval", call.perturbations_per_eval)
    model, arguments = job.model, job.arguments
    if job.stepper.site is not None:
        model, arguments = at_layer(job, call)
    name = "feature_mask" if job.stepper.site is None else "layer_mask"
    features = of_mask(call.feature_mask, arguments.inputs, name)
    shuffles = isinstance(call.plan.points, Permute)
    return Game(call.plan, model, arguments, features, job.settings, per_eval, shuffles)


def _open(job: Job, call: Call, game: Game) -> Opened:
    points, arguments, rows = call.plan.points, game.arguments, None
    device = arguments.device
    shared: Shared
    if isinstance(points, Permute):
        drawn = None
        sizes = [0 if x is None else len(x) for x in arguments.inputs]
        still = _still(game, points.least)
        if still.any():
            got = f"inputs: got an input of fewer than {points.least} rows"
            text = f"{got}; its features cannot be shuffled among examples and score zero"
            warnings.warn(text, UserWarning, stacklevel=2)
        if points.function is None:
            drawn = draw.shuffles(game.features, sizes, game.per_eval, still)
        else:
            rows = _shuffled_by(points.function, game, still)
        shared = lists.Alone(game.features.count, device, still, drawn)
    elif isinstance(points, Slide):
        shared = lists.Windows(points, [x for x in arguments.inputs if x is not None])
        game.features = shared.features
    elif isinstance(points, Orders):
        shared = _shapley(points, game.features, device)
    else:
        assert isinstance(points, Ablate)
        shared = lists.Alone(game.features.count, device, _still(game, points.least))
    return Opened(game, shared, rows, partial(_built, job, game, isinstance(points, Orders)))


def _still(game: Game, least: int) -> Tensor:
    """Features that score zero, as an input of fewer rows than least has elements of them: bool [count]."""
    still = torch.zeros(game.features.count, dtype=torch.bool)
    for i, x in enumerate(game.arguments.inputs):
        if x is not None and len(x) < least:
            still |= game.features.held_by(i).cpu()
    return still


def _shapley(points: Orders, features: Features, device: torch.device) -> Shared:
    if points.n_samples is not None:
        return lists.Joining(draw.orders(features, points.n_samples, points.antithetic).to(device))
    count = features.count
    if count > _TOO_MANY:
        raise ArgumentError(
            f"feature_mask: got {count} features; expected at most {_TOO_MANY}, as exact values are 2^{count} "
            "evaluations (ShapleyValueSampling estimates them)"
        )
    if count >= _MANY:
        text = f"exact values of {count} features are 2^{count} evaluations; ShapleyValueSampling estimates them"
        warnings.warn(text, UserWarning, stacklevel=2)
    return lists.Everything(count, device)


def _shuffled_by(function: Callable[..., Any], game: Game, still: Tensor) -> Callable[[int, int], Tensors]:
    """Rows of features start to stop, shuffled by a user's function of an input and a feature's mask, unless still."""
    inputs, features = game.arguments.inputs, game.features

    def rows(start: int, stop: int) -> Tensors:
        found = [[x] * (stop - start) for x in inputs]
        for i, j in draw.shuffled(features, len(inputs), game.per_eval, still, start, stop):
            x, ids = inputs[i], features.ids[i]
            if x is not None and ids is not None and len(x) > 1:
                found[i][j - start] = _as_rows(function(x.clone(), ids == j), x)
        return tuple([None if each[0] is None else torch.cat([x for x in each if x is not None]) for each in found])

    return rows


def _as_rows(returned: Any, x: Tensor) -> Tensor:
    if not isinstance(returned, Tensor) or returned.shape != x.shape:
        got = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise ArgumentError(f"perm_func: returned {got}; expected a tensor of shape {tuple(x.shape)}")
    return returned.to(x.dtype)


def _behind(rows: Callable[[int, int], Tensors], first: int, start: int, stop: int) -> Tensors:
    return rows(first + start, first + stop)


def _built(job: Job, game: Game, joint: bool, found: Tensor, outputs: torch.Size) -> Any:
    """Scores [outputs, features] in the form of the inputs, or of what a layer holds.

    joint: the output's dimensions stay in front, and are not made one.
    """
    scores = game.features.spread(found.view(*(outputs or (1,)), game.features.count))
    if not joint:
        scores = tuple([_one_row_each(s, x) for s, x in zip(scores, game.arguments.inputs, strict=True)])
    if job.stepper.site is not None:
        return job.stepper.site.build(scores)
    return scores[0] if job.arguments.single else scores


def _one_row_each(scores: Tensor | None, x: Tensor | None) -> Tensor | None:
    """Scores [*outputs, ...] of an input as [outputs, ...]; zero if it is empty, whoever shares its features."""
    if scores is None or x is None:
        return None
    flat = scores.flatten(0, scores.dim() - x.dim())
    return flat if x.numel() else torch.zeros_like(flat)
