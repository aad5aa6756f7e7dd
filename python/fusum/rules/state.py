"""Which rule is on: for one thread, during one forward of one model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .tape import Tape

# A spare key above autograd: an operator that a thread calls while the key is on comes to us first.
KEY_NAME = "TESTING_ONLY_GenericMode"
_KEY = torch._C._dispatch_key_parse(KEY_NAME)
KEYS = torch._C.DispatchKeySet(_KEY)

# handler(the pass, the operator, its arguments): the operator's value under the rule.
Handler = Callable[["Pass", Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(slots=True)
class Pass:
    """One forward under a rule.

    table: what to do with an operator. rows: rows of the model's inputs. tape: what the baselines left, for rules that
    compare with baselines; recording: this forward is the baselines'. error: what a handler raised.
    """

    table: Any
    rule: Any
    rows: int
    tape: Tape | None = None
    recording: bool = False
    error: Exception | None = None


class _State(threading.local):
    current: Pass | None = None


state = _State()


def varies(a: Any) -> bool:
    """Whether an operand depends on the explained tensors: parameters do not require gradients while a rule is on."""
    return isinstance(a, Tensor) and a.requires_grad


def below() -> Any:
    """A context in which operators go to autograd directly."""
    return torch._C._ExcludeDispatchKeyGuard(KEYS)


class on:
    """A context in which the calling thread's operators follow a pass's rule; no pass: their own."""

    __slots__ = ("_guard", "_outer", "_pass")

    def __init__(self, what: Pass | None) -> None:
        self._pass = what
        self._guard: Any = None

    def __enter__(self) -> None:
        self._outer, state.current = state.current, self._pass
        if ops.compiled is not None:
            self._guard = ops.compiled.On()
            self._guard.enter(_native(self._pass))
            return
        included = torch._C._dispatch_tls_local_include_set()
        excluded = torch._C._dispatch_tls_local_exclude_set()
        sets = (included - KEYS, excluded | KEYS) if self._pass is None else (included | KEYS, excluded - KEYS)
        self._guard = torch._C._ForceDispatchKeyGuard(*sets)
        self._guard.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if ops.compiled is not None:
            self._guard.leave()
        else:
            self._guard.__exit__(kind, error, trace)
        state.current = self._outer
        if self._pass is None or (error is not None and not isinstance(error, Exception)):
            return
        own = self._pass.error or (self._pass.tape.failure() if self._pass.tape is not None else None)
        if own is not None:
            raise own from None


def _native(running: Pass | None) -> Any:
    """The compiled rules' part of a pass."""
    if running is None:
        return None
    tape = None if running.tape is None else running.tape.native
    return ops.compiled.Pass(running.table.native(), tape, running.recording, getattr(running.rule, "eps", 0.0))
