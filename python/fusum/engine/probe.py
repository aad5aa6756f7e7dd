"""What one forward does where it comes by the layers that are looked at: watches, takes leaves, or puts values in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..rules.state import below
from ..rules.turn import is_ruled
from .mode import QuickMode
from .trees import leaves


class Stop(BaseException):
    """Nothing more of this forward is needed. Not an Exception: a model may catch those."""


class Mode(Enum):
    """WATCH: keep what a layer holds. LEAVES: keep it as leaves that the rest depends on. GIVE: put values in."""

    WATCH = "watch"
    LEAVES = "leaves"
    GIVE = "give"


@dataclass(frozen=True, slots=True)
class Rows:
    """Where a tensor inside a model has its rows: along dimension dim, group of them for each example."""

    dim: int
    group: int

    @staticmethod
    def of(shape: torch.Size, rows: int) -> Rows | None:
        """Told by the shape of a tensor for so many examples, where that leaves no doubt."""
        return Rows(0, 1) if [d for d, size in enumerate(shape) if size == rows] == [0] else None

    @staticmethod
    def between(shape: torch.Size, other: torch.Size, rows: int, others: int) -> Rows | None:
        """Told by the shapes of a tensor for two numbers of examples; one row for all counts as one for each."""
        if len(shape) == len(other) > 0 and shape[0] == 1 < rows and shape[1:] == other[1:]:
            return Rows(0, 1)
        changed = [d for d, (a, b) in enumerate(zip(shape, other, strict=False)) if a != b]
        if len(shape) != len(other) or len(changed) != 1:
            return None
        dim, size = changed[0], shape[changed[0]]
        if size % rows or other[dim] != size // rows * others or (dim and size != rows):
            return None
        return Rows(dim, size // rows)

    @staticmethod
    def likely(shape: torch.Size, rows: int) -> Rows | None:
        """Told by the shape of a tensor as well as may be."""
        along = [d for d, size in enumerate(shape) if size == rows]
        if along:
            return Rows(along[0], 1)
        return Rows(0, shape[0] // rows) if len(shape) and shape[0] % rows == 0 else None

    def fits(self, shape: torch.Size, rows: int) -> bool:
        """Whether a tensor of this shape may hold so many examples in this way."""
        return len(shape) > self.dim and shape[self.dim] == rows * self.group

    def first(self, t: Tensor, offset: int = 0) -> Tensor:
        """The tensor with its examples first, behind offset other dimensions: [examples, ...]."""
        if self.group > 1:
            return t.unflatten(offset, (-1, self.group))  # type: ignore[no-any-return]
        return t if self.dim == 0 else t.movedim(self.dim + offset, offset)

    def back(self, t: Tensor) -> Tensor:
        """The tensor as the layer holds it; contiguous, as what follows the layer may view it."""
        if self.group > 1:
            return t.flatten(0, 1)
        return t.movedim(0, self.dim).contiguous() if self.dim else t


class Pair:
    """What a layer held, and what the model went on with in its place; no other tensor of the model changed with it.

    rewritten: the layer may have written over what it took, and return what others know. alone: no other may read it.
    """

    __slots__ = ("_alone", "_rewritten", "_versions", "given", "held")

    def __init__(self, held: Tensor, given: Tensor, rewritten: bool, alone: bool) -> None:
        self.held, self.given, self._versions = held, given, (held._version, given._version)
        self._rewritten, self._alone = rewritten, alone

    @property
    def is_doubtful(self) -> bool:
        """Whether it matters who else reads what the layer held, as when something wrote to it, or to the other."""
        return self._alone or self._rewritten or (self.held._version, self.given._version) != self._versions

    def is_torn_by(self, t: Tensor) -> bool:
        """Whether who reads t should see what was written to the other one of both, or not read it at all."""
        held, given = self._versions
        behind = self._rewritten or self.given._version != given
        return (
            (behind and _overlap(t, self.held))
            or (self.held._version != held and _overlap(t, self.given))
            or (self._alone and t.is_set_to(self.held))
        )


class Readers(QuickMode):
    """A context that finds out whether a forward reads one of a pair where it should see writes to the other."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pairs, self.torn = pairs, False

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns):  # no view
            self.read(leaves((args, kwargs), Tensor))
        return op(*args, **(kwargs or {}))

    def read(self, tensors: Iterable[Tensor]) -> None:
        """Something reads tensors."""
        self.torn = self.torn or any(pair.is_torn_by(t) for t in tensors for pair in self.pairs)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether tensors have elements in common."""
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return a is b
    memory = a.untyped_storage()
    if memory._cdata != b.untyped_storage()._cdata or not a.numel() or not b.numel():
        return False
    if a.dtype != b.dtype:
        return True
    touched = torch.zeros(memory.nbytes() // a.element_size(), dtype=torch.bool)
    touched.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(touched.as_strided(b.shape, b.stride(), b.storage_offset()).any())


class Probe:
    """One forward's dealings with layers 0 to n - 1; visits: (layer, its tensors) of each of their calls, in order.

    values: for each layer, the tensors of each call that GIVE puts in. of_input: layers are looked at before they run.
    own: tensors of the model. copies: whether the model goes on with copies; None: where they depend on what is kept.
    rows: of the model's arguments; a tensor of one row for all of them is kept as so many. firsts: layers that are
    known to have their rows in the first dimension. last: stop after so many visits, or None. pairs: what was held and
    what was given, if that is asked for.
    """

    __slots__ = (
        *("_calls", "_copies", "_given", "_of_input", "_own", "_rows", "_saving"),
        *("firsts", "last", "mode", "pairs", "visits"),
    )

    def __init__(
        self,
        mode: Mode,
        values: Sequence[Sequence[list[Tensor]]] = (),
        of_input: bool = False,
        own: Callable[[], Iterable[Tensor | None]] = tuple,
        copies: bool | None = None,
        rows: int = 1,
    ) -> None:
        self.mode, self._given, self._of_input, self._own, self._copies = mode, values, of_input, own, copies
        self._rows, self.firsts, self._saving = rows, frozenset[int](), _saving()
        self.last: int | None = None
        self.pairs: list[Pair] | None = None
        self._calls = [0] * len(values)
        self.visits: list[tuple[int, list[Tensor]]] = []

    def visit(self, layer: int, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors that the model goes on with, in place of those that a call of a layer holds."""
        if self.mode is Mode.GIVE:
            return self.give(layer)
        with below():
            last = self.last == len(self.visits) + 1
            spread = [self._spread(t, layer) for t in tensors]
            kept = [self._leaf(t) if self.mode is Mode.LEAVES else self._seen(t, last) for t in spread]
            self.visits.append((layer, kept))
            if last:
                raise Stop
            # What follows may write over what it gets; what it does not depend on differentiably stays its own.
            return self._paired(
                tensors, [k.clone() if self._copied(k) else t for k, t in zip(kept, tensors, strict=True)]
            )

    def _spread(self, t: Tensor, layer: int) -> Tensor:
        """A tensor of one row for all examples with a row for each: so each has scores of its own."""
        shared = t.dim() > 0 and t.shape[0] == 1 < self._rows
        if shared and (layer in self.firsts or self._rows not in t.shape):
            return t.expand(self._rows, *t.shape[1:])
        return t

    def _copied(self, kept: Tensor) -> bool:
        return kept.requires_grad if self._copies is None else self._copies

    def _paired(self, held: Sequence[Tensor], given: list[Tensor]) -> list[Tensor]:
        if self.pairs is not None:
            for h, g in zip(held, given, strict=True):
                alone = self._of_input and is_ruled() and h._is_view() and h.is_floating_point()
                self.pairs.append(Pair(h, g, not self._of_input and h._version > 0, alone))
        return given

    def _seen(self, t: Tensor, last: bool) -> Tensor:
        """t as what it is now: others may write over it, unless they get a copy."""
        return t if last or (self._of_input and self._copied(t)) else t.clone()

    def _leaf(self, t: Tensor) -> Tensor:
        """t as what gradients are taken of: itself where it depends on an earlier one.

        A layer's input may have other readers. They depend on it, too, unless it lasts longer than this forward.
        """
        if self.visits and t.requires_grad:
            return t
        torch._C._set_grad_enabled(True)  # what runs before the first layer is not gone back through
        if not self._of_input or t.requires_grad or isinstance(t, nn.Parameter) or any(t is own for own in self._own()):
            t = t.detach().clone()
        elif is_ruled() and t.is_floating_point() and not t._is_view():
            leaf = t.detach().clone().requires_grad_()
            t.copy_(leaf)  # a rule takes leaves that its operators read for parameters
            return leaf
        return t.requires_grad_() if t.is_floating_point() else t

    def give(self, layer: int) -> list[Tensor]:
        """The tensors of the next call of a layer."""
        if _saving() != self._saving:
            raise ArgumentError(
                "layer: runs inside torch.utils.checkpoint, which would run it again without the values put in there; "
                "expected a model without checkpoints"
            )
        values = self._given[layer][self._calls[layer]]
        self._calls[layer] += 1
        if any(t.requires_grad for t in values):
            torch._C._set_grad_enabled(True)  # a model may have turned gradients off up to here
        with below():
            given = [t.clone() for t in values]  # an operator cannot write over leaves
        return self._paired(given, given)


def _saving() -> Any:
    """What the calling thread's operators hand the tensors to that they save for the way back."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


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
