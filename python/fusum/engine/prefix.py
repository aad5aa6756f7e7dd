"""What ran wholly before the layers, in eager models: modules that need not run again when values are put in there."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, MutableSet, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from .modules import has_hooks, modules_of
from .probe import Probe, is_current
from .trees import leaves, mapped


@dataclass(slots=True, eq=False)
class Note:
    """One tensor that a module returned for rows rows; kept: its value when first read by more than skipped modules."""

    like: Tensor  # of the same type and device, without its memory
    rows: int
    kept: Tensor | None = None
    version: int = 0
    spoiled: bool = False

    def read(self, t: Tensor) -> None:
        """Something reads t, the tensor itself."""
        if self.kept is None:
            self.kept = t.clone()
        elif t._version != self.version:
            self.spoiled = True  # a module that is to be skipped has written over it meanwhile

    @property
    def _group(self) -> int:
        """How many of the tensor's rows an example has: none, if it is the same for all."""
        n = self.like.shape[0] if self.like.dim() else 0
        return n // self.rows if n % self.rows == 0 and (self.rows > 1 or n == 1) else 0

    def repeated(self, index: Tensor) -> Tensor:
        """The tensor for examples index: its kept rows, or what nothing reads."""
        group, shape = self._group, self.like.shape
        if self.kept is None:
            unread = torch.nan if self.like.is_floating_point() or self.like.is_complex() else 0
            return self.like.new_full((), unread).expand((len(index) * group, *shape[1:]) if group else shape)
        if group < 2:
            return self.kept[index] if group else self.kept.clone()
        return self.kept.unflatten(0, (-1, group))[index].flatten(0, 1)  # type: ignore[no-any-return]

    def cut(self, rows: int) -> None:
        """Only so many of the examples."""
        if self._group and rows < self.rows:
            self._set(self.kept if self.kept is None else self.kept[: rows * self._group], rows)

    def join(self, later: Note) -> None:
        """Take in the same tensor for more examples."""
        if self._group:
            both = None if self.kept is None or later.kept is None else torch.cat([self.kept, later.kept])
            self._set(both, self.rows + later.rows)

    def _set(self, kept: Tensor | None, rows: int) -> None:
        n = rows * self._group
        self.kept, self.like, self.rows = kept, self.like[:1].expand(n, *self.like.shape[1:]), rows


class Tracked(Tensor):
    """A module's tensor that notes when an operator reads it; modules that are to be skipped get the tensor inside."""

    inside: Tensor
    note: Note

    @staticmethod
    def of(t: Tensor, note: Note) -> Tracked:
        """t, noting in note."""
        make: Any = torch.Tensor._make_wrapper_subclass
        made: Tracked = make(Tracked, t.shape, strides=t.stride(), dtype=t.dtype, device=t.device)
        made.inside, made.note = t, note
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        tracked = leaves((args, kwargs), Tracked)
        for t in tracked:
            t.note.read(t.inside)
        pairs = zip(args, op._schema.arguments, strict=False)
        written = [a.inside for a, s in pairs if isinstance(a, Tracked) and s.alias_info and s.alias_info.is_write]
        args, kwargs = mapped(_inner, (args, kwargs or {}), Tracked)
        found = op(*args, **kwargs)
        increment_version(written)  # down here torch does not
        for t in tracked:
            t.note.version = t.inside._version
        return found


def _inner(t: Tracked) -> Tensor:
    return t.inside


@dataclass(slots=True)
class Calls:
    """A module's calls in one forward: what it took and returned; after: it returned after a layer was visited."""

    count: int = 0
    after: bool = False
    took: list[Tracked] = field(default_factory=list)
    returned: Any = None


