"""What the nodes of an exported program's graph read, write, share and draw."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

Operator = torch._ops.OpOverload
Block = torch._ops.HigherOrderOperator  # runs graphs of its own: branches, loops, or a context such as no_grad

# These may return the memory that they are given, though their schemas do not say so.
_SHARING = {
    *("alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout", "atleast_1d", "atleast_2d", "atleast_3d"),
    *("broadcast_tensors", "conj_physical", "data", "einsum", "meshgrid", "sum_to_size", "to_dense", "type_as"),
    *("unflatten_dense_tensors", "unsafe_chunk", "unsafe_split"),
}
_STATISTICS = ("running_mean", "running_var")  # written in training, though no schema says so
_TRAINS = ("train", "training", "use_input_stats")
_DRAWS = (*_TRAINS, "dropout", "dropout_p")  # where one of them is off, nothing is drawn


def is_tensor(node: Node) -> bool:
    """Whether a node's value is a tensor, and no parameter or buffer."""
    return node.op != "get_attr" and isinstance(node.meta.get("val"), Tensor)


def _nodes(value: Any) -> list[Node]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Node)]


def _arguments(node: Node) -> Iterator[tuple[Any, Any]]:
    """The arguments of an operator's schema, and what a node passes for them."""
    target: Any = node.target
    for place, argument in enumerate(target._schema.arguments):
        default = node.kwargs.get(argument.name, argument.default_value)
        yield argument, node.args[place] if place < len(node.args) else default


def inner_nodes(root: Any, node: Node) -> list[tuple[GraphModule, Node]]:
    """The nodes of the blocks that a node runs, each with its block."""
    if not isinstance(node.target, Block):
        return []
    blocks = [operator.attrgetter(str(a.target))(root) for a in node.all_input_nodes if a.op == "get_attr"]
    return [(block, n) for block in blocks if isinstance(block, GraphModule) for n in block.graph.nodes]


def written_by(root: Any, node: Node) -> list[Node]:
    """The nodes whose memory a node writes to."""
    if isinstance(node.target, Block):
        return node.all_input_nodes if any(written_by(block, n) for block, n in inner_nodes(root, node)) else []
    if not isinstance(node.target, Operator):
        return []
    arguments = list(_arguments(node))
    trains = any(argument.name in _TRAINS and value is True for argument, value in arguments)
    hidden = _STATISTICS if trains else ()
    return _nodes([v for a, v in arguments if a.name in hidden or (a.alias_info is not None and a.alias_info.is_write)])


def is_written_back(node: Node) -> bool:
    """Whether a node stands for what was a write to a buffer in place."""
    if node.target is not torch.ops.aten.copy_.default or node.users:
        return False
    target = node.args[0]
    return isinstance(target, Node) and target.op in ("get_attr", "placeholder")


def _shares(node: Node) -> list[Node]:
    """The nodes whose memory a node's value may share."""
    target = node.target
    if target is operator.getitem:
        source = _nodes(node.args[0])
        return source if any(_shares(n) for n in source) else []
    if isinstance(target, Block):
        return [a for a in node.all_input_nodes if a.op != "get_attr"]
    if not isinstance(target, Operator):
        return []
    if target._schema.name.removeprefix("aten::") in _SHARING:
        return node.all_input_nodes
    if all(value.alias_info is None for value in target._schema.returns):
        return []
    return _nodes([value for argument, value in _arguments(node) if argument.alias_info is not None])


def memory_of(nodes: Iterable[Node]) -> dict[Node, Node]:
    """For each node one that stands for all that may share its memory."""
    memory: dict[Node, Node] = {}
    for node in nodes:
        joined = {memory[other] for other in _shares(node)} or {node}
        memory[node] = root = joined.pop()
        if joined:
            memory.update({n: root for n, old in memory.items() if old in joined})
    return memory


def only_checks(node: Node) -> bool:
    """Whether a node does nothing but raise."""
    if node.op == "call_module":
        return node.target == "_guards_fn"
    target = node.target
    return isinstance(target, Operator) and target.namespace == "aten" and not target._schema.returns


def must_stay(root: Any, node: Node) -> bool:
    """Whether leaving a node out would change more than what reads its value: it draws numbers, or may do anything."""
    if node.op in ("placeholder", "get_attr", "output") or only_checks(node):
        return False
    target = node.target
    if isinstance(target, Block):
        inner = inner_nodes(root, node)
        return not inner or any(must_stay(block, n) or bool(written_by(block, n)) for block, n in inner)
    if not isinstance(target, Operator):
        return node.op != "call_function"
    if torch.Tag.nondeterministic_seeded in target.tags:
        return not any(argument.name in _DRAWS and value in (False, 0) for argument, value in _arguments(node))
    return not target._schema.is_mutable and node.is_impure(impure_random=False)
