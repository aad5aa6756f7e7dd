"""LIME where every part is a user's function: samples need not be coalitions, nor of the shape of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from ..plan.spec import Call
from .batch import Tensors
from .functions import Draws, checked_row, fitted, weight
from .game import Game

# Samples are kept until so many bytes of them are evaluated.
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Based:
    """A user's functions. transform: to a row of the model's features, or from it if perturb returns one (from_row).

    kwargs: what all functions are given.
    """

    model: Any
    similarity: Callable[..., Any]
    perturb: Callable[..., Any]
    transform: Callable[..., Any]
    from_row: bool
    kwargs: dict[str, Any]
    reason: ClassVar[str] = "the functions of LimeBase are called for one sample at a time"


def explain(based: Based, call: Call, game: Game, n_samples: int) -> Tensor:
    """What represents the model that is fitted to n_samples."""
    if game.groups > 1:
        raise ArgumentError(
            f"inputs: got {game.examples} examples, for each of which forward_func returns a number; expected one "
            "example, or one number for all (Lime explains examples one by one)"
        )
    draws = Draws(based.perturb, call.inputs, based.kwargs)
    rows: list[Tensor] = []
    weights: list[Tensor] = []
    values = _Values(game)
    while len(rows) < n_samples:
        drawn = draws.next(len(rows))
        if drawn is None:
            break
        row, at = _both(based, drawn, call.inputs)
        similarity = based.similarity(call.inputs, at, row, **based.kwargs)
        rows.append(row)
        weights.append(weight(similarity, game.arguments.device))
        values.add(_tensors(at, len(game.arguments.inputs)))
    return fitted(based.model, torch.cat(rows), values.all(), torch.cat(weights))


def _both(based: Based, drawn: Any, inputs: Any) -> tuple[Tensor, Any]:
    """A sample as a row of features, and as the model takes it."""
    other = based.transform(drawn, inputs, **based.kwargs)
    if based.from_row:
        return checked_row("perturb_func", drawn), other
    return checked_row("to_interp_rep_transform", other), drawn


def _tensors(at: Any, count: int) -> tuple[Tensor, ...]:
    """A perturbed input as a tuple."""
    each = at if isinstance(at, tuple) else (at,)
    if len(each) != count or not all(isinstance(x, Tensor) and x.dim() for x in each):
        got = f"a tuple of {len(each)}" if isinstance(at, tuple) else type(at).__name__
        raise ArgumentTypeError(f"a perturbed input: got {got}; expected tensors in the form of inputs")
    return each


class _Values:
    """The output at samples, many of one shape at once where the model allows."""

    def __init__(self, game: Game) -> None:
        self._game = game
        self._kept: dict[Any, list[tuple[Tensor, ...]]] = {}  # samples by shape, and
        self._places: dict[Any, list[int]] = {}  # which each of them is
        self._found: list[tuple[list[int], Tensor]] = []
        self._count = 0

    def add(self, sample: tuple[Tensor, ...]) -> None:
        """Take one more sample."""
        form = tuple([(x.shape, x.dtype) for x in sample])
        kept = self._kept.setdefault(form, [])
        kept.append(tuple([x.clone() for x in sample]))  # a user may write the next one to the same memory
        self._places.setdefault(form, []).append(self._count)
        self._count += 1
        if len(kept) * sum(x.nbytes for x in sample) >= _MOST_BYTES:
            self._evaluate(form)

    def all(self) -> Tensor:
        """The values of all samples: [n]."""
        for form in list(self._kept):
            self._evaluate(form)
        places = torch.tensor([place for each, _ in self._found for place in each])
        values = torch.cat([values for _, values in self._found])
        return torch.empty_like(values).index_copy_(0, places.to(values.device), values)

    def _evaluate(self, form: Any) -> None:
        """The output at samples of one shape."""
        game, kept = self._game, self._kept.pop(form)

        def rows(start: int, stop: int) -> Tensors:
            return tuple([torch.cat(each) for each in zip(*kept[start:stop], strict=True)])

        if game.examples == 1 and game.apart and all(len(x) == 1 for x in kept[0]):
            first = torch.zeros(len(kept), dtype=torch.int64, device=game.arguments.device)
            out = game.evaluate(len(kept), rows, first)
        else:
            out = game.grid(len(kept), rows)
        self._found.append((self._places.pop(form), out.reshape(len(kept))))
