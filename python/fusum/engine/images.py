"""Images inside a model on a CPU: they lie channels_last where its convolutions run fastest, and less is kept of them
for the way back (csrc/layout)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import backward, ops
from ..settings import current
from .modules import HOOKS, has_hooks, modules_of

# Of less, laying out the weights takes what the layout gains; and to look at every operator, what is kept less.
_SIDES, _ROWS, _PIXELS = 16 * 16, 8, 2**17
_KEPT_PIXELS = 2**15
_GLOBAL_HOOKS = tuple([getattr(torch.nn.modules.module, f"_global{name}") for name in HOOKS])
_PLAIN: AbstractContextManager[None] = nullcontext()


def channels_last(owner: Any, args: Sequence[Any]) -> AbstractContextManager[None]:
    """A context for a forward of a model, whose images may lie channels_last if nobody can tell."""
    images = [a for a in args if isinstance(a, Tensor) and a.dim() == 4]
    if not images or ops.compiled is None or not all(_is_plain(x) for x in images):
        return _PLAIN
    large = any(_is_large(x) for x in images)
    if not (large or any(_keeps_much(x) for x in images)) or current().backend == "reference" or _is_watched(owner):
        return _PLAIN
    return ops.compiled.Layout(plainly=not large)  # type: ignore[no-any-return]


def run_backward(y: Tensor, root: Tensor, inputs: Sequence[Any], keep_graph: bool = False) -> tuple[Tensor | None, ...]:
    """The same as `fusum.backward`'s, after a forward in such a context; gradients lie as inputs do."""
    if ops.compiled is None or not ops.compiled.is_laid():
        return backward.run_backward(y, root, inputs, keep_graph)
    with ops.compiled.Layout(back=True):
        found = backward.run_backward(y, root, inputs, keep_graph)
    return tuple(
        [g if g is None or not _lies_plainly(x) else g.contiguous() for g, x in zip(found, inputs, strict=True)]
    )


def _has_compiled() -> bool:
    """Whether torch.compile has been called in this process; what it returned may be a function that a model calls."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is None:
        return False
    backends: dict[int, Any] = getattr(dynamo, "cached_backends", {0: "not known"})
    return any(backend is not None for backend in backends.values())  # torch.export has None


def _lies_plainly(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_contiguous()


def _is_plain(x: Tensor) -> bool:
    """Whether an image is one that we may lay out; not if its owner did."""
    return type(x) is Tensor and x.device.type == "cpu" and x.dtype is torch.float32 and x.is_contiguous()


def _is_large(x: Tensor) -> bool:
    rows, _, height, width = x.shape
    return height * width >= _SIDES and (rows >= _ROWS or rows * height * width >= _PIXELS)


def _keeps_much(x: Tensor) -> bool:
    rows, _, height, width = x.shape
    return height * width >= _SIDES and rows * height * width >= _KEPT_PIXELS


def _is_watched(owner: Any) -> bool:
    """Whether a model has hooks, which see how tensors lie, or may have compiled parts, of which they are a premise."""
    if any(_GLOBAL_HOOKS) or _has_compiled():
        return True
    return any(type(m).__name__ == "OptimizedModule" or has_hooks(m) for m in modules_of(owner))
