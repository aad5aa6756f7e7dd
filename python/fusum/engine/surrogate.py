"""Linear models fitted to a game: which coalitions they are fitted to, with what weights, and what scores they give."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..plan import samples
from ..plan.coalitions import Everything
from ..plan.spec import Call
from .fits import lasso, shapley
from .functions import Draws, checked_row, fitted, weight
from .game import Game
from .lime_base import Based
from .lime_base import explain as explain_by_functions
from .similarity import ExpKernel
from .space import Space


@dataclass(frozen=True, slots=True)
class Shapley:
    """Least squares whose coefficients are Shapley values; sampling: how coalitions are drawn, of plan.samples."""

    sampling: str
    reason: ClassVar[None] = None

    def scores(self, space: Space, n_samples: int) -> Tensor:
        """Scores float64 [groups, features]."""
        if self.sampling != "kernel":
            return self._shared(space, n_samples)
        found = []
        for start, stop in space.blocks(n_samples):
            drawn = samples.own(samples.kernel, stop - start, max(0, n_samples - 2), space.size).to(space.device)
            with_empty = torch.cat([drawn.new_zeros(stop - start, 1, space.size), drawn], 1)
            values = space.values(with_empty, start).double()
            changes = torch.cat([values[:, 1:], space.full[start:stop, None]], 1) - values[:, :1]
            found.append(shapley(drawn, changes[:, :-1, None], changes[:, -1:])[:, 0])
        if n_samples > 1:
            return torch.cat(found)
        text = "n_samples: got 1, the inputs themselves, to which scores of zero are fitted; expected at least 2"
        warnings.warn(text, stacklevel=2)
        return torch.cat(found).zero_()

    def _shared(self, space: Space, n_samples: int) -> Tensor:
        """The same coalitions for all groups: each there is, or some, which one matrix is factorised for."""
        if n_samples >= 2**space.size - 2:
            every = Everything(space.size, space.device)
            coalitions = every.part(0, every.count)
            values = space.shared(coalitions)
            every.begin(space.full)
            every.add(values, 0, coalitions)
            return every.result()
        drawn, weights = samples.pairs(n_samples, space.size, self.sampling)
        drawn = drawn.to(space.device)
        values = space.shared(torch.cat([drawn.new_zeros(1, space.size), drawn])).double()
        changes = torch.cat([values[1:], space.full[None]]) - values[:1]
        return shapley(drawn[None], changes[None, :-1], changes[-1:], weights.to(space.device)[None])[0]


@dataclass(frozen=True, slots=True)
class Local:
    """A linear model of the output near the inputs; None: Lime's own model and its own draws."""

    similarity: Callable[..., Any]
    model: Any = None
    perturb: Callable[..., Any] | None = None

    @property
    def reason(self) -> str | None:
        """What is asked for one sample, or fitted to one example, at a time, in words."""
        similarity = None if isinstance(self.similarity, ExpKernel) else self.similarity
        given = {"similarity_func": similarity, "perturb_func": self.perturb, "interpretable_model": self.model}
        names = [name for name, own in given.items() if own is not None]
        return f"{' and '.join(names)} of one's own are called for one sample or example at a time" if names else None

    def scores(self, space: Space, n_samples: int) -> Tensor:
        """What the models of all groups are represented by: [groups, features], of one group as it is."""
        found = []
        for rows, weights, values in self._samples(space, n_samples):
            if self.model is None:
                found.append(lasso(rows, values, weights))
            else:
                each = [fitted(self.model, *one) for one in zip(rows, values, weights, strict=True)]
                found += each if space.groups == 1 else [x.reshape(1, -1) for x in each]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _samples(self, space: Space, n_samples: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows [b, n, features], weights [b, n] and values [b, n] of one block of groups after the other."""
        if self.model is None and self.perturb is None and isinstance(self.similarity, ExpKernel):
            for start, stop in space.blocks(n_samples):
                rows = samples.own(samples.fair, stop - start, n_samples, space.size).to(space.device)
                weights = self.similarity.weights(space.products[start:stop], space.used(rows))
                yield rows, weights, space.values(rows, start)
            return
        for i in range(space.groups):
            rows, weights = self._one(space, i, n_samples)
            if self.model is None:
                samples.after_fit(space.size)
            yield rows[None], weights[None], space.values((rows != 0)[None], i)

    def _one(self, space: Space, group: int, n_samples: int) -> tuple[Tensor, Tensor]:
        """Rows [n, features] and weights [n] of one group."""
        if not isinstance(self.similarity, ExpKernel):
            return self._called(space, group, n_samples)
        if self.perturb is None:
            rows = samples.fair(n_samples, space.size).to(space.device)
        else:
            rows, _ = self._called(space, group, n_samples)
        products = space.products[group : group + 1]
        return rows, self.similarity.weights(products, space.used(rows != 0)[None])[0]

    def _called(self, space: Space, group: int, n_samples: int) -> tuple[Tensor, Tensor]:
        """The same by functions that are asked for one sample at a time; weights of one only that is a user's."""
        inputs, kwargs = space.one(group)
        draws = Draws(self.perturb or _fair, inputs, kwargs)
        rows: list[Tensor] = []
        weights: list[Tensor] = []
        while len(rows) < n_samples:
            drawn = draws.next(len(rows))
            if drawn is None:
                break
            row = checked_row("perturb_func", drawn, space.size).to(space.device)
            rows.append(row)
            if not isinstance(self.similarity, ExpKernel):
                similarity = self.similarity(inputs, space.perturbed(group, row != 0), row, **kwargs)
                weights.append(weight(similarity, space.device))
        return torch.cat(rows), torch.cat(weights) if weights else torch.ones(len(rows), device=space.device)


def _fair(_: Any, num_interp_features: int, **kwargs: Any) -> Tensor:
    return samples.fair(1, num_interp_features).long()


@torch.no_grad()
def explain(call: Call, game: Game) -> Any:
    """The scores of one call, in the form of its inputs or one for each feature."""
    points: Any = call.plan.points
    if isinstance(points.surrogate, Based):
        return explain_by_functions(points.surrogate, call, game, points.n_samples)
    space = Space(call, game)
    return space.build(points.surrogate.scores(space, points.n_samples), points.by_input)
