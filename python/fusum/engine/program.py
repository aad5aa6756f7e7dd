"""Layers of exported programs: functions of a program's graph in which the layers' calls visit the current probe.

A graph knows operators, not what a layer's forward was given and returned. A call takes the tensors that its operators
read, in the order of their first reading, and returns those that others read, in the order of the operators.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ..errors import ArgumentError
from .probe import Mode, Stop, current
from .program_nodes import (
    inner_nodes,
    is_tensor,
    is_written_back,
    memory_of,
    must_stay,
    only_checks,
    written_by,
)

# The calls of layers that an operator stands in, outermost first: each a dotted name, and what tells its calls apart.
_Call = tuple[str, str]
_Stack = tuple[_Call, ...]

_LISTED = 12  # names of layers in an error
_NO_STACK = "_empty_nn_module_stack"  # begins the name that torch gives to nodes of its own
# These modules return all that they compute, whether or not the program reads it.
_ATTENTION = "torch.nn.modules.activation.MultiheadAttention"
_RETURN_ALL = ("torch.nn.modules.rnn.", _ATTENTION)


def visit(layer: int, *tensors: Tensor) -> list[Tensor]:
    """What a program goes on with in place of the tensors of a call of a layer."""
    return current().visit(layer, list(tensors))


def give(layer: int) -> list[Tensor]:
    """What a program goes on with in place of the tensors of a call of a layer, which were not computed."""
    return current().give(layer)


def layers_of(module: GraphModule) -> list[str]:
    """The names of the layers whose calls a program records, in the order of their first operators."""
    return list(dict.fromkeys(name for name, _ in _Program(module).calls if name))


class ProgramSites:
    """The outputs, or inputs, of layers of an exported program."""

    def __init__(self, module: GraphModule, names: tuple[str, ...], of_input: bool) -> None:
        self._shell = _shell(type(module), module)
        self._marked = _marked(_Program(module), names, of_input)
        self._forwards: dict[str, Any] = {}
        self._lock = threading.Lock()

    def run(self, args: tuple[Any, ...], mode: Mode, stop: bool) -> Any:
        """The forward on args, in which each call of a layer visits the current probe.

        stop: nothing is needed after the last visit; then None is returned.
        """
        if mode is Mode.GIVE:
            return self._forward("give")(*args)
        if not stop:
            return self._forward("whole")(*args)
        try:
            return self._forward("stop")(*args)
        except Stop:
            return None

    def _forward(self, kind: str) -> Any:
        with self._lock:
            if kind not in self._forwards:
                self._forwards[kind] = _with_forward(self._shell, _variant(self._shell, self._marked, kind), kind)
            return self._forwards[kind]


def _shell(kind: type, module: GraphModule) -> Any:
    """A module with the parameters, buffers and hooks that module has, also later on; it does not keep module alive."""
    shell: Any = object.__new__(kind)
    held = vars(module).items()
    # The graph knows its module, as do the methods that an exported program gives it.
    own = {key: value for key, value in held if key != "_graph" and getattr(value, "__self__", None) is not module}
    object.__setattr__(shell, "__dict__", own)
    return shell


def _with_forward(shell: Any, graph: Graph, kind: str) -> Any:
    """The module with the forward of a graph; it goes through the module's hooks, which check the arguments."""
    run: Callable[..., Any] = type(GraphModule(shell, graph)).forward

    def forward(self: Any, *args: Any) -> Any:
        out = run(self, *args)
        if kind == "stop":
            raise Stop
        return out

    return _shell(type("Marked", (type(shell),), {"forward": forward}), shell)


# The calls of layers in a program.


class _Site(NamedTuple):
    """A call of a layer: its visit takes values and stands before point; uses: the nodes that read what it returns."""

    layer: int
    depth: int
    point: Node
    values: list[Node]
    uses: list[list[Node | None]]  # of each value; None: whatever else may


