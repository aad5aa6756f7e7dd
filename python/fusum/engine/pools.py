"""Large max pools on a CPU, run in the memory layout that torch's kernel vectorises: three times as fast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_POOL: Any = torch.ops.aten.max_pool2d_with_indices.default
# Below, watching a model's operators from Python costs what the layout gains.
_ELEMENTS, _CHANNELS = 2**20, 16

_known: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()


class ChannelsLast(TorchDispatchMode):
    """Large max pools are run on a channels_last copy: the same values and indices, in the layout of the input."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op is not _POOL or not _is_slow(args[0]):
            return op(*args, **(kwargs or {}))
        copy = args[0].contiguous(memory_format=torch.channels_last)
        return tuple([y.contiguous() for y in op(copy, *args[1:], **(kwargs or {}))])


def layout(owner: Any, inputs: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """A context in which to run a model: of `ChannelsLast` where it is known to have pools that are slow otherwise."""
    try:
        known = _known.get(owner)
    except TypeError:  # a callable that cannot be referred to weakly
        return nullcontext()
    if not known or _shapes(inputs) not in known:
        return nullcontext()
    return ChannelsLast()  # type: ignore[no-untyped-call]


def learn(owner: Any, inputs: Sequence[Tensor], graph: Iterable[Any]) -> None:
    """Remember whether a model's graph on inputs of these shapes has pools that are slow in their layout.

    Not of models with functions of a user's or a compiler's own: what they do when operators are watched is unknown.
    """
    slow = False
    for node in graph:
        if isinstance(node, torch._C._FunctionBase):
            return
        slow = slow or (node.name() == "MaxPool2DWithIndicesBackward0" and _is_slow(node._saved_self))
    if slow:
        with suppress(TypeError):
            _known.setdefault(owner, set()).add(_shapes(inputs))


def _is_slow(x: Tensor) -> bool:
    large = x.dim() == 4 and x.numel() >= _ELEMENTS and x.shape[1] >= _CHANNELS
    return large and x.device.type == "cpu" and x.dtype is torch.float32 and x.is_contiguous()


def _shapes(inputs: Sequence[Tensor]) -> Any:
    return tuple([x.shape[1:] for x in inputs])
