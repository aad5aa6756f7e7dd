"""The features of a game as linear models see them, for each example or, of one number a batch, for all together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..plan.spec import Call
from ..settings import current
from .game import Game
from .model import view
from .similarity import products

# Coalitions of so many features in all are made at once.
_MOST_BITS = 2**22
_MANY_FEATURES = 10_000


class Space:
    """groups: how many models are fitted. size: of how many features each, those that no element has included."""

    def __init__(self, call: Call, game: Game) -> None:
        self._call, self.game, self.arguments, self.features = call, game, game.arguments, game.features
        self.device = self.arguments.device
        if self.features.count == 0:
            raise ArgumentError("inputs: got no elements; expected at least one to explain")
        self._lowest = int(self.features.labels[0])
        self.size = self.features.total - self._lowest
        self._used: Tensor | None = None
        if self.size > self.features.count:
            self._used = (self.features.labels - self._lowest).to(self.device)
        self._warn()
        self.groups = game.groups

    def _warn(self) -> None:
        if self._lowest:
            text = f"feature_mask: its least number is {self._lowest}; the scores of features start with that one"
            warnings.warn(text, stacklevel=2)
        if self.size > _MANY_FEATURES:
            text = f"got {self.size} features, for which linear models take long; a feature_mask makes them fewer"
            warnings.warn(text, stacklevel=2)

    def blocks(self, n_samples: int) -> Iterator[tuple[int, int]]:
        """Groups whose coalitions are made at once, (start, stop)."""
        most = max(1, _MOST_BITS // (n_samples * self.size))
        for start in range(0, self.groups, most):
            yield start, min(start + most, self.groups)

    # Coalitions and their values.

    def used(self, coalitions: Tensor) -> Tensor:
        """Coalitions [..., size] without the features that no element has."""
        return coalitions if self._used is None else coalitions[..., self._used]

    def values(self, coalitions: Tensor, start: int) -> Tensor:
        """The output at coalitions bool [b, n, size] of the groups start to start + b: [b, n]."""
        b, n, _ = coalitions.shape
        present = self.used(coalitions)
        if self.groups == 1:
            return self.game.values(present[0]).reshape(1, n)
        if self.game.apart:
            return self.game.own(present, start).reshape(b, n)
        return torch.stack([self._alone[start + i].values(each).reshape(n) for i, each in enumerate(present)])

    def shared(self, coalitions: Tensor) -> Tensor:
        """The output at coalitions bool [n, size] that all groups share, no two alike, none full: [n, groups]."""
        if self.groups > 1 and not self.game.apart:
            return self.values(coalitions.expand(self.groups, -1, -1), 0).t()
        return self.game.values(self.used(coalitions), repeats=self._used is not None).reshape(-1, self.groups)

    @cached_property
    def full(self) -> Tensor:
        """The output at the inputs: float64 [groups]."""
        together = self.groups == 1 or self.game.apart
        every = self.game.full if together else torch.cat([game.full.flatten() for game in self._alone])
        return every.flatten().double()

    @cached_property
    def _alone(self) -> list[Game]:
        """The games of single examples: what rows that are not apart are explained by."""
        return [self._of_one(i) for i in range(self.groups)]

    def _of_one(self, i: int) -> Game:
        given, target = self.arguments, self.arguments.target
        arguments = replace(
            given,
            inputs=self._inputs(i),
            baselines=tuple([b and b.rows(i, i + 1) for b in given.baselines]),
            target=target if target.rows is None else replace(target, rows=target.rows[i : i + 1]),
            extra=tuple([a[i : i + 1] if _has_rows(a, given.examples) else a for a in given.extra]),
            examples=1,
        )
        features = replace(self.features, ids=self._ids(i))
        return Game(self._call.plan, view(self._call.forward_func), arguments, features, current(), self.game.per_eval)

    # What a user's functions are given.

    def one(self, group: int) -> tuple[Any, dict[str, Any]]:
        """Inputs and keyword arguments, as captum's, for the functions of one group."""
        labels = (self.features.labels - self._lowest).to(self.device)
        masks = tuple([None if i is None else labels[i.to(self.device).long()] for i in self._ids(group)])
        starts = tuple([None if b is None else b.item() if b.dim() == 0 else b for b in self._baselines(group)])
        every = {"baselines": starts, "feature_mask": masks}
        kwargs: dict[str, Any] = {name: self._form(of) for name, of in every.items()}
        return self._form(self._inputs(group)), kwargs | {"num_interp_features": self.size}

    def perturbed(self, group: int, coalition: Tensor) -> Any:
        """The inputs of one group at a coalition bool [1, size], in the form of the inputs."""
        present = self.used(coalition)[0]
        rows = zip(self._inputs(group), self._baselines(group), self._ids(group), strict=True)
        return self._form(
            tuple(
                [
                    None if x is None or b is None or i is None else torch.where(present[i.long()], x, b).to(x.dtype)
                    for x, b, i in rows
                ]
            )
        )

    def _form(self, each: tuple[Any, ...]) -> Any:
        return each[0] if self.arguments.single else each

    def _inputs(self, group: int) -> tuple[Tensor | None, ...]:
        return tuple([None if x is None else self._of(x, group) for x in self.arguments.inputs])

    def _baselines(self, group: int) -> tuple[Tensor | None, ...]:
        return tuple([None if b is None else self._of(b.like_rows(), group) for b in self.arguments.baselines])

    def _ids(self, group: int) -> tuple[Tensor | None, ...]:
        return tuple([None if i is None else self._of(i, group) for i in self.features.ids])

    def _of(self, rows: Tensor, group: int) -> Tensor:
        """The rows of one group: all, or one, unless there is only one for all."""
        shared = self.groups == 1 or rows.dim() == 0 or len(rows) == 1
        return rows if shared else rows[group : group + 1]

    # Scores.

    @cached_property
    def products(self) -> Tensor:
        """What similarities are sums of: float64 [groups, count, 3]."""
        return products(self.arguments, self.features, self.groups)

    def build(self, scores: Tensor, by_input: bool) -> Any:
        """Scores [groups, size], or what represents the model of one group, in the form that is wanted."""
        scores = scores.float()
        if not by_input:
            return scores
        flat = scores.detach().reshape(self.groups, -1).to(self.device)
        if flat.shape[1] < self.size:
            got = f"a representation of shape {tuple(scores.shape)}"
            raise ArgumentError(
                f"interpretable_model: got {got}; expected a number for each of {self.size} features, or "
                "return_input_shape=False"
            )
        kept = self.used(flat[:, : self.size])
        if self.groups > 1:
            return self._form(self.features.spread(kept))
        pairs = zip(self.arguments.inputs, self.features.ids, strict=True)
        return self._form(tuple([None if x is None or i is None else self._joint(kept[0], i, x) for x, i in pairs]))

    def _joint(self, scores: Tensor, ids: Tensor, x: Tensor) -> Tensor:
        """Scores [features] of the only group in the form of an input: of several examples one row for all."""
        rows = len(x) if self.arguments.examples == 1 else min(1, len(x))
        return scores[ids[:rows].long().to(scores.device)].expand(rows, *x.shape[1:])


def _has_rows(a: Any, examples: int) -> bool:
    return isinstance(a, Tensor) and a.dim() > 0 and len(a) == examples