class Prefix:
    """Modules of root that run before its layers, once, and give the same for the same example: not in training mode,
    without hooks of their own; none if the model draws random numbers.
    """

    def __init__(
        self, root: nn.Module, layers: Sequence[nn.Module], of_input: bool, late: MutableSet[nn.Module]
    ) -> None:
        """late: modules that have been seen not to run wholly before the layers; others are added."""
        self._all, self._of_input, self._late = set(layers), of_input, late
        # What a layer returns is replaced anyway; where layers are inside others, only the inner ones need not run.
        inner = [] if of_input else [m for m in self._all if self._all.isdisjoint(modules_of(m)[1:])]
        self._layers = [m for m in inner if _may_be_skipped(m)]
        outside = [m for m in dict.fromkeys(self._outside(root)[1]) if m not in late]
        self._modules = [m for m in outside if _may_be_skipped(m)]
        self._returned: dict[nn.Module, Any] | None = None  # before anything was recorded

    @property
    def stops(self) -> bool:
        """Whether nothing that runs after the layers needs to be seen: no other modules need not run again."""
        return not self._modules

    def _outside(self, module: nn.Module) -> tuple[bool, list[nn.Module]]:
        """Whether a module is or holds a layer; the outermost modules inside it, or itself, that do not."""
        if module in self._layers:
            return True, []
        holds, found = module in self._all, []
        for child in module.children():
            child_holds, inside = self._outside(child)
            holds = holds or child_holds
            found += inside
        return holds, found if holds or isinstance(module, (nn.ModuleList, nn.ModuleDict)) else [module]

    @contextmanager
    def recording(self, probe: Probe, rows: int, examples: int) -> Iterator[None]:
        """A whole forward of rows rows, the first of which are a block of examples; blocks come in order."""
        calls = {m: Calls() for m in (*self._modules, *(self._all if self._of_input else self._layers))}
        handles, generators = [], Generators()
        try:
            for module, noted in calls.items():
                handles.append(module.register_forward_pre_hook(self._take(probe, noted), with_kwargs=True))
                if module not in self._all:
                    handles.append(module.register_forward_hook(_give(probe, noted, rows)))
                elif not self._of_input:
                    handles.append(module.register_forward_hook(_note(probe, noted, rows)))
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._join({} if generators.moved() else calls, examples)

    def _take(self, probe: Probe, noted: Calls) -> Callable[..., Any]:
        """A hook that hands a module the tensors inside."""

        def hook(module: nn.Module, args: Any, kwargs: Any = None) -> Any:
            if not is_current(probe):
                return None
            # Of a layer's input only what stands by position is replaced, if anything does.
            read = self._of_input and module in self._all and bool(leaves(args, Tensor))
            taken = args if read else (args, kwargs)
            noted.took += leaves(taken, Tracked)
            bare = mapped(_inner, taken, Tracked)
            return (bare, kwargs) if read else bare

        return hook

    def _join(self, calls: dict[nn.Module, Calls], examples: int) -> None:
        """What is known after one more block: modules that ran once in each and before the layers."""
        for noted in calls.values():
            if noted.count != 1 or noted.after:
                for t in noted.took:
                    t.note.read(t.inside)
        self._late |= {m for m, c in calls.items() if m not in self._all and (c.count > 1 or c.after)}
        found = {m: c.returned for m, c in calls.items() if c.count == 1 and not c.after and c.returned is not None}
        if any(note.spoiled for tree in found.values() for note in _notes(tree)):
            found = {}
        for note in [note for tree in found.values() for note in _notes(tree)]:
            note.cut(examples)
        if self._returned is None:
            self._returned = found
            return
        self._returned = {m: tree for m, tree in self._returned.items() if m in found}
        for module, tree in self._returned.items():
            for note, later in zip(_notes(tree), _notes(found[module]), strict=True):
                note.join(later)

    @contextmanager
    def replaying(self, probe: Probe, index: Tensor) -> Iterator[None]:
        """A forward of the examples index in which these modules do not run."""
        replaced = []
        try:
            for module, returned in (self._returned or {}).items():
                if "forward" not in vars(module):  # another thread's, or a user's
                    vars(module)["forward"] = _Replay(probe, module, returned, index)
                    replaced.append(module)
            yield
        finally:
            for module in replaced:
                vars(module).pop("forward", None)


class _Replay:
    """A module's forward that returns what was kept, at its first call in the forward that it is made for."""

    def __init__(self, probe: Probe, module: nn.Module, returned: Any, index: Tensor) -> None:
        self._probe, self._module, self._returned, self._index = probe, module, returned, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        returned, mine = self._returned, is_current(self._probe)
        if not mine or returned is None:
            return type(self._module).forward(self._module, *args, **kwargs)
        self._returned = None
        return mapped(lambda note: note.repeated(self._index), returned, Note)


def _give(probe: Probe, noted: Calls, rows: int) -> Callable[..., Any]:
    """A hook that wraps what a module returns."""

    def hook(module: nn.Module, args: Any, returned: Any) -> Any:
        if not is_current(probe):
            return None
        noted.count += 1
        noted.after = noted.after or bool(probe.visits)
        wrapped = mapped(lambda t: Tracked.of(t, Note(_unfilled(t), rows, version=t._version)), returned, Tensor)
        noted.returned = mapped(lambda t: t.note, wrapped, Tracked)
        return None if noted.after or noted.count > 1 else wrapped

    return hook


def _note(probe: Probe, noted: Calls, rows: int) -> Callable[..., Any]:
    """A hook that notes the form of what a layer returns; the values are put in later."""

    def hook(module: nn.Module, args: Any, returned: Any) -> None:
        if is_current(probe):
            noted.count += 1
            noted.returned = mapped(lambda t: Note(_unfilled(t), rows), returned, Tensor)

    return hook


def _unfilled(t: Tensor) -> Tensor:
    """A tensor of t's shape and kind without its memory."""
    return t.new_empty(()).expand(t.shape)


def _notes(tree: Any) -> list[Note]:
    return leaves(tree, Note)


def _may_be_skipped(module: nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule) and not any(
        m.training or has_hooks(m) for m in modules_of(module)
    )


class Generators:
    """Where the generators stand that a model may draw from."""

    def __init__(self) -> None:
        self._torch, self._numpy, self._python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def moved(self) -> bool:
        """Whether anything has been drawn since."""
        now = Generators()
        tensors = zip((self._torch, *self._cuda), (now._torch, *now._cuda), strict=False)
        same = all(torch.equal(a, b) for a, b in tensors) and self._python == now._python
        return not same or pickle.dumps(self._numpy) != pickle.dumps(now._numpy)

    def restore(self) -> None:
        """Take back what has been drawn since."""
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
