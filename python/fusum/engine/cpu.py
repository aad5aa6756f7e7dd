"""Operators inside a model on a CPU, called in our own way where nothing but time and memory tells (csrc/model).

Images lie channels_last where convolutions run fastest; batch normalisations keep no image for the way back; max-pools
have no branches; large matrices are multiplied by the faster library.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import backward, ops
from ..settings import current
from .modules import has_hooks, modules_of

# Of less, laying out the weights takes what the layout gains; and to look at every operator, what that gains.
_SIDES, _ROWS, _PIXELS = 16 * 16, 8, 2**17
_SOME_PIXELS = 2**14
# Multiplications in a model's largest layer, from where on it is worth looking for it; a guess of its weights.
_PRODUCTS, _WEIGHTS = 2**21, 2**14
_PLAIN: AbstractContextManager[None] = nullcontext()
_largest: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def our_way(owner: Any, args: Sequence[Any]) -> AbstractContextManager[None]:
    """A context for a forward of a model, whose operators may be called in our own way if nobody can tell."""
    if ops.compiled is None:
        return _PLAIN
    tensors = [a for a in args if isinstance(a, Tensor)]
    images = [x for x in tensors if x.dim() == 4]
    plain = all(_is_plain(x) for x in images)
    large = plain and any(_is_large(x) for x in images)
    if not large and not (plain and any(_is_some(x) for x in images)) and not _multiplies_much(owner, tensors):
        return _PLAIN
    modules = modules_of(owner)
    if current().backend == "reference" or _has_compiled() or _is_compiled(modules):
        return _PLAIN
    return ops.compiled.OurWay(plainly=not large or _is_watched(modules))  # type: ignore[no-any-return]


def run_backward(y: Tensor, root: Tensor, inputs: Sequence[Any], keep_graph: bool = False) -> tuple[Tensor | None, ...]:
    """The same as `fusum.backward`'s, after a forward in such a context; gradients lie as inputs do."""
    if ops.compiled is None or not ops.compiled.goes_back_our_way():
        return backward.run_backward(y, root, inputs, keep_graph)
    with ops.compiled.OurWay(back=True):
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


def _is_some(x: Tensor) -> bool:
    rows, _, height, width = x.shape
    return rows * height * width >= _SOME_PIXELS


def _multiplies_much(owner: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether a model may have products of matrices that gain by another library."""
    if not tensors or not tensors[0].dim() or not ops.compiled.multiplies_faster():
        return False
    first = tensors[0]
    rows = first.numel() // max(1, first.shape[-1]) if first.is_floating_point() else first.numel()
    return rows * _largest_weight(owner) >= _PRODUCTS


def _largest_weight(owner: Any) -> int:
    """Numbers in the largest matrix that a model multiplies by, as it was when it was first seen."""
    if not isinstance(owner, nn.Module):
        return _WEIGHTS
    if owner not in _largest:
        layers = [m for m in modules_of(owner) if not isinstance(m, nn.Embedding)]
        weights = [p for m in layers for p in m._parameters.values() if p is not None and p.dim() == 2]
        _largest[owner] = max([p.numel() for p in weights], default=0)
    return _largest[owner]


def _is_compiled(modules: Sequence[nn.Module]) -> bool:
    """Whether a model has compiled parts, of which what we change is a premise."""
    return any(type(m).__name__ == "OptimizedModule" for m in modules)


def _is_watched(modules: Sequence[nn.Module]) -> bool:
    """Whether a model has hooks, which see how tensors lie."""
    return nn.modules.module._has_any_global_hook() or any(has_hooks(m) for m in modules)
