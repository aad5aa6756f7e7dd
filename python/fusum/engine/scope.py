"""What holds in the calling thread while a call runs."""

from __future__ import annotations

from typing import Any

import torch

from .. import ops
from ..plan.spec import PLAIN
from ..rules.turn import is_ruled, ruled

_arena: Any = None if ops.compiled is None else ops.compiled.Arena()


class scope:
    """Gradients on; inference mode, the rule of an attribution outside and the JIT's optimiser off; memory is reused.

    sparing: no more memory is held for that, or used to be faster. plainly: images lie inside models as they were
    given.

    The optimiser would compile anew for every batch size. (A class and not a generator, because it is entered at every
    call and some calls take 300 microseconds.)
    """

    __slots__ = ("_inference", "_optimised", "_outer", "_plainly", "_sparing", "_was_grad", "_ways")

    def __init__(self, sparing: bool = False, plainly: bool = False) -> None:
        self._sparing = sparing
        self._plainly = plainly

    def __enter__(self) -> None:
        self._optimised = torch._C._get_graph_executor_optimize()
        torch._C._set_graph_executor_optimize(False)
        self._inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else None
        if self._inference is not None:
            self._inference.__enter__()
        self._outer = ruled(PLAIN, 0) if is_ruled() else None
        if self._outer is not None:
            self._outer.__enter__()
        self._was_grad = torch.is_grad_enabled()
        if _arena is not None:
            _arena.enter(self._sparing)
        if ops.compiled is not None:
            self._ways = ops.compiled.Call()
            self._ways.enter(self._plainly, self._sparing)
        torch._C._set_grad_enabled(True)

    def __exit__(self, *error: object) -> None:
        torch._C._set_grad_enabled(self._was_grad)
        if ops.compiled is not None:
            self._ways.leave()
        if _arena is not None:
            _arena.leave()
        if self._outer is not None:
            self._outer.__exit__(None, None, None)
        if self._inference is not None:
            self._inference.__exit__(None, None, None)
        torch._C._set_graph_executor_optimize(self._optimised)
