"""Sums of gradients along a path, taken behind an input's first convolution: the way back through it is linear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .. import ops
from .modules import modules_of

_NODES = {"ConvolutionBackward0", "ConvolutionBackward1"}  # the latter of traced models
# Of fewer elements at all points together, looking for the convolution takes as long as going back through it.
_LEAST = 2**16
_SETTINGS = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")


class FirstConvolution:
    """What the way back through a convolution takes: its settings and its weights, as they were in its forward."""

    __slots__ = ("_identity", "_settings", "_weight", "_written")

    def __init__(self, node: Any) -> None:
        weight = self._written = node._saved_weight  # kept, so that no other weights come to lie where these do
        self._settings = tuple([getattr(node, f"_saved_{name}") for name in _SETTINGS])
        self._identity = (weight.data_ptr(), weight._version, weight.shape, weight.stride(), self._settings)
        self._weight = weight.detach().clone()

    def same_as(self, other: FirstConvolution) -> bool:
        """Whether both go back alike, so that gradients of their outputs may be added up."""
        return self._identity == other._identity

    def back(self, gradient: Tensor, like: Tensor) -> Tensor:
        """The gradient of the input, [B, ...] like like, from that of the output."""
        weight = self._weight.to(gradient.dtype)
        wanted = [True, False, False]  # input, weight, bias
        found = torch.ops.aten.convolution_backward(gradient, like, weight, None, *self._settings, wanted)
        return found[0]  # type: ignore[no-any-return]


class PathSum:
    """The weighted sum of the gradients of one input, [B, ...], at points that come chunk by chunk.

    Where a chunk's gradients are those of the first convolution's output, they are summed there: it is gone back
    through once for all points.
    """

    __slots__ = ("_behind", "_layer", "_stopped", "_total")

    def __init__(self, x: Tensor) -> None:
        self._total = _zeros(x)
        self._layer: FirstConvolution | None = None
        self._behind: Tensor | None = None
        self._stopped = False

    def stop_at(self, node: Any) -> bool:
        """Whether the next gradients may be those of the output of node, a convolution: all have to be of one."""
        layer = FirstConvolution(node)
        if self._layer is None:
            self._layer = layer
        self._stopped = self._layer.same_as(layer)
        return self._stopped

    def add(self, gradients: Tensor, weights: Tensor) -> None:
        """Add gradients [n * B, ...] with weights [n]."""
        if not self._stopped:
            ops.path_sum(self._total, gradients, weights)
            return
        if self._behind is None:
            self._behind = _zeros(gradients[: len(self._total)])
        ops.path_sum(self._behind, gradients, weights)
        self._stopped = False

    def result(self) -> Tensor:
        """The sum with respect to the input, in float32 for half types."""
        if self._layer is None or self._behind is None:
            return self._total
        return self._total.add_(self._layer.back(self._behind, self._total))


def nodes(root: Any) -> list[Any]:
    """All nodes of a graph on the way back from root."""
    found = [] if root is None else [root]
    seen = set(found)
    for node in found:
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                found.append(following)
    return found


def stops(graph: Sequence[Any], inputs: Sequence[Tensor], sums: Sequence[PathSum]) -> list[Any]:
    """Where the way back through a graph ends for each input: at its first convolution's output, or at itself.

    An input qualifies if nothing but one convolution reads it, and that as its operand.
    """
    readers = _readers(graph, inputs)
    ends: list[Any] = []
    for x, total in zip(inputs, sums, strict=True):
        node = readers.get(id(x))
        ends.append(x if node is None or not total.stop_at(node) else GradientEdge(node, 0))
    return ends


def _readers(graph: Sequence[Any], inputs: Sequence[Tensor]) -> dict[int, Any]:
    """The convolution that is the only reader of an input, by the input's id."""
    # A model's hook on an input wants each gradient; fewer dimensions than [B, C, length] take no convolution.
    leaves = {get_gradient_edge(x).node: id(x) for x in inputs if x.dim() > 2 and not x._backward_hooks}
    if len(inputs) > 1 and any(isinstance(node, torch._C._FunctionBase) for node in graph):
        return {}  # a user's function may pass nothing back; of several inputs, that one then gets zeros
    found: dict[int, list[Any]] = {key: [] for key in leaves.values()}
    for node in graph:
        for i, (following, _) in enumerate(node.next_functions):
            if following in leaves:
                found[leaves[following]].append(node if i == 0 else None)
    only = {key: nodes[0] for key, nodes in found.items() if len(nodes) == 1}
    return {key: node for key, node in only.items() if node is not None and node.name() in _NODES}


def may_stop(owner: Any, inputs: Sequence[Tensor | None], points: int) -> bool:
    """Whether to look for first convolutions of a model: they would be large, and all of its hooks can be seen."""
    large = [x is not None and x.dim() > 2 and x.numel() * points >= _LEAST for x in inputs]
    return True in large and not _has_old_hooks(owner)


def _has_old_hooks(owner: Any) -> bool:
    """Whether a module has hooks that hang on the nodes of its graph, which a backward that stops early passes by."""
    return any(vars(m).get("_is_full_backward_hook") is False for m in modules_of(owner))


def wide(x: Tensor) -> torch.dtype:
    """The dtype in which many of x are added up."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=wide(x))
