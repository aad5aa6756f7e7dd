"""Layers inside a model, in any format: what they hold at its rows, and the model with other values put in there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError
from ..plan.spec import Layer
from ..rules.state import below
from ..rules.turn import is_ruled
from ..settings import current
from .cpu import our_way
from .hooks import HookSites, module_of, shapes_of
from .model import Model, remember, remembers
from .modules import modules_of
from .prefix import Generators, Prefix
from .probe import Mode, Probe, Readers, Rows, probing
from .program import ProgramSites, layers_of
from .script import ScriptSites
from .support import some
from .trees import leaves


class Sites(Protocol):
    """Layers of a model in one format."""

    def run(self, args: tuple[Any, ...], mode: Mode, stop: bool) -> Any:
        """The forward on args, in which each call of a layer visits the current probe; stop: the rest is not needed."""


T = TypeVar("T")
# A context for the forward of a probe.
Around = Callable[[Probe], AbstractContextManager[None]]
# A layer's number and its tensors, call after call.
Visits = Sequence[tuple[int, list[Tensor]]]
# The tensors of each call of each layer: where each has its rows.
Form = tuple[tuple[tuple[Rows, ...], ...], ...]


@dataclass(slots=True)
class Held:
    """What layers held in a forward of rows rows: raw tensors, layer after layer, call after call; out: the output."""

    form: Form
    raw: list[Tensor]
    rows: int
    out: Any

    def first(self, tensors: Sequence[Tensor | None], offset: int = 0) -> list[Tensor | None]:
        """Tensors of raw's shapes, behind offset other dimensions, as [..., rows, ...]."""
        flat = [rows for calls in self.form for call in calls for rows in call]
        found = [
            None if t is None else rows.first(t, offset).contiguous() for rows, t in zip(flat, tensors, strict=True)
        ]
        return [t if t is None or t.shape[offset] == self.rows else t.narrow(offset, 0, self.rows) for t in found]

    @property
    def values(self) -> list[Tensor]:
        """What the layers held, [rows, ...], without graph."""
        return [t for t in self.first([t.detach() for t in self.raw]) if t is not None]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many tensors of each layer gradients may be taken of."""
        rest = iter(self.raw)
        return tuple([sum(next(rest).is_floating_point() for call in calls for _ in call) for calls in self.form])

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that gradients may be taken of."""
        return [t for t in self.raw if t.requires_grad]

    def all(self, found: Sequence[Tensor], offset: int = 0) -> list[Tensor | None]:
        """Of gradients of leaves, one for each tensor, rows first; None for those without."""
        rest = iter(found)
        return self.first([next(rest).detach() if t.requires_grad else None for t in self.raw], offset)


