"""Trees of tensors: what is alone or in Python's own containers at once, all else by torch's pytree, which is slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

_ALONE = (Tensor, int, float, str, type(None))


def leaves(tree: Any, kind: type) -> list[Any]:
    """The leaves of a type."""
    if isinstance(tree, kind):
        return [tree]
    if type(tree) in (tuple, list):
        return [leaf for inner in tree for leaf in leaves(inner, kind)]
    if type(tree) is dict:
        return [leaf for inner in tree.values() for leaf in leaves(inner, kind)]
    return [] if isinstance(tree, _ALONE) else [leaf for leaf in tree_leaves(tree) if isinstance(leaf, kind)]


def mapped(change: Callable[[Any], Any], tree: Any, kind: type) -> Any:
    """The tree with its leaves of a type changed, in the order of `leaves`."""
    if isinstance(tree, kind):
        return change(tree)
    if type(tree) in (tuple, list):
        return type(tree)([mapped(change, inner, kind) for inner in tree])
    if type(tree) is dict:
        return {key: mapped(change, inner, kind) for key, inner in tree.items()}
    return tree if isinstance(tree, _ALONE) else tree_map_only(kind, change, tree)
