"""TorchScript's graphs: walked, inlined, and rid of what nothing needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

_jit: Any = torch._C  # not all of it is in the stubs
# Arguments with which an operator that may draw random numbers does not, where they are zero.
_SWITCHES = {"train", "training", "dropout", "dropout_p"}
_COMPLAINTS = ("prim::RaiseException", "aten::warn")


def nodes(block: Any) -> Iterator[Any]:
    """All nodes of a graph or a block, in order, those of inner blocks behind the node that they belong to."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from nodes(inner)


def holds(node: Any, kind: str) -> bool:
    """Whether a node is of a kind, or has one inside."""
    return node.kind() == kind or bool(node.findAllNodes(kind))


def draws(node: Any) -> bool:
    """Whether an operator may draw random numbers."""
    if not node.isNondeterministic():
        return False
    switches = _SWITCHES & {a.name for a in _jit.parse_schema(node.schema()).arguments}
    return not any(node.namedInput(name).toIValue() == 0 for name in switches)


def function(graph: Any) -> Callable[..., Any]:
    """A function with an executor of its own: one that is shared may run a plan that knows nothing of a rule."""
    inline(graph)
    return _jit._create_function_from_graph("forward", graph)  # type: ignore[no-any-return]


def inline(graph: Any) -> None:
    """Inline all calls: one pass leaves those inside functions that first ran while TorchScript's optimiser was off."""
    before, calls = None, _calls(graph)
    while calls and calls != before:
        _jit._jit_pass_inline(graph)
        before, calls = calls, _calls(graph)


def _calls(graph: Any) -> set[int]:
    return {n.output().unique() for n in nodes(graph) if n.kind() in ("prim::CallMethod", "prim::CallFunction")}


def remove_unused(graph: Any, start: str) -> None:
    """Remove what neither the output nor any effect depends on.

    Before the first node of kind start, no effect are checks of what nothing else needs: a forward has passed them.
    """
    removed = True
    while removed:
        _jit._jit_pass_dce_graph(graph)
        removed = False
        for node in graph.nodes():
            if holds(node, start):
                break
            if _is_check(node) and all(map(_is_only_checked, _read(node))):
                for complaint in _complaints(node):
                    complaint.destroy()
                removed = True


def _complaints(node: Any) -> list[Any]:
    return [found for kind in _COMPLAINTS for found in node.findAllNodes(kind)]


def _is_check(node: Any) -> bool:
    return node.kind() == "prim::If" and not node.outputsSize() and bool(_complaints(node))


def _read(check: Any) -> Iterator[Any]:
    """The tensors that a check looks at, itself or by their sizes and the like."""
    looking = [check, *(n for inner in check.blocks() for n in nodes(inner))]
    for node in looking:
        for value in node.inputs():
            if value.type().kind() == "TensorType":
                yield value
            elif value.node().kind() != "prim::Param":
                looking.append(value.node())


def _is_only_checked(value: Any) -> bool:
    """Whether nothing but checks depends on a value that the graph computes."""
    return value.node().kind() != "prim::Param" and all(_only_feeds_checks(use.user) for use in value.uses())


def _only_feeds_checks(node: Any) -> bool:
    around = node.owningBlock().owningNode()
    if _is_check(node) or (around is not None and _is_check(around)):
        return True
    if node.kind() == "prim::Return":
        return around is not None and _only_feeds_checks(around)
    return node.hasUses() and all(map(_is_only_checked, node.outputs()))
