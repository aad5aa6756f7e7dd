"""Layers of ScriptModules: copies of the forward's graph in which the calls of layers visit the thread's probe."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property, reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from .graph import draws, function, holds, inline, nodes, remove_unused
from .probe import Mode, current
from .support import some

_jit: Any = torch._C  # not all of it is in the stubs
_SITE, _GIVEN = "fusum::site", "fusum::given"
# A traced module has a method for each of its calls; a scripted one may have some for different types.
_FORWARD = re.compile(r"forward(__)?\d*")
# How a value of a type goes into the list of tensors that is visited, and how it comes back.
_INTO = {"Tensor": "[{0}]", "Optional[Tensor]": "([] if {0} is None else [{0}])", "List[Tensor]": "{0}"}
_BACK = {
    "Tensor": "found.pop(0)",
    "Optional[Tensor]": "None if {0} is None else found.pop(0)",
    "List[Tensor]": "[found.pop(0) for _ in {0}]",
}
_MAY_HOLD_TENSORS = {"TensorType", "ClassType", "AnyType", "InterfaceType"}


class _State(threading.local):
    error: Exception | None = None


_state = _State()


def _visit(values: list[Tensor], layer: int) -> list[Tensor]:
    # Raised when the forward is over: TorchScript's interpreter rewords what an operator raises.
    try:
        return current().visit(layer, values)
    except Exception as error:
        _state.error = _state.error or error
        return values


def _give(layer: int) -> list[Tensor]:
    try:
        return current().give(layer)
    except Exception as error:
        _state.error = _state.error or error
        return []


_library = torch.library.Library("fusum", "FRAGMENT")
# To TorchScript they are operators of unknown effects: it neither leaves them out nor changes their order.
for _name, _schema, _body in (
    ("site", "(Tensor[] values, int layer) -> Tensor[]", _visit),
    ("given", "(int layer) -> Tensor[]", _give),
):
    _library.define(_name + _schema, alias_analysis="CONSERVATIVE")
    _library.impl(_name, _body, "CompositeImplicitAutograd")


class ScriptSites:
    """Layers of a ScriptModule, by their dotted names: what they return, or else what they take.

    Raises:
        ArgumentError: the module's forward calls no layer of such a name, or with values that are not looked into.
    """

    def __init__(self, module: torch.jit.ScriptModule, names: tuple[str, ...], of_input: bool) -> None:
        self._module = module._c  # not the module: what its weak entry holds must not hold it
        forward = self._module._get_method("forward")
        self._defaults = tuple([a.default_value for a in forward.schema.arguments[1:]])
        self._graph = _Marking(module, names, of_input).forward()

    def run(self, args: tuple[Any, ...], mode: Mode, stop: bool) -> Any:
        """The forward on args, in which each call of a layer visits the current probe; stop: the rest is not needed."""
        if mode is Mode.GIVE:
            forward, modules = self._cut
            if any(m.getattr("training") for m in modules):
                forward = self._whole
        else:
            forward = self._stopped if stop else self._whole
        _state.error = None
        try:
            out = forward(self._module, *args, *self._defaults[len(args) :])
        finally:
            error, _state.error = _state.error, None
            if error is not None:
                raise error from None
        return None if stop else out

    @cached_property
    def _whole(self) -> Callable[..., Any]:
        return function(self._graph.copy())

    @cached_property
    def _stopped(self) -> Callable[..., Any]:
        """The forward without what comes after the last layer; a branch or a loop around that runs to its end."""
        graph = self._graph.copy()
        for _ in list(graph.outputs()):
            graph.eraseOutput(0)
        for node in reversed(list(graph.nodes())):
            if holds(node, _SITE):
                break
            node.destroy()
        graph.registerOutput(graph.insertConstant(None))
        return function(graph)

    @cached_property
    def _cut(self) -> tuple[Callable[..., Any], list[Any]]:
        """The forward without what only fed the layers; it may run while none of the modules returned is training.

        If random numbers would no longer be drawn, the whole forward.
        """
        graph = self._graph.copy()
        inline(graph)
        modules = self._settle_training(graph)
        _jit._jit_pass_constant_propagation_immutable_types(graph)
        drawing = sum(map(draws, nodes(graph)))
        for node in graph.findAllNodes(_SITE):
            given = graph.create(_GIVEN, [node.inputsAt(1)], 1).insertBefore(node)
            given.output().setType(node.output().type())
            node.output().replaceAllUsesWith(given.output())
            node.destroy()
        remove_unused(graph, _GIVEN)
        return (self._whole, []) if sum(map(draws, nodes(graph))) < drawing else (function(graph), modules)

    def _settle_training(self, graph: Any) -> list[Any]:
        """Take it that no module is in training mode; all modules that the graph asks."""
        places, asked = _places(graph, [""]), set()
        for node in graph.findAllNodes("prim::GetAttr"):
            path = places.get(node.inputsAt(0).unique())
            if node.s("name") == "training" and path is not None:
                asked.add(path)
                with graph.insert_point_guard(node):
                    node.output().replaceAllUsesWith(graph.insertConstant(False))
        return [_at(self._module, path) for path in asked]


class _Marking:
    """Puts a marker at each call of a layer, in copies of the graphs that lead to it."""

    def __init__(self, module: torch.jit.ScriptModule, names: tuple[str, ...], of_input: bool) -> None:
        self._module, self._names, self._of_input = module._c, names, of_input
        self._present = dict(module.named_modules(remove_duplicate=False))
        self._graphs: dict[Any, Any] = {}
        self._called: set[str] = set()
        present = [name for name in names if name in self._present]
        ways = {".".join(name.split(".")[:i]) for name in present for i in range(1, 1 + len(name.split(".")))}
        self._types = {str(_at(self._module, way)._type()) for way in ways}

    def forward(self) -> Any:
        """The forward with markers; in it are the graphs of all modules that lead to layers."""
        self._refuse_hooks("")
        method = self._module._get_method("forward")
        graph = _jit.Graph()
        inputs = [graph.addInput().setType(v.type()) for v in method.graph.inputs()]
        call = graph.insertNode(graph.create("prim::CallMethod", inputs, 1)).s_("name", "forward")
        call.output().setType(next(method.graph.outputs()).type())
        graph.registerOutput(call.output())
        self._mark(graph, graph.block(), None, {inputs[0].unique(): ""})
        for name in self._names:
            if name not in self._called:
                why = "is never called" if name in self._present else "is not in the model"
                raise ArgumentError(
                    f"layer: {name!r} {why}; expected one of {some(n for n in self._present if n not in ('', name))}"
                )
        return graph

    def _method(self, name: str, given: tuple[str | None, ...]) -> Any:
        """The graph of a module's method with markers. given: what of the model it is given, module first, by path."""
        if (name, given) not in self._graphs:
            graph = _at(self._module, given[0] or "")._get_method(name).graph.copy()
            _jit._jit_pass_inline_fork_wait(graph)  # another thread would not see the probe
            self._mark(graph, graph.block(), given[0], _places(graph, given))
            self._graphs[name, given] = graph
        return self._graphs[name, given]

    def _mark(self, graph: Any, block: Any, own: str | None, places: dict[int, str]) -> None:
        """Mark the calls in a block of a graph. own: the path of the module whose graph it is."""
        for node, following in pairwise([*block.nodes(), block.returnNode()]):
            for inner in list(node.blocks()):
                self._mark(graph, inner, own, places)
            if node.kind() != "prim::CallMethod":
                continue
            path = places.get(node.inputsAt(0).unique())
            if path is None:
                self._refuse_unknown(node.inputsAt(0).type())
                continue
            name = node.s("name")
            # A module that calls itself is not called as a layer.
            is_call = path != own and _FORWARD.fullmatch(name) is not None
            layers = [i for i, layer in enumerate(self._names) if layer == path and is_call]
            if layers:
                self._mark_call(graph, node, following, layers, places)
            if any(_leads(path, layer) or (path == layer and not layers) for layer in self._names):
                _put(graph, node, self._method(name, tuple(places.get(v.unique()) for v in node.inputs())))

    def _mark_call(self, graph: Any, node: Any, following: Any, layers: list[int], places: dict[int, str]) -> None:
        name = self._names[layers[0]]
        self._called.add(name)
        self._refuse_hooks(name)
        if self._of_input:
            # A traced layer also takes parameters that it shares with others.
            taken = [i for i, v in enumerate(node.inputs()) if v.unique() not in places]
            with graph.insert_point_guard(node):
                values = _marked(graph, [node.inputsAt(i) for i in taken], layers, name)
            for i, value in zip(taken, values, strict=True):
                node.replaceInput(i, value)
        else:
            with graph.insert_point_guard(following):
                (value,) = _marked(graph, [node.output()], layers, name)
            node.output().replaceAllUsesAfterNodeWith(value.node(), value)

    def _refuse_unknown(self, type: Any) -> None:
        if type.kind() == "InterfaceType" or str(type) in self._types:
            raise ArgumentError(
                f"layer: the model chooses as it runs which {type.annotation_str} it calls, so calls of {self._names} "
                "cannot be told; expected layers that are called by their names"
            )

    def _refuse_hooks(self, name: str) -> None:
        module = _at(self._module, name)
        # Those before a layer run before its input is looked at, as in eager modules; the model's own would not run.
        if module._get_forward_hooks() or (not name and module._get_forward_pre_hooks()):
            who = repr(name) if name else "the model"
            raise ArgumentError(f"layer: {who} has hooks that were scripted with it; expected none")