class Site:
    """Layers of one model, at what they return or take.

    most: how many rows the model may see at once. differentiable: gradients are taken of what the layers hold.
    replaced: the model goes on with tensors in place of those that the layers hold.
    """

    __slots__ = (
        *("_buffers", "_is_settled", "_names", "_sites"),
        *("differentiable", "form", "model", "most", "replaced", "where"),
    )

    def __init__(
        self, model: Model, where: Layer, most: int | None, differentiable: bool = True, replaced: bool = True
    ) -> None:
        self.where, self.most, self.differentiable, self.replaced = where, most, differentiable, replaced
        self._is_settled = not replaced
        self.form: Form | None = None  # once it is known
        self._names, self._sites = open_sites(model, where)
        self._buffers: list[dict[str, Tensor | None]] | None = None  # each module's, once they are wanted
        self.model = model.only(model.call, (self._names, where.of_input))

    def look(
        self,
        mode: Mode,
        inputs: Sequence[Tensor | None],
        extra: tuple[Any, ...],
        rows: int,
        stop: bool = False,
        around: Around | None = None,
    ) -> Held:
        """What the layers hold at rows of inputs, and the model's output; stop: that is not needed.

        around: a context for the forward of a probe.
        """
        given = self.model.given(tuple(inputs), extra, rows)
        held = self.watch(given, max(rows, self.model.low), mode, stop, around)
        held.rows = rows
        if not stop and self.differentiable:
            held.out = self.model.result(held.out, rows)
        return held

    def watch(self, args: tuple[Any, ...], rows: int, mode: Mode, stop: bool, around: Around | None = None) -> Held:
        """What the layers hold at the model's arguments, and what it returns."""
        probe = Probe(mode, (), self.where.of_input, self._own, None if self.replaced else False, rows)
        known = enumerate(self.form or ())
        probe.firsts = frozenset([i for i, calls in known if all(r == Rows(0, 1) for call in calls for r in call)])
        # Not the tensors themselves: a layer's input may become a leaf, and under a rule is written to.
        own = torch.clone if self.where.of_input and is_ruled() else torch.detach
        args = tuple([own(a) if isinstance(a, Tensor) and not a.requires_grad else a for a in args])
        out = self.run(probe, args, stop, around)
        visits = sorted(probe.visits, key=lambda visit: visit[0])
        flat = [t for _, tensors in visits for t in tensors]
        if self.form is None:
            self.form = self._learn(visits, args, rows)
            if not self._fits(self.form, visits, rows):
                return self.watch(args, rows, mode, stop, around)  # now that one row is known to be for all
        elif not self._fits(self.form, visits, rows):
            got = ", ".join(f"{tuple(t.shape)}" for t in flat)
            raise ArgumentError(f"layer: {self._called} holds other tensors than before: {got} for {rows} examples")
        if not any(t.is_floating_point() for t in flat) and (self.differentiable or not flat):
            got = ", ".join(str(t.dtype) for t in flat) or "no tensor"
            raise ArgumentTypeError(f"layer: {self._called} holds {got}; expected floating point")
        return Held(self.form, flat, rows, out)

    def _own(self) -> Iterator[Tensor | None]:
        """The model's buffers."""
        if self._buffers is None:
            self._buffers = [m._buffers for m in modules_of(self.model.key)]
        return (t for buffers in self._buffers for t in buffers.values())

    @property
    def _called(self) -> str:
        return ", ".join(self._names)

    @staticmethod
    def _fits(form: Form, visits: Visits, rows: int) -> bool:
        """Whether layers were called as the form says."""
        calls = [(layer, call) for layer, calls in enumerate(form) for call in calls]
        if [(layer, len(tensors)) for layer, tensors in visits] != [(layer, len(call)) for layer, call in calls]:
            return False
        pairs = [pair for (_, ts), (_, call) in zip(visits, calls, strict=True) for pair in zip(ts, call, strict=True)]
        return all(r.fits(t.shape, rows) for t, r in pairs)

    def _learn(self, visits: Visits, args: tuple[Any, ...], rows: int) -> Form:
        """Where the tensors of a first forward have their rows."""
        found = [[Rows.of(t.shape, rows) for t in tensors] for _, tensors in visits]
        doubtful = any(r is None for call in found for r in call)
        kept, key = self._remembered(_forms, args)
        if doubtful and key in kept and self._fits(kept[key], visits, rows):
            return kept[key]
        if doubtful:
            found = self._compare(visits, args, rows)
        form: list[list[tuple[Rows, ...]]] = [[] for _ in self._names]
        for (layer, tensors), call in zip(visits, found, strict=True):
            for t, r in zip(tensors, call, strict=True):
                if r is None:
                    got = f"a tensor of shape {tuple(t.shape)} for {rows} examples"
                    raise ArgumentError(f"layer: {self._names[layer]} holds {got}; expected a dimension of {rows}")
            form[layer].append(tuple([r for r in call if r is not None]))
        learnt = tuple([tuple(calls) for calls in form])
        if doubtful:
            kept[key] = learnt
        return learnt

    def _remembered(
        self, store: WeakKeyDictionary[Any, dict[Any, T]], args: tuple[Any, ...]
    ) -> tuple[dict[Any, T], Any]:
        """What was learnt of layers of this model at other calls, and by which key."""
        layers = tuple([layer if isinstance(layer, str) else id(layer) for layer in self.where.all])
        try:
            kept = store.setdefault(self.model.key, {})
        except TypeError:  # a model that cannot be referred to weakly
            kept = {}
        return kept, (layers, self._names, self.where.of_input, shapes_of(args), is_ruled())

    def _compare(self, visits: Visits, args: tuple[Any, ...], rows: int) -> list[list[Rows | None]]:
        """The same where the shapes leave doubts, told by a forward of another number of rows, if there may be one."""
        most = min([n for n in (self.most, self.model.high, current().max_rows) if n is not None], default=2 * rows)
        others = rows - 1 if rows > self.model.low else 2 * rows
        if others > most:
            return [[Rows.likely(t.shape, rows) for t in tensors] for _, tensors in visits]
        probe = Probe(Mode.WATCH, rows=others)
        with torch.no_grad(), below():
            self._forward(probe, tuple([_resized(a, rows, others) for a in args]), stop=True)
        again = sorted(probe.visits, key=lambda visit: visit[0])
        if [(i, len(ts)) for i, ts in again] != [(i, len(ts)) for i, ts in visits]:
            return [[None] * len(tensors) for _, tensors in visits]
        return [
            [Rows.between(t.shape, u.shape, rows, others) for t, u in zip(ts, us, strict=True)]
            for (_, ts), (_, us) in zip(visits, again, strict=True)
        ]

    def acquaint(self, args: tuple[Any, ...]) -> None:
        """Find out where a forward may stop, before one that is compared with others."""
        if isinstance(self._sites, HookSites) and not self._sites.knows(args):
            with torch.no_grad(), below():
                self._forward(Probe(Mode.WATCH), args, stop=True)

    def run(self, probe: Probe, args: tuple[Any, ...], stop: bool = False, around: Around | None = None) -> Any:
        """The model's forward, in which the layers' calls visit a probe."""
        if not self._is_settled:
            kept, key = self._remembered(_settled, args)
            self._is_settled = key in kept
        if self._is_settled:
            with our_way(self.model.key, args):
                return self._forward(probe, args, stop, around)
        probe.pairs = []
        out = self._forward(probe, args, False, around)
        self._settle(any(pair.is_doubtful for pair in probe.pairs), args)
        probe.pairs = None
        return out

    def _settle(self, doubtful: bool, args: tuple[Any, ...]) -> None:
        """Raise if others read the memory of what layers hold where it is written to: copies are, in its place."""
        if doubtful:
            probe, generators = Probe(Mode.WATCH, (), self.where.of_input, copies=True), Generators()
            probe.pairs = []
            with torch.no_grad(), below(), Readers(probe.pairs) as readers:
                out = self._forward(probe, args)
            readers.read(leaves(out, Tensor))
            generators.restore()
            if readers.torn:
                raise ArgumentError(
                    f"layer: what {self._called} holds is read by others, and it is written to in place or a view; "
                    "expected a layer whose tensors can be replaced (inplace=False makes it one)"
                )
        kept, key = self._remembered(_settled, args)
        kept[key], self._is_settled = True, True

    def _forward(self, probe: Probe, args: tuple[Any, ...], stop: bool = False, around: Around | None = None) -> Any:
        was = torch.is_grad_enabled()
        # What runs before the first layer is not gone back through, unless a model turns gradients off and on itself.
        before = was and (probe.mode is not Mode.LEAVES or remembers(_switching, self.model.key))
        try:
            torch._C._set_grad_enabled(before)
            with probing(probe), nullcontext() if around is None else around(probe):
                out = self._sites.run(args, probe.mode, stop)
            if probe.mode is Mode.LEAVES and was and not torch.is_grad_enabled() and not before and not stop:
                remember(_switching, self.model.key)
                torch._C._set_grad_enabled(was)
                probe.visits.clear()
                return self._forward(probe, args, stop, around)
            return out
        finally:
            torch._C._set_grad_enabled(was)

    def prefix(self) -> Prefix | None:
        """Modules that need not run again when values are put in, where the format does not see to that itself."""
        return self._sites.prefix() if isinstance(self._sites, HookSites) else None

    def build(self, flat: Sequence[Tensor | None]) -> Any:
        """Scores [examples, ...] in the form of what the layers hold."""
        rest = iter(flat)
        results = []
        for calls in self.form or ():
            parts = [tuple([self._finish(rows, next(rest)) for rows in call]) for call in calls]
            each = [part[0] if len(part) == 1 else part for part in parts]
            results.append(each[0] if len(each) == 1 else tuple(each))
        return results if self.where.several else results[0]

    def _finish(self, rows: Rows, scores: Tensor | None) -> Tensor | None:
        if scores is None:
            return None
        return rows.back(scores).cpu() if self.where.on_cpu else rows.back(scores)


