"""Turns a plan's rule on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from ..plan.spec import Gradient, Guided, Relevance, Rescale, Rule
from . import deeplift, guided, relevance
from .intercept import Table
from .state import Pass, on, state
from .tape import Tape


def ruled(rule: Rule, rows: int, tape: Tape | None = None, recording: bool = False) -> AbstractContextManager[None]:
    """A context in which the calling thread's operators go back by this rule, and by no other that is on outside."""
    if isinstance(rule, Gradient):
        return on(None) if is_ruled() else nullcontext()
    return on(Pass(_table(rule), rule, rows, tape, recording))


def is_ruled() -> bool:
    """Whether the calling thread is inside a forward under a rule."""
    return state.current is not None


def _table(rule: Rule) -> Table:
    if isinstance(rule, Rescale):
        return deeplift.TABLE
    if isinstance(rule, Guided):
        return guided.TABLES[rule.deconvolution]
    assert isinstance(rule, Relevance)
    return relevance.TABLE


class Ruled:
    """A forward function under a rule, for functions that take gradients in a way of their own."""

    def __init__(self, rule: Rule, forward_func: Callable[..., Any]) -> None:
        self._rule, self._forward_func = rule, forward_func

    def __call__(self, *args: Any) -> Any:
        rows = next((len(a) for a in args if isinstance(a, Tensor) and a.dim()), 1)
        given = [a.view_as(a) if isinstance(a, Tensor) else a for a in args]
        with ruled(self._rule, rows):
            return self._forward_func(*given)
