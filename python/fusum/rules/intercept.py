"""What becomes of an operator that a thread calls while a rule is on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..settings import current
from .state import KEY_NAME, KEYS, Handler, Pass, below, state, varies
from .straight import flatten

aten: Any = torch.ops.aten


class Action(IntEnum):
    """PLAIN: as it is. PARTS: by what it is composed of. ONE: as it is if one operand varies. RULE: by its handler."""

    PLAIN = 0
    PARTS = 1
    ONE = 2
    RULE = 3
    RELU = 4


@dataclass(slots=True)
class Table:
    """What to do with each operator, by name; in-place forms follow the names without the underscore.

    plain: goes back as it is. one: does so where one operand varies. handlers: has a rule. elementwise: the rule of all
    other elementwise operators of one varying operand.
    other: the rule of any other differentiable operator, or None where those go back as they are.
    """

    plain: frozenset[str]
    handlers: Mapping[str, Handler]
    other: Handler | None
    one: frozenset[str] = frozenset()
    elementwise: Handler | None = None
    relu: int = 0  # which of the compiled rules of ReLU, or 0: what handlers say
    known: dict[Any, tuple[Action, Handler | None]] = field(default_factory=dict)
    compiled: dict[bool, Any] = field(default_factory=dict)

    def native(self) -> Any:
        """The table of the compiled rules; with another for threads that want the reference."""
        own = current().backend != "reference"
        if own not in self.compiled:
            self.compiled[own] = ops.compiled.Table(self.relu, partial(self._action, own), follow)
        return self.compiled[own]

    def _action(self, own: bool, op: Any) -> int:
        action = self.find(op)[0]
        return Action.RULE if action is Action.RELU and not own else action

    def find(self, op: Any) -> tuple[Action, Handler | None]:
        """The action for an operator, and its handler."""
        found = self.known.get(op)
        if found is None:
            found = self.known[op] = self._look(op)
        return found

    def _look(self, op: Any) -> tuple[Action, Handler | None]:
        schema = op._schema
        name = schema.name.rpartition("::")[2]
        in_place = schema.is_mutable and name.endswith("_") and not name.endswith("__")
        base = name[:-1] if in_place else name
        if base in self.plain or _is_view(schema) or torch.Tag.inplace_view in op.tags:
            return Action.PLAIN, None
        if base in self.handlers:
            handler = _in_place(base) if in_place else self.handlers[base]
            if base == "relu" and self.relu:
                return Action.RELU, handler
            return Action.ONE if base in self.one else Action.RULE, handler
        if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
            return Action.PARTS, None
        if self.other is None:
            return Action.PLAIN, None
        if in_place:
            return Action.RULE, _in_place(base)
        if self.elementwise is not None and torch.Tag.pointwise in op.tags:
            return Action.RULE, _elementwise(self.elementwise, _differentiable(self.other))
        return Action.RULE, _differentiable(self.other)


def _is_view(schema: Any) -> bool:
    """Whether an operator returns a view of an operand."""
    aliases = [r.alias_info for r in schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def _in_place(base: str) -> Handler:
    """The rule of an in-place form: the value of the other form is written over the operand."""
    functional = getattr(aten, base)

    def handler(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with below():
            before = args[0].clone()
        y = functional(before, *args[1:], **kwargs)
        with below():
            return args[0].copy_(y)

    return handler


def _elementwise(rule: Handler, other: Handler) -> Handler:
    def handler(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        single = [varies(a) for a in args].count(True) == 1 and not any(varies(a) for a in kwargs.values())
        return (rule if single else other)(running, op, args, kwargs)

    return handler


def _differentiable(rule: Handler) -> Handler:
    """rule where the operator's value has a gradient; else the value is a constant."""

    def handler(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with below():
            y = op(*args, **kwargs)
        outputs = y if isinstance(y, (tuple, list)) else (y,)
        if not any(varies(t) for t in outputs):
            return y
        return rule(running, op, args, kwargs)

    return handler


def follow(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of an operator under the rule that is on; parameters among its operands are detached."""
    running = state.current
    if running is None:
        raise RuntimeError(f"forward_func: calls {op} in a thread of its own; expected it in the thread that explains")
    handler = running.table.find(op)[1]
    if running.error is None:
        try:
            return handler(running, op, args, kwargs)
        except Exception as error:
            # Raised when the forward is over: TorchScript's interpreter may crash on what an operator raises.
            running.error = error
    with below():
        return op(*args, **kwargs)


def _detached(a: Any) -> Any:
    """a, without gradient if it is a parameter: what the model was given is not a leaf."""
    if isinstance(a, Tensor):
        return a.detach() if a.requires_grad and a.is_leaf else a
    if isinstance(a, (list, tuple)) and any(isinstance(t, Tensor) for t in a):
        return type(a)([_detached(t) for t in a])
    return a


def _fallback(keys: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
    """Every operator that is called while the key is on, in pure Python; csrc/rules does the same."""
    running = state.current
    if running is None or torch._C._dispatch_tls_local_exclude_set().has(torch._C.DispatchKey.AutogradCPU):
        with below():
            return op(*args, **kwargs)
    with below():
        args = tuple([_detached(a) for a in args])
        kwargs = {name: _detached(a) for name, a in kwargs.items()}
    varying = [varies(a) for a in flatten(args, kwargs)[0]].count(True)
    action = running.table.find(op)[0] if varying else Action.PLAIN
    if action is Action.PARTS:
        return op.redispatch(keys - KEYS, *args, **kwargs)
    if action is Action.PLAIN or (action is Action.ONE and varying == 1):
        with below():
            return op(*args, **kwargs)
    return follow(op, *_complete(op, args, kwargs))


def _complete(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """All arguments of an operator, defaults too; by name those that must be."""
    positional, named = list(args), dict(kwargs)
    for i, argument in enumerate(op._schema.arguments):
        if argument.kwarg_only:
            named.setdefault(argument.name, argument.default_value)
        elif i >= len(positional):
            positional.append(named.pop(argument.name, argument.default_value))
    return tuple(positional), named


if ops.compiled is None:
    _library: Any = torch.library.Library("_", "IMPL")
    _library.fallback(_fallback, KEY_NAME, with_keyset=True)