class _Program:
    """The graph of a program, and where layers are called in it."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.nodes = list(module.graph.nodes)
        self.place = {node: place for place, node in enumerate(self.nodes)}
        self.memory = memory_of(self.nodes)
        self.writes = {node: written_by(module, node) for node in self.nodes}
        stacks = {node: _stack(module, node) for node in self.nodes}
        recorded = dict.fromkeys(call for node, stack in stacks.items() if is_tensor(node) for call in stack)
        self.calls: dict[_Call, list[Node]] = {call: [] for call in recorded}
        self.depth: dict[_Call, int] = {}
        for node, stack in stacks.items():
            for depth, call in enumerate(stack):
                if call in recorded:
                    self.calls[call].append(node)
                    self.depth[call] = depth
        self.inside_blocks = {name for node, stack in stacks.items() for name in _hidden(module, node, stack)}

    def sites(self, layer: int, name: str, of_input: bool) -> list[_Site]:
        """The calls of a layer."""
        if name in self.inside_blocks:
            raise ArgumentError(
                f"layer: {name!r} is called inside a block of this program (a branch, a loop or a context such as "
                "no_grad); expected a layer that is called outside of them"
            )
        calls = [call for call in self.calls if call[0] == name]
        if not calls:
            raise ArgumentError(
                f"layer: {name!r} has no operator in this program; expected one of {_listed(self.calls)}"
            )
        return [self._site(layer, call, of_input) for call in calls]

    def _site(self, layer: int, call: _Call, of_input: bool) -> _Site:
        group = set(self.calls[call])
        values = self._taken(call) if of_input else self._returned(call)
        start = self.place[self.calls[call][0]] if of_input else self.place[self.calls[call][-1]] + 1
        uses: list[list[Node | None]] = []
        for value in values:
            users = [user for user in value.users if (user in group) == of_input]
            early = self.place[value] >= start or any(self.place[user] < start for user in users)
            if early or self._is_torn(value, users, start):
                raise ArgumentError(
                    f"layer: {call[0]!r} shares memory that this program writes to in place, or its operators are "
                    "mixed with others; expected a layer whose tensors can be replaced (a program from "
                    "run_decompositions() writes nothing in place)"
                )
            uses.append([*users] if of_input else [*users, None])
        return _Site(layer, self.depth[call], self.nodes[start], values, uses)

    def _taken(self, call: _Call) -> list[Node]:
        group = dict.fromkeys(self.calls[call])
        read = dict.fromkeys(a for node in group for a in node.all_input_nodes)
        values = [node for node in read if node not in group and is_tensor(node)]
        if not values:
            raise ArgumentError(f"layer: {call[0]!r} takes no tensor in this program; expected a layer that does")
        return values

    def _returned(self, call: _Call) -> list[Node]:
        group = set(self.calls[call])
        tensors = [node for node in self.calls[call] if is_tensor(node)]
        kind = _kind(tensors[0], call)
        values = [
            node
            for node in tensors
            if any(user not in group and not is_written_back(user) for user in node.users)
            or (kind.startswith(_RETURN_ALL) and not node.users)
        ]
        if kind.startswith(_ATTENTION):  # it computes its output after its weights, and returns it before them
            values.sort(key=lambda node: not _leads_to(node, group, "out_proj.weight"))
        return values or self._unread(call, tensors)

    def _unread(self, call: _Call, tensors: list[Node]) -> list[Node]:
        """What a call returns of which the program reads nothing: its last value."""
        group = set(self.calls[call])
        kept = [node for node in tensors if not any(map(is_written_back, node.users))]
        written = {self.memory[w] for node in group for w in self.writes[node]}
        outside = {self.memory[node] for node in self.nodes if node not in group and node.op != "get_attr"}
        buffers = {self.memory[node] for node in self.nodes if node.op == "get_attr"}
        if not kept or written & outside or self.memory[kept[-1]] in written & buffers:
            raise ArgumentError(
                f"layer: {call[0]!r} computes nothing that this program reads, but writes to memory in place; expected "
                "a layer that returns a tensor of its own"
            )
        source = kept[-1].args[0]
        if kept[-1].target is operator.getitem and isinstance(source, Node):
            return list(source.users)
        return kept[-1:]

    def _is_torn(self, value: Node, users: Sequence[Node], start: int) -> bool:
        """Whether a write would be missed where users read a copy of value from start on, and others value itself."""
        memory, later = self.memory[value], self.nodes[start:]
        if all(self.memory[w] is not memory for node in later for w in self.writes[node]):
            return False
        copies: set[Node] = set()
        for node in later:
            for a in node.all_input_nodes:
                if self.memory[a] is not memory:
                    continue
                if a not in copies and not (a is value and node in users):
                    return True
                if self.memory[node] is memory:
                    copies.add(node)
        return False


def _listed(calls: Iterable[_Call]) -> str:
    names = list(dict.fromkeys(name for name, _ in calls if name))
    more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more


def _kind(node: Node, call: _Call) -> str:
    """The class of a layer in whose call a node stands."""
    _, kind = node.meta.get("nn_module_stack", {}).get(call[1], ("", ""))
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)


def _leads_to(node: Node, group: Collection[Node], parameter: str) -> bool:
    """Whether a node depends, by nodes of a group, on a parameter whose name ends so."""
    found = [node]
    for n in found:
        found += [a for a in n.all_input_nodes if (a in group or a.op == "get_attr") and a not in found]
    return any(n.op == "get_attr" and str(n.target).endswith(parameter) for n in found)


def _stack(root: Any, node: Node) -> _Stack:
    if node.op != "call_function":
        return ()
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return _stack(root, node.args[0])  # a block's results bear the names of layers inside
    own = (node.meta.get("nn_module_stack") or {}).items()
    stack = tuple((name, key) for key, (name, _) in own if not name.startswith(_NO_STACK))
    if node.meta.get("is_functional_regenerated"):  # a view made anew, in the name of who reads it first
        return _common([stack, *(_stack(root, a) for a in node.all_input_nodes if is_tensor(a))])
    inner = _common([_stack(block, n) for block, n in inner_nodes(root, node) if n.op == "call_function"])
    return inner if inner[: len(stack)] == stack else stack


def _common(stacks: Sequence[_Stack]) -> _Stack:
    """The calls that all stacks begin with."""
    return tuple(level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*stacks, strict=False)))


def _hidden(root: Any, node: Node, stack: _Stack) -> Iterator[str]:
    """The names of layers that are called inside a block that a node runs, so far as they can be told."""
    for block, n in inner_nodes(root, node):
        if n.op != "call_function":
            continue
        inner = _stack(block, n)
        yield from (call[0] for call in inner if call not in stack)
        yield from _hidden(block, n, stack)
        if inner[: len(stack)] != stack:  # a branch does not tell its layers; their parameters do
            names = [str(a.target).split(".") for a in node.all_input_nodes if a.op == "get_attr"]
            prefixes = {".".join(name[:end]) for name in names for end in range(1, len(name))}
            yield from prefixes - {name for name, _ in stack}


# The marks.


def _marked(program: _Program, names: Sequence[str], of_input: bool) -> Graph:
    """A copy of the graph in which each call of a layer visits the current probe."""
    sites = [site for layer, name in enumerate(names) for site in program.sites(layer, name, of_input)]
    graph, copied = _copy(program.module.graph)
    now: dict[tuple[Node | None, Node], Node] = {}  # what a node reads for a value
    # The first visit to an output is that of the layer inside; to an input, that of the one around.
    for site in sorted(sites, key=lambda site: site.depth if of_input else -site.depth):
        read = [now.get((uses[0], v), copied[v]) for v, uses in zip(site.values, site.uses, strict=True)]
        with graph.inserting_before(copied[site.point]):
            call = graph.call_function(visit, (site.layer, *read))
            returned = [graph.call_function(operator.getitem, (call, place)) for place in range(len(read))]
        for value, uses, old, new in zip(site.values, site.uses, read, returned, strict=True):
            for user in uses:
                now[user, value] = new
                if user is not None:
                    copied[user].replace_input_with(old, new)
    return graph


def _copy(graph: Graph) -> tuple[Graph, dict[Node, Node]]:
    """A copy of a graph, and its nodes by those that they were copied from."""
    copied: dict[Node, Node] = {}
    new = Graph()
    new.output(new.graph_copy(graph, copied))
    copied[graph.output_node()] = new.output_node()
    new.set_codegen(graph._codegen)
    return new, copied


# What need not be computed.


def _variant(root: Any, marked: Graph, kind: str) -> Graph:
    """The graph that is run: without what only leads to values that are given, or what follows the last visit."""
    graph, _ = _copy(marked)
    visits = graph.find_nodes(op="call_function", target=visit)
    if kind == "whole":
        return graph
    if kind == "give":
        for node in visits:
            node.target, node.args = give, node.args[:1]
    else:
        end = graph.output_node()
        end.args = (map_arg(end.args[0], lambda _: None),)
        _keep(graph, {*takewhile(lambda node: node is not visits[-1], graph.nodes), visits[-1], end})
    needed = _needed(root, graph)
    if not any(must_stay(root, node) for node in graph.nodes if node not in needed):
        _keep(graph, needed)
    return graph


def _keep(graph: Graph, nodes: Collection[Node]) -> None:
    for node in reversed(list(graph.nodes)):
        if node not in nodes:
            graph.erase_node(node)


def _needed(root: Any, graph: Graph) -> set[Node]:
    """The nodes that the output, the visits or memory that outlasts the forward depend on."""
    memory = memory_of(graph.nodes)
    lasting = {memory[node] for node in graph.nodes if node.op in ("placeholder", "get_attr")}
    needed: set[Node] = set()
    read: set[Node] = set()
    for node in reversed(graph.nodes):
        written = {memory[w] for w in written_by(root, node)}
        is_end = node.op in ("placeholder", "output") or node.target in (visit, give)
        if node in needed or is_end or not written.isdisjoint(read | lasting):
            needed |= {node, *node.all_input_nodes}
            read |= {memory[a] for a in node.all_input_nodes}
    return needed | {node for node in graph.nodes if only_checks(node) and needed.issuperset(node.all_input_nodes)}
