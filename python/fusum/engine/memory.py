"""How many rows a model sees at once: by what a row of activations takes, measured once a model and input shape."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..settings import current
from .mode import QuickMode
from .model import ONE_OPERATOR

# On a CPU more rows gain nothing once they fill the caches, but a few are wanted whatever they weigh, up to a limit:
# weights are then read once for all of them (python -m benchmarks.chunks).
_CPU_BYTES = 32 * 2**20
_CPU_FEW_ROWS, _CPU_FEW_BYTES = 20, 256 * 2**20
# A forward without gradients holds what an operator takes and what it returns, twice its largest tensor at most. As it
# keeps nothing, it stays in the caches, if it is given less; and it needs fewer rows, as it has a third of the work.
_AT_ONCE, _FORWARD_BYTES, _FORWARD_FEW_ROWS = 2, 12 * 2**20, 8
_CUDA_SHARE, _CUDA_BYTES = 0.3, 4 * 2**30
# Before a model is measured: not many rows, and activations guessed at this many times its inputs.
_FIRST_ROWS = 256
_GUESS = 64

_footprints: WeakKeyDictionary[Any, dict[Any, int]] = WeakKeyDictionary()


class Footprint:
    """Bytes that autograd keeps for a row of a model, or part of one, for inputs of these shapes; 0 until measured.

    forward_only: bytes that a forward without gradients holds.
    """

    __slots__ = ("_device", "_forward_only", "_input_bytes", "_keeps_none", "_key", "_known")

    def __init__(
        self, model: Any, inputs: tuple[Tensor | None, ...], part: Hashable = None, forward_only: bool = False
    ) -> None:
        present = [x for x in inputs if x is not None]
        self._device, self._forward_only = present[0].device, forward_only
        self._keeps_none = part == ONE_OPERATOR and not forward_only  # which spares measuring
        self._input_bytes = sum([x.nbytes for x in present]) // present[0].shape[0]
        self._key = (part, forward_only, self._device, *[(x.dtype, x.shape[1:]) for x in present])
        try:
            known = _footprints.get(model)
            self._known = _footprints.setdefault(model, {}) if known is None else known
        except TypeError:  # a callable that cannot be referred to weakly is measured at every call
            self._known = {}

    @property
    def measured(self) -> bool:
        return self._keeps_none or self._key in self._known

    def rows(self) -> int:
        """Rows to run at once."""
        if self.measured:
            return _rows(self._known.get(self._key, self._least), self._device, self._forward_only)
        if self._forward_only:  # inputs may be numbers of words
            return _FORWARD_FEW_ROWS
        return min(_FIRST_ROWS, _rows(_GUESS * self._input_bytes + 1, self._device))

    @property
    def _least(self) -> int:
        """Bytes that a row's points and gradients take."""
        return 4 * self._input_bytes

    @contextmanager
    def measure(self, rows: int) -> Iterator[None]:
        """Record what autograd saves inside, or a forward without gradients holds, while rows rows run."""
        if self._forward_only:
            with _Largest() as largest:  # type: ignore[no-untyped-call]
                yield
            self._known[self._key] = _AT_ONCE * max(self._input_bytes, largest.bytes // rows) + 1
            return
        seen: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            if x.dim() and x.shape[0] % rows == 0:
                storage = x.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
            return x

        with saved_tensors_hooks(pack, _unpack):
            yield
        self._known[self._key] = self._least + sum(seen.values()) // rows

    def shrink(self, rows: int) -> None:
        """Remember to run no more than rows rows."""
        self._known[self._key] = max(self._known.get(self._key, 1), _budget(self._device) // rows)


class _Largest(QuickMode):
    """Bytes of the largest tensor that an operator inside makes."""

    bytes = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = op(*args, **(kwargs or {}))
        if not op.is_view:  # one of all rows has the size of all, though it holds nothing
            for t in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(t, Tensor):
                    self.bytes = max(self.bytes, t.numel() * t.element_size())
        return made


def forget(model: Any) -> None:
    """Measure a model anew, so that how a call is cut does not depend on earlier ones."""
    with suppress(TypeError):  # a callable that cannot be referred to weakly is measured at every call
        _footprints.pop(model, None)


def is_small(inputs: tuple[Tensor | None, ...], copies: int) -> bool:
    """Whether copies of inputs are so few and so small that they run at once, unmeasured."""
    present = [x for x in inputs if x is not None]
    weight = sum([x.nbytes for x in present]) * copies * _GUESS
    return weight <= _CPU_BYTES and present[0].shape[0] * copies <= _FIRST_ROWS


def _unpack(x: Tensor) -> Tensor:
    return x


def _budget(device: torch.device) -> int:
    """Bytes that the activations of one chunk may take."""
    wanted = current().memory
    if wanted is not None:
        return wanted
    if device.type != "cuda":
        return _CPU_FEW_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(min(_CUDA_BYTES, _CUDA_SHARE * (free + cached)))


def _rows(bytes_a_row: int, device: torch.device, forward_only: bool = False) -> int:
    most = max(1, _budget(device) // bytes_a_row)
    if device.type == "cuda" or current().memory is not None:
        return most
    few, wanted = (_FORWARD_FEW_ROWS, _FORWARD_BYTES) if forward_only else (_CPU_FEW_ROWS, _CPU_BYTES)
    return min(most, max(few, wanted // bytes_a_row))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether error says that memory ran out: fewer rows may then do."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "out of memory" in text or "not enough memory" in text
    )