def _put(graph: Any, call: Any, callee: Any) -> None:
    """Put the graph of what is called in place of a call."""
    with graph.insert_point_guard(call):
        (value,) = graph.insertGraph(callee, list(call.inputs()))
    call.output().replaceAllUsesWith(value)
    call.destroy()


def _marked(graph: Any, values: Sequence[Any], layers: Sequence[int], name: str) -> list[Any]:
    """What to go on with in place of values, behind new markers of layers at the graph's insertion point."""
    leaves: list[Any] = []
    forms = [_unpack(graph, value, leaves, name) for value in values]
    if not leaves:
        got = ", ".join(v.type().annotation_str for v in values) or "nothing"
        raise ArgumentTypeError(
            f"layer: a call of {name!r} has {got} there; expected tensors (a trace has those that a layer computes)"
        )
    marker = _marker(tuple([v.type().annotation_str for v in leaves]))
    for layer in layers:
        (visited,) = graph.insertGraph(marker, [*leaves, graph.insertConstant(layer)])
        leaves = _untupled(graph, visited)
    found = iter(leaves)
    return [form(found) for form in forms]


def _unpack(graph: Any, value: Any, leaves: list[Any], name: str) -> Callable[[Iterator[Any]], Any]:
    """Add what a value holds to leaves; a function that builds such a value of what comes in their place."""
    type = value.type()
    if type.annotation_str in _INTO:
        leaves.append(value)
        return next
    if type.kind() == "TupleType":
        parts = [_unpack(graph, part, leaves, name) for part in _untupled(graph, value)]

        def build(found: Iterator[Any]) -> Any:
            made = graph.insertNode(graph.create("prim::TupleConstruct", [part(found) for part in parts], 1))
            return made.output().setType(type)

        return build
    if _may_hold_tensors(type):
        raise ArgumentTypeError(
            f"layer: a call of {name!r} has a {type.annotation_str} there; expected tensors, tuples or a list of them"
        )
    return lambda _: value