# Models that turn gradients off and on again inside.
_switching: WeakSet[Any] = WeakSet()
_kept: WeakKeyDictionary[Any, dict[Any, Sites]] = WeakKeyDictionary()
# Forms that a forward of their own told: those that the shapes of tensors leave in doubt.
_forms: WeakKeyDictionary[Any, dict[Any, Form]] = WeakKeyDictionary()
# Layers whose tensors may be replaced: nothing else reads what is written to them.
_settled: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()


def open_sites(model: Model, where: Layer) -> tuple[tuple[str, ...], Sites]:
    """The names of layers, and how the calls of them are found in this model's format."""
    owner = model.call if isinstance(model.call, nn.Module) else model.key if isinstance(model.key, nn.Module) else None
    if isinstance(owner, torch.jit.ScriptModule) or _is_program(owner):
        names = tuple([name_of(owner, layer) for layer in where.all])
        made: Any = ScriptSites if isinstance(owner, torch.jit.ScriptModule) else ProgramSites
        kept = _kept.setdefault(model.key, {})
        if (names, where.of_input) not in kept:
            kept[names, where.of_input] = made(owner, names, where.of_input)
        return names, kept[names, where.of_input]
    names = tuple([name_of(owner, layer) for layer in where.all])
    layers = tuple([module_of(owner, layer, name) for layer, name in zip(where.all, names, strict=True)])
    return names, HookSites(model.call, owner, layers, names, where.of_input)


