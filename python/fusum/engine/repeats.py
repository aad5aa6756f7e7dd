"""Which coalitions are the same as others, or change nothing: what they leave out says it, and what that differs in."""

from __future__ import annotations

from functools import cached_property, lru_cache
from random import Random

import torch
from torch import Tensor

from ..plan.arguments import Arguments
from ..plan.features import Features

# Numbers that tell coalitions apart must stay exact in float64.
_EXACT_BITS = 52
# Spreads the bits of the first of two numbers over 64.
_ODD = 0x1E3779B97F4A7C15
# Rows whose coalitions and examples are kept for further calls.
_FEW = 2**14


class Repeats:
    """Tells the coalitions of one call's features apart."""

    def __init__(self, arguments: Arguments, features: Features) -> None:
        self._arguments, self._features = arguments, features

    @property
    def all_differ(self) -> bool:
        """Whether every feature of every example differs from its baseline."""
        return bool(self._differs.all())

    def keys(self, coalitions: Tensor) -> Tensor:
        """Equal numbers for coalitions that mean the same, 0 where they change nothing: [c, 1 or examples]."""
        weights = self._weights
        sums = (~coalitions).double() @ weights.transpose(0, 1).flatten(1)
        return _whole(sums.view(len(coalitions), len(weights), -1))

    def own_keys(self, coalitions: Tensor, start: int) -> Tensor:
        """The same for coalitions bool [b, n, features] of the examples start to start + b: [b, n]."""
        weights = self._weights
        mine = weights if len(weights) == 1 else weights[start : start + len(coalitions)]
        return _whole((~coalitions).double() @ mine)

    @cached_property
    def _weights(self) -> Tensor:
        """Numbers [1 or examples, features, k] that sum, over absent features, to what tells coalitions apart.

        Features whose elements are all as in the baseline have 0: it is nothing that they are absent.
        """
        differs = _rows_once(self._differs).double()[:, :, None]
        m = self._features.count
        if m <= _EXACT_BITS - self._arguments.examples.bit_length():
            numbers = 2.0 ** torch.arange(m, dtype=torch.float64)[:, None]
        else:
            random = Random(0)  # not one of the generators that methods and models draw from
            most = 2 ** (_EXACT_BITS - m.bit_length())
            numbers = torch.tensor([[random.randint(1, most) for _ in range(2)] for _ in range(m)]).double()
        return differs * numbers.to(differs.device)

    @cached_property
    def _differs(self) -> Tensor:
        """Which features differ from their baselines in any element: bool [examples, features]."""
        n = self._arguments.examples
        found: Tensor | None = None
        for x, b, ids in zip(self._arguments.inputs, self._arguments.baselines, self._features.ids, strict=True):
            if x is None or b is None or ids is None or x.numel() == 0:
                continue
            changed = (x != b.like_rows()).reshape(n, -1)
            if self._features.in_order and changed.shape[1] == self._features.count:
                return changed  # this input's elements are all features there are, in their order
            if found is None:
                found = torch.zeros(n, self._features.count, dtype=torch.int32, device=changed.device)
            index = ids.reshape(len(ids), -1).long().expand(n, -1)
            found.scatter_reduce_(1, index, changed.int(), "amax")
        return torch.zeros(1, self._features.count) > 0 if found is None else found > 0


def distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each key but 0, and at which of those each key is; behind them all where it is 0."""
    found, place = torch.unique(keys, return_inverse=True)
    first = torch.empty_like(found).scatter_(0, place, torch.arange(len(keys), device=keys.device))
    wanted = found != 0
    at = torch.where(wanted, wanted.cumsum(0) - 1, int(wanted.sum()))
    return first[wanted], at[place]


def pairs(count: int, examples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The coalition and the example of all pairs, int64 [count * examples] each, one coalition's after the other's."""
    make = _few_pairs if count * examples <= _FEW else _pairs
    return make(count, examples, device)


def _pairs(count: int, examples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        which, everyone = torch.arange(count, device=device), torch.arange(examples, device=device)
        return which.repeat_interleave(examples), everyone.expand(count, examples).reshape(-1)


# Where the model is small, too, they take as long as it does.
_few_pairs = lru_cache(maxsize=16)(_pairs)


def _whole(sums: Tensor) -> Tensor:
    """One integer for the one or two last numbers."""
    whole = sums.long()
    return whole[..., 0] if whole.shape[-1] == 1 else whole[..., 0] * _ODD + whole[..., 1]


def _rows_once(differs: Tensor) -> Tensor:
    """One row where all are the same."""
    return differs[:1] if bool((differs == differs[:1]).all()) else differs
