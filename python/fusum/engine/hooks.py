"""Layers of eager modules: hooks that are there for one forward, and act in its thread alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import ArgumentError
from .prefix import Prefix, has_tensors
from .probe import Mode, Probe, Stop, current, is_current

# How often layers of a model are called, by layers and shapes of arguments: a forward may stop after the last call.
_counts: WeakKeyDictionary[Any, dict[Any, int]] = WeakKeyDictionary()


class HookSites:
    """Layers of an eager module, or of a function that calls them; root: that module, None for a function."""

    __slots__ = ("_call", "_counts", "_layers", "_names", "_of_input", "_root")

    def __init__(
        self, call: Callable[..., Any], root: Any, layers: tuple[nn.Module, ...], names: tuple[str, ...], of_input: bool
    ) -> None:
        self._call, self._root, self._layers, self._names, self._of_input = call, root, layers, names, of_input
        try:
            self._counts = _counts.setdefault(root if root is not None else layers[0], {})
        except TypeError:  # a module that cannot be referred to weakly
            self._counts = {}

    def run(self, args: tuple[Any, ...], mode: Mode, stop: bool) -> Any:
        """The forward on args, in which each call of a layer visits the current probe; stop: the rest is not needed."""
        probe, key = current(), self._key(args)
        probe.last = self._counts.get(key) if stop else None
        with self._hooked(probe):
            try:
                out = self._call(*args)
            except Stop:
                return None
        if mode is not Mode.GIVE:
            self._counts[key] = len(probe.visits)
            self._check_visits(probe)
        return out

    def knows(self, args: tuple[Any, ...]) -> bool:
        """Whether it is known how often the layers are called."""
        return self._key(args) in self._counts

    def _key(self, args: tuple[Any, ...]) -> Any:
        return tuple([id(m) for m in self._layers]), self._of_input, _shapes(args)

    def prefix(self) -> Prefix | None:
        """Modules that need not run again when values are put in; none where the whole model is not known."""
        return Prefix(self._root, self._layers, self._of_input) if isinstance(self._root, nn.Module) else None

    def _check_visits(self, probe: Probe) -> None:
        ran = {layer for layer, _ in probe.visits}
        for i, name in enumerate(self._names):
            if i not in ran:
                raise ArgumentError(f"layer: {name} did not run; expected a layer that the model calls")

    @contextmanager
    def _hooked(self, probe: Probe) -> Iterator[None]:
        handles = []
        try:
            for i, layer in enumerate(self._layers):
                hook = self._hook(i, probe)
                if self._of_input:
                    handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
                else:
                    handles.append(layer.register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: int, probe: Probe) -> Callable[..., Any]:
        # Of a hook that its own thread takes away, another thread may no longer know that it takes keyword arguments.
        def hook(module: nn.Module, args: Any, found: Any = None) -> Any:
            """found: what the layer returned, or its keyword arguments before it runs."""
            if not is_current(probe):
                return None
            # Of what a layer takes, what stands by position is meant, if any tensor does.
            whole = (args if has_tensors(args) else found) if self._of_input else found
            leaves, spec = tree_flatten(whole)
            at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
            changed = probe.visit(layer, [leaves[i] for i in at])
            for i, t in zip(at, changed, strict=True):
                leaves[i] = t
            changed_whole = tree_unflatten(leaves, spec)
            if not self._of_input:
                return changed_whole
            return (changed_whole, found) if whole is args else (args, changed_whole)

        return hook


def _shapes(args: Sequence[Any]) -> tuple[Any, ...]:
    """What a model's way may depend on: the shapes of its arguments but for the number of rows."""
    return tuple([a.shape[1:] if isinstance(a, Tensor) else None for a in args])
