"""What one forward does where it comes by the layers that are looked at: watches, takes leaves, or puts values in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

import torch
from torch import Tensor

from ..rules.state import below


class Stop(BaseException):
    """Nothing more of this forward is needed. Not an Exception: a model may catch those."""


class Mode(Enum):
    """WATCH: keep what a layer holds. LEAVES: keep it as leaves that the rest depends on. GIVE: put values in."""

    WATCH = "watch"
    LEAVES = "leaves"
    GIVE = "give"


class Probe:
    """One forward's dealings with layers 0 to n - 1; visits: (layer, its tensors) of each of their calls, in order.

    values: for each layer, the tensors of each call that GIVE puts in. of_input: layers are looked at before they run.
    own: tensors of the model. last: stop after so many visits, or None.
    """

    __slots__ = ("_calls", "_given", "_of_input", "_own", "last", "mode", "visits")

    def __init__(
        self,
        mode: Mode,
        values: Sequence[Sequence[list[Tensor]]] = (),
        of_input: bool = False,
        own: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self.mode, self._given, self._of_input, self._own = mode, values, of_input, own
        self.last: int | None = None
        self._calls = [0] * len(values)
        self.visits: list[tuple[int, list[Tensor]]] = []

    def visit(self, layer: int, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors that the model goes on with, in place of those that a call of a layer holds."""
        if self.mode is Mode.GIVE:
            return self.give(layer)
        with below():
            last = self.last == len(self.visits) + 1
            kept = [self._leaf(t) if self.mode is Mode.LEAVES else self._seen(t, last) for t in tensors]
            self.visits.append((layer, kept))
            if last:
                raise Stop
            # What follows may write over what it gets; what it does not depend on differentiably stays its own.
            return [k.clone() if k.requires_grad else t for k, t in zip(kept, tensors, strict=True)]

    def _seen(self, t: Tensor, last: bool) -> Tensor:
        """t as what it is now: others may write over it."""
        return t if last or (self._of_input and t.requires_grad) else t.clone()

    def _leaf(self, t: Tensor) -> Tensor:
        """t as what gradients are taken of: itself where it depends on an earlier one.

        A layer's input may have other readers. They depend on it, too, unless it lasts longer than this forward.
        """
        if self.visits and t.requires_grad:
            return t
        torch._C._set_grad_enabled(True)  # what runs before the first layer is not gone back through
        if not self._of_input or t.requires_grad or any(t is own for own in self._own()):
            t = t.detach().clone()
        return t.requires_grad_() if t.is_floating_point() else t

    def give(self, layer: int) -> list[Tensor]:
        """The tensors of the next call of a layer."""
        values = self._given[layer][self._calls[layer]]
        self._calls[layer] += 1
        if any(t.requires_grad for t in values):
            torch._C._set_grad_enabled(True)  # a model may have turned gradients off up to here
        with below():
            return [t.clone() for t in values]  # an operator cannot write over leaves


class _State(threading.local):
    current: Probe | None = None


_state = _State()


class probing:
    """A context in which the calling thread's forward deals with layers by this probe."""

    __slots__ = ("_outer", "_probe")

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    def __enter__(self) -> None:
        self._outer, _state.current = _state.current, self._probe

    def __exit__(self, *error: object) -> None:
        _state.current = self._outer


def is_current(probe: Probe) -> bool:
    """Whether the calling thread's forward deals with layers by this probe."""
    return _state.current is probe


def current() -> Probe:
    """The probe of the calling thread's forward."""
    assert _state.current is not None
    return _state.current
