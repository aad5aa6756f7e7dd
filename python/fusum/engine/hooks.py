"""Layers of eager modules: hooks that are there for one forward, and act in its thread alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError
from .perceptron import ahead
from .prefix import Prefix
from .probe import Mode, Probe, Stop, current, is_current
from .trees import leaves, mapped

# How often layers of a model are called, by layers and shapes of arguments: a forward may stop after the last call.
_counts: WeakKeyDictionary[Any, dict[Any, int]] = WeakKeyDictionary()
# Modules that have been seen to run after layers of a model, by layers: they are not watched again.
_late: WeakKeyDictionary[Any, dict[Any, WeakSet[nn.Module]]] = WeakKeyDictionary()


class HookSites:
    """Layers of an eager module, or of a function that calls them; root: that module, None for a function."""

    __slots__ = ("_call", "_counts", "_late", "_layers", "_names", "_of_input", "_root")

    def __init__(
        self, call: Callable[..., Any], root: Any, layers: tuple[nn.Module, ...], names: tuple[str, ...], of_input: bool
    ) -> None:
        self._call, self._root, self._layers, self._names, self._of_input = call, root, layers, names, of_input
        owner = root if root is not None else layers[0]
        try:
            self._counts, self._late = _counts.setdefault(owner, {}), _late.setdefault(owner, {})
        except TypeError:  # a module that cannot be referred to weakly
            self._counts, self._late = {}, {}

    def run(self, args: tuple[Any, ...], mode: Mode, stop: bool) -> Any:
        """The forward on args, in which each call of a layer visits the current probe; stop: the rest is not needed."""
        probe, key = current(), self._key(args)
        probe.last = self._counts.get(key) if stop else None
        handles = [self._hooked(i, layer, probe) for i, layer in enumerate(self._layers)]
        try:
            out = self._forward(args, mode)
        except Stop:
            return None
        finally:
            for handle in handles:
                handle.remove()
        if mode is not Mode.GIVE:
            self._counts[key] = len(probe.visits)
            self._check_visits(probe)
        return out

    def _forward(self, args: tuple[Any, ...], mode: Mode) -> Any:
        """The model at args; what a sequence runs before its layers goes in one operator, if nobody goes back there."""
        if mode is not Mode.GIVE and len(args) == 1 and self._call is self._root and not torch.is_grad_enabled():
            found = ahead(self._root, self._layers)
            if found is not None and found[0].takes(args[0]):
                return reduce(lambda x, module: module(x), found[1], found[0].outputs_of(args[0]))
        return self._call(*args)

    def knows(self, args: tuple[Any, ...]) -> bool:
        """Whether it is known how often the layers are called."""
        return self._key(args) in self._counts

    def _key(self, args: tuple[Any, ...]) -> Any:
        return tuple([id(m) for m in self._layers]), self._of_input, shapes_of(args)

    def prefix(self) -> Prefix | None:
        """Modules that need not run again when values are put in; none where the whole model is not known."""
        if not isinstance(self._root, nn.Module):
            return None
        key = (tuple([id(m) for m in self._layers]), self._of_input)
        return Prefix(self._root, self._layers, self._of_input, self._late.setdefault(key, WeakSet()))

    def _check_visits(self, probe: Probe) -> None:
        ran = {layer for layer, _ in probe.visits}
        for i, name in enumerate(self._names):
            if i not in ran:
                raise ArgumentError(f"layer: {name} did not run; expected a layer that the model calls")

    def _hooked(self, layer: int, module: nn.Module, probe: Probe) -> Any:
        """The handle of a layer's hook."""
        hook = self._hook(layer, probe)
        if self._of_input:
            return module.register_forward_pre_hook(hook, with_kwargs=True)
        return module.register_forward_hook(hook)

    def _hook(self, layer: int, probe: Probe) -> Callable[..., Any]:
        # Of a hook that its own thread takes away, another thread may no longer know that it takes keyword arguments.
        def hook(module: nn.Module, args: Any, found: Any = None) -> Any:
            """found: what the layer returned, or its keyword arguments before it runs."""
            if not is_current(probe):
                return None
            # Of what a layer takes, what stands by position is meant, if any tensor does.
            whole = (args if leaves(args, Tensor) else found) if self._of_input else found
            changed = iter(probe.visit(layer, leaves(whole, Tensor)))
            changed_whole = mapped(lambda _: next(changed), whole, Tensor)
            if not self._of_input:
                return changed_whole
            return (changed_whole, found) if whole is args else (args, changed_whole)

        return hook


def shapes_of(args: Sequence[Any]) -> tuple[Any, ...]:
    """What a model's way may depend on: the shapes of its arguments but for the number of rows."""
    return tuple([a.shape[1:] if isinstance(a, Tensor) else None for a in args])


def module_of(owner: Any, layer: Any, name: str) -> nn.Module:
    """The module that is a layer of an eager module; name: for a message."""
    module: nn.Module = owner.get_submodule(layer) if isinstance(layer, str) else layer
    if isinstance(module, torch.jit.ScriptModule):
        raise ArgumentTypeError(
            f"layer: got {name}, a ScriptModule inside a model of Python; expected the ScriptModule for forward_func"
        )
    return module