def _untupled(graph: Any, value: Any) -> list[Any]:
    types = value.type().containedTypes()
    node = graph.insertNode(graph.create("prim::TupleUnpack", [value], len(types)))
    return [v.setType(t) for v, t in zip(node.outputs(), types, strict=True)]


def _may_hold_tensors(type: Any) -> bool:
    return type.kind() in _MAY_HOLD_TENSORS or any(map(_may_hold_tensors, type.containedTypes()))


@cache
def _marker(types: tuple[str, ...]) -> Any:
    """The graph that has values of these types visited as one list; it returns a tuple of as many."""
    names = [f"v{i}" for i in range(len(types))]
    takes = ", ".join(f"{name}: {type}" for name, type in zip(names, types, strict=True))
    into = " + ".join(_INTO[type].format(name) for name, type in zip(names, types, strict=True))
    back = ", ".join(_BACK[type].format(name) for name, type in zip(names, types, strict=True))
    source = f"def mark({takes}, layer: int):\n  found = torch.ops.{_SITE.replace('::', '.')}({into}, layer)\n"
    return torch.jit.CompilationUnit(f"{source}  return ({back},)\n").mark.graph


def _places(graph: Any, given: Iterable[str | None]) -> dict[int, str]:
    """Where in the model the modules and parameters of a graph are, by value; given: those of its inputs."""
    places = {v.unique(): path for v, path in zip(graph.inputs(), given, strict=False) if path is not None}
    for node in nodes(graph):
        if node.kind() == "prim::GetAttr" and node.inputsAt(0).unique() in places:
            path, name = places[node.inputsAt(0).unique()], node.s("name")
            places[node.output().unique()] = f"{path}.{name}" if path else name
    return places


def _at(module: Any, path: str) -> Any:
    return reduce(lambda m, name: m.getattr(name), path.split("."), module) if path else module


def _leads(path: str, layer: str) -> bool:
    """Whether a layer is inside the module at a path."""
    return layer.startswith(path + ".") if path else bool(layer)
