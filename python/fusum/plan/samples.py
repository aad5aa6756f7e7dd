"""Random coalitions of features, to whose values models are fitted; draws of the default kinds follow captum's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]

# So many coalitions are not numbered.
_TOO_MANY = 2**62
SAMPLINGS = ("kernel", "paired", "leverage")


def checked_sampling(sampling: object, n_samples: int) -> str:
    """sampling, or an error that names the argument at fault."""
    if not isinstance(sampling, str) or sampling not in SAMPLINGS:
        raise ArgumentError(f"sampling: got {sampling!r}; expected one of {list(SAMPLINGS)}")
    if sampling != "kernel" and n_samples < 2:
        raise ArgumentError(f'n_samples: got {n_samples}; expected at least 2, as sampling="{sampling}" draws pairs')
    return sampling


def own(draw: Callable[[int, int], Tensor], examples: int, count: int, features: int) -> Tensor:
    """count draws for each of the examples: bool [examples, count, features]."""
    found = []
    for _ in range(examples):
        found.append(draw(count, features))
        after_fit(features)
    return torch.stack(found)


def after_fit(features: int) -> None:
    """Draw what captum draws to fit one example: a DataLoader's seed, and the weights that nn.Linear starts with."""
    torch.empty((), dtype=torch.int64).random_()
    torch.empty(features + 1).uniform_()


def fair(count: int, features: int) -> Tensor:
    """Each feature is present or not with equal chance: bool [count, features]."""
    # The chance is of the default dtype, as in captum: the stream of numbers depends on it.
    return torch.empty(count, features, dtype=torch.bool).bernoulli_(torch.full((), 0.5))


def kernel(count: int, features: int) -> Tensor:
    """Coalitions as likely as the Shapley kernel weighs them: bool [count, features]; of one feature there are none."""
    if features == 1:
        return torch.empty(0, 1, dtype=torch.bool)
    return ops.draw_coalitions(_sizes(features), count)


@lru_cache(maxsize=128)
def _sizes(features: int) -> Tensor:
    """How likely a coalition of the Shapley kernel has 0, 1, ... features: float32 [features], as in captum."""
    with torch.inference_mode(False):
        sizes = torch.arange(features, dtype=torch.float)
        likely = torch.tensor(features - 1) / (sizes * (features - sizes))
        likely[0] = 0.0
        return likely / likely.sum(-1, keepdim=True)


def pairs(n_samples: int, features: int, sampling: str) -> tuple[Tensor, Tensor]:
    """Coalitions, no two alike, each followed by its complement, and their weights: bool [n, features], float64 [n].

    Sizes are as likely as the Shapley kernel weighs them ("paired"), or all alike ("leverage", Musco and Witter,
    2025); weights make up for that. Where n_samples allows for every coalition, there is every one.

    Arguments:
        n_samples: at least 2; of an odd number the last is not drawn.
    """
    if features == 1:
        return torch.empty(0, 1, dtype=torch.bool), torch.empty(0, dtype=torch.float64)
    sizes = _sizes_of_pairs(n_samples // 2, features, sampling)
    # Of each size its mean, rounded up or down by chance, so that the sum is always the same.
    edges = np.floor(sizes.edges + torch.rand(()).item()).astype(np.int64)
    counts = np.minimum(np.diff(edges, prepend=0), sizes.most)
    drawn = _subsets(features, counts, sizes.most)
    both = np.stack([drawn, ~drawn], 1).reshape(-1, features)
    return torch.from_numpy(both), torch.from_numpy(np.repeat(sizes.weights, 2 * counts))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Pairs whose smaller coalition has 1, 2, ... features, and their weights.

    most: how many there are, or _TOO_MANY. edges: sums of how many are drawn, on average.
    """

    most: Array
    edges: Array
    weights: Array


@lru_cache(maxsize=128)
def _sizes_of_pairs(count: int, features: int, sampling: str) -> _Sizes:
    """How count pairs are to be split among sizes."""
    sizes, most = np.arange(1, features // 2 + 1), _pairs_there_are(features)
    mass, halves = 1 / (sizes * (features - sizes)), np.where(2 * sizes == features, 0.5, 1.0)
    expected = _filled(count, mass * halves if sampling == "paired" else halves, most)
    return _Sizes(most, expected.cumsum(), mass * halves / expected)


def _pairs_there_are(features: int) -> Array:
    found: list[int] = []
    for size in range(1, features // 2 + 1):
        there_are = comb(features, size) // (2 if 2 * size == features else 1)
        if there_are >= _TOO_MANY:
            break
        found.append(there_are)
    return np.array(found + [_TOO_MANY] * (features // 2 - len(found)))


def _filled(total: int, shares: Array, most: Array) -> Array:
    """total split by shares, none above its most: what does not fit goes to the others."""
    if total >= most.sum(dtype=np.float64):
        return most.astype(np.float64)
    full = np.zeros(len(most), dtype=bool)
    while True:
        found = np.where(full, most, (total - most[full].sum()) * shares / shares[~full].sum())
        over = found > most
        if not over.any():
            return found
        full |= over


def _subsets(features: int, counts: Array, most: Array) -> Array:
    """Subsets, no two alike, counts[k - 1] of each size k, of which there are most[k - 1]: bool [n, features]."""
    sizes = np.repeat(np.arange(1, len(counts) + 1), counts)
    numbered = zip(counts[most < _TOO_MANY].tolist(), most[most < _TOO_MANY].tolist(), strict=True)
    ranks = np.concatenate([_distinct(*each) for each in numbered])
    drawn = np.zeros((len(sizes), features), dtype=bool)
    _fill(drawn, sizes[: len(ranks)], ranks)
    if len(ranks) < len(sizes):  # two of so many are never alike
        keys = torch.rand(len(sizes) - len(ranks), features).numpy()
        drawn[len(ranks) :] = keys.argsort(1).argsort(1) < sizes[len(ranks) :, None]
    return drawn


def _distinct(count: int, most: int) -> Array:
    """count different numbers from 0 to most - 1."""
    if most <= 4 * count:
        return torch.randperm(most).numpy()[:count]
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        found = np.union1d(found, torch.randint(most, (count - len(found),)).numpy())
    return found


def _fill(drawn: Array, sizes: Array, ranks: Array) -> None:
    """Fill in subsets of ascending sizes, by their places in a list of all of a size: first those without the last."""
    ways = _ways(drawn.shape[1], int(sizes[-1]) if len(sizes) else 0)
    for k in range(len(ways) - 1, 0, -1):
        start = np.searchsorted(sizes, k)
        last = np.searchsorted(ways[k], ranks[start:], side="right") - 1
        drawn[np.arange(start, len(ranks)), last] = True
        ranks[start:] -= ways[k][last]


@lru_cache(maxsize=128)
def _ways(features: int, largest: int) -> list[Array]:
    """ways[k][i]: how many subsets of size k the first i features have."""
    ways = [np.ones(features, dtype=np.int64)]
    for _ in range(largest):
        ways.append(ways[-1].cumsum() - ways[-1])
    return ways