def _resized(a: Any, rows: int, others: int) -> Any:
    """An argument for rows examples for other ones: fewer, or twice as many."""
    if not isinstance(a, Tensor) or not a.dim() or not len(a) or len(a) % rows:
        return a
    return torch.cat([a, a]) if others > rows else a[: len(a) // rows * others]


def _is_program(owner: Any) -> bool:
    """Whether a module is a graph in which layers are not called as modules."""
    if not isinstance(owner, torch.fx.GraphModule):
        return False
    called = [n.target for n in owner.graph.nodes if n.op == "call_module" and n.target != "_guards_fn"]
    return not called


def name_of(owner: Any, layer: Any) -> str:
    """The dotted name of a layer."""
    if not isinstance(layer, (str, nn.Module)):
        got = type(layer).__name__
        raise ArgumentTypeError(f"layer: got {got}; expected a module of the model or its dotted name")
    if owner is None:
        if isinstance(layer, str):
            raise ArgumentError(f"layer: got {layer!r}; expected a module, for forward_func is a function")
        return type(layer).__name__
    modules = owner.named_modules(remove_duplicate=False)  # as far as is needed: it is slow
    if isinstance(layer, str):
        found = layer if _is_program(owner) else next((name for name, _ in modules if name == layer), None)
    else:
        found = next((name for name, module in modules if _same(module, layer)), None)
    if found is None:
        got = f"{layer!r}, which" if isinstance(layer, str) else f"a {type(layer).__name__} that"
        raise ArgumentError(f"layer: got {got} is not in the model; expected {_choice(owner)}")
    return found


def _choice(owner: Any) -> str:
    """Which layers a model has, for a message."""
    if _is_program(owner):
        names = layers_of(owner)
        return f"a dotted name, as the program knows no modules: one of {some(names)}"
    names = [name for name, _ in owner.named_modules(remove_duplicate=False) if name]
    none = "'', the model itself, as it has no layers inside (torch.jit.freeze leaves none: give the module before it)"
    return f"one of {some(names)}" if names else none


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, torch.jit.ScriptModule) and isinstance(b, torch.jit.ScriptModule) and a._c == b._c)
