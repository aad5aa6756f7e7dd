"""Multilayer perceptrons, told from their modules or their graph: they go forward and back in one operator.

A model is one if nothing else can happen in its forward: linear layers, elementwise activations, and what changes
nothing. That is known of `nn.Sequential` without hooks, of a ScriptModule and of an exported program, not of the Python
code of other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import ops
from ..plan.arguments import Arguments
from ..plan.spec import PERTURBING, PLAIN, Plan, Rescale
from ..plan.target import Target
from ..rules.turn import is_ruled
from .graph import inline
from .model import ONE_OPERATOR, Model
from .modules import modules_of

_jit: Any = torch._C  # not all of it is in the stubs
_PLAIN = (Tensor, nn.Parameter)
# What a layer does, and its tensors: "linear", the name of an activation, "flatten" or "same".
Layer = tuple[Any, ...]
# The same of a model file, with how to get from the model what its tensors are at present.
Get = Callable[[Any], Any]
Recipe = list[tuple[str, list[Get]]]


@dataclass(slots=True)
class Perceptron:
    """Linear layers and the activation behind each. flattens: whether rows may have any shape."""

    weights: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    activations: list[str] = field(default_factory=list)
    flattens: bool = False

    @property
    def outputs(self) -> int:
        """How many numbers it returns for a row."""
        return len(self.weights[-1])

    def takes(self, x: Any) -> bool:
        """Whether x is what its layers are made for; else the model itself says what is wrong."""
        if type(x) not in _PLAIN or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            return False
        if x.layout is not torch.strided or x.dim() < 2 or (x.dim() > 2 and not self.flattens):
            return False
        tensors = (*self.weights, *self.biases)
        strange = [t for t in tensors if type(t) not in _PLAIN or t.dtype is not x.dtype or t.device != x.device]
        return not strange and x[0].numel() == self.weights[0].shape[1]

    def explains(self, target: Target) -> bool:
        """Whether a target picks one of its outputs; else `Target.pick` says what is wrong."""
        bounds = target.bounds if target.rows is not None else tuple([(c, c) for c in target.column])
        if not bounds:
            return self.outputs == 1
        ((low, high), *others) = bounds
        return not others and low >= -self.outputs and high < self.outputs

    def run(
        self, rows: Tensor, references: Tensor | None, target: Target, chosen: Tensor | None, eps: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients in the shape of rows, or multipliers; the explained outputs; those of the references.

        chosen: the target's rows for these, if it has any.
        """
        columns = _column(target.column[0] % self.outputs if target.column else 0)
        if chosen is not None:
            columns = chosen[:, 0] % self.outputs
        network = self.weights, self.biases, self.activations
        with torch.no_grad():
            other = None if references is None else references.reshape(len(references), -1)
            flat = rows.reshape(len(rows), -1)
            found, reached, ends = ops.perceptron(flat, other, *network, columns, eps)
        return found.view(rows.shape), reached, ends

    def outputs_of(self, rows: Tensor) -> Tensor:
        """What it returns for rows."""
        with torch.no_grad():
            flat = rows.reshape(len(rows), -1)
            return ops.perceptron_outputs(flat, self.weights, self.biases, self.activations)


@lru_cache(1024)
def _column(index: int) -> Tensor:
    return torch.tensor([index])


def explained(model: Any, plan: Plan, arguments: Arguments) -> Perceptron | None:
    """The perceptron whose outputs a plan explains by its gradients or by rescaling; None: it does something else."""
    by_rule = plan.rule is PLAIN or (isinstance(plan.rule, Rescale) and plan.rule.function is None)
    if not by_rule or arguments.extra or len(arguments.inputs) > 1 or isinstance(plan.points, PERTURBING):
        return None
    found = perceptron(model)
    known = found is not None and found.takes(arguments.inputs[0]) and found.explains(arguments.target)
    return found if known else None


def forward_only(model: Model, inputs: tuple[Tensor | None, ...], extra: tuple[Any, ...]) -> Model:
    """The same model, in one operator if it is a perceptron."""
    found = None if extra or len(inputs) > 1 else perceptron(model.call)
    return model if found is None or not found.takes(inputs[0]) else model.only(found.outputs_of, ONE_OPERATOR)


def perceptron(model: Any) -> Perceptron | None:
    """The layers of a model, if it is a perceptron; None of others, and where something may look on."""
    if _looks_on():
        return None
    if isinstance(model, torch.jit.ScriptModule):
        return _read(model, _of_script)
    if isinstance(model, torch.fx.GraphModule):
        return _read(model, _of_graph)
    return _assemble(_of_modules(model, [])) if type(model) is nn.Sequential else None


def ahead(model: Any, layers: Sequence[nn.Module]) -> tuple[Perceptron, list[nn.Module]] | None:
    """The perceptron that a sequence runs before the first of some of its layers, and its modules from there on."""
    if type(model) is not nn.Sequential or _looks_on() or _is_watched(model):
        return None
    modules = list(vars(model)["_modules"].values())
    first = next((i for i, module in enumerate(modules) if any(module is layer for layer in layers)), 0)
    before = _assemble([found for module in modules[:first] for found in _of_modules(module, [])])
    inside = {id(module) for each in modules[:first] for module in modules_of(each)}
    return None if before is None or inside & {id(layer) for layer in layers} else (before, modules[first:])


def _looks_on() -> bool:
    """Whether something sees each operator or module of the calling thread's forward."""
    if is_ruled() or torch.is_autocast_enabled("cpu") or _jit._get_tracing_state() is not None:
        return True
    if _jit._len_torch_function_stack() or _jit._len_torch_dispatch_stack():
        return True
    return _jit._functorch.peek_interpreter_stack() is not None or nn.modules.module._has_any_global_hook()


def _assemble(layers: Iterable[Layer]) -> Perceptron | None:
    found = Perceptron()
    for kind, *tensors in layers:
        if kind == "linear":
            weight, bias = tensors
            if weight is None:  # a parametrization computes it
                return None
            found.weights.append(weight)
            found.biases.append(weight.new_zeros(len(weight)) if bias is None else bias)
            found.activations.append("none")
        elif kind == "flatten":
            found.flattens = found.flattens or not found.weights
        elif kind != "same":
            if kind not in ops.ACTIVATIONS or not found.weights or found.activations[-1] != "none":
                return None
            found.activations[-1] = kind
    return found if found.weights else None


# An exported program checks by hooks what it was given, of which `takes` is left for a perceptron.
_EXPORT = ("torch.export.", "torch._export.")


def _is_watched(module: nn.Module) -> bool:
    """Whether something besides a module's class has a say in its forward or its backward."""
    own = vars(module)
    if own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return True
    if own["_forward_hooks"] or own["_forward_pre_hooks"]:
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if [hook for hook in hooks if not str(hook.__module__).startswith(_EXPORT)]:
            return True
    return "forward" in own and not isinstance(own["forward"], torch.ScriptMethod)


def _of_modules(module: nn.Module, found: list[Layer]) -> list[Layer]:
    """Add a module's layers to those found. (It runs at every call and looks at no attribute that takes long.)"""
    kind = type(module)
    if _is_watched(module):
        found.append(("other",))
    elif kind is nn.Sequential:
        for inner in vars(module)["_modules"].values():
            _of_modules(inner, found)
    elif kind is nn.Linear:
        parameters = vars(module)["_parameters"]
        found.append(("linear", parameters.get("weight"), parameters.get("bias")))
    elif kind in _MODULES:
        found.append((_MODULES[kind],))
    else:
        found.append((_named(module),))
    return found


def _named(module: nn.Module) -> str:
    """What a module whose settings matter does."""
    kind = type(module)
    settings = vars(module)
    if kind is nn.Flatten and (settings["start_dim"], settings["end_dim"]) == (1, -1):
        return "flatten"
    if kind is nn.GELU and settings["approximate"] == "none":
        return "gelu"
    if kind is nn.Dropout and not settings["training"]:
        return "same"
    return "other"


_MODULES: dict[type, str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Identity: "same",
}
_recipes: WeakKeyDictionary[Any, Recipe | None] = WeakKeyDictionary()


def _read(model: Any, look: Callable[[Any], Recipe | None]) -> Perceptron | None:
    """The layers of a model file, whose graph is looked at once."""
    if model not in _recipes:
        _recipes[model] = look(model)
    recipe = _recipes[model]
    if recipe is None or _is_watched(model):  # hooks may come later
        return None
    return _assemble([_layer(kind, [get(model) for get in gets]) for kind, gets in recipe])


def _layer(kind: str, values: list[Any]) -> Layer:
    if kind == "dropout":
        return ("other",) if values[0] else ("same",)
    return (kind, *values)


# Operators, and which of their operands have to be these values; "linear" and "dropout" keep some of theirs.
_OPERATORS: dict[str, tuple[str, dict[int, Any]]] = {
    "aten::linear": ("linear", {}),
    "aten::dropout": ("dropout", {}),
    "aten::flatten": ("flatten", {1: 1, 2: -1}),
    "aten::relu": ("relu", {}),
    "aten::relu_": ("relu", {}),
    "aten::tanh": ("tanh", {}),
    "aten::sigmoid": ("sigmoid", {}),
    "aten::silu": ("silu", {}),
    "aten::gelu": ("gelu", {1: "none"}),
}
# Operands that a graph leaves out.
_DEFAULTS: dict[str, list[Get | None]] = {
    "aten::linear": [None, None, lambda model: None],
    "aten::flatten.using_ints": [None, lambda model: 0, lambda model: -1],
    "aten::gelu": [None, lambda model: "none"],
}
_KEPT = {"linear": (1, 2), "dropout": (2,)}


def _recipe_of(kind: str, operands: list[Get | None]) -> tuple[str, list[Get]] | None:
    """A layer of an operator's operands, the first of which is what came before; None: it is no layer."""
    name, wanted = _OPERATORS.get(kind, ("other", {}))
    gets = [operands[i] for i in _KEPT.get(name, ())]
    known = all(operands[i] is not None and operands[i](None) == value for i, value in wanted.items())  # type: ignore[misc]
    return (name, gets) if name != "other" and known and None not in gets else None  # type: ignore[return-value]


def _of_script(model: torch.jit.ScriptModule) -> Recipe | None:
    if model._c._get_forward_hooks() or model._c._get_forward_pre_hooks():
        return None
    graph = model._c._get_method("forward").graph.copy()
    inline(graph)
    _jit._jit_pass_constant_propagation(graph)
    _jit._jit_pass_dce(graph)
    me, *inputs = graph.inputs()
    if len(inputs) != 1:
        return None
    (value,), recipe = inputs, Recipe()
    for node in graph.nodes():
        if node.kind() in ("prim::GetAttr", "prim::Constant"):
            continue
        operands = list(node.inputs())
        if not operands or operands[0].unique() != value.unique() or node.outputsSize() != 1:
            return None
        layer = _recipe_of(node.kind(), [None, *[_attribute(me, operand) for operand in operands[1:]]])
        if layer is None:
            return None
        recipe.append(layer)
        value = node.output()
    return recipe if [o.unique() for o in graph.outputs()] == [value.unique()] else None


def _attribute(me: Any, value: Any) -> Get | None:
    """How to get a value of a graph that is a constant, or an attribute of the module or of one inside."""
    node, path = value.node(), list[str]()
    if node.kind() == "prim::Constant":
        constant = value.toIValue()
        return lambda model: constant
    while node.kind() == "prim::GetAttr":
        path.insert(0, node.s("name"))
        if node.inputsAt(0).unique() == me.unique():
            return lambda model: reduce(lambda module, name: module.getattr(name), path, model._c)
        node = node.inputsAt(0).node()
    return None


def _of_graph(model: torch.fx.GraphModule) -> Recipe | None:
    value: Any = None
    recipe = Recipe()
    for node in model.graph.nodes:
        if node.op == "placeholder" and value is None:
            value = node
        elif node.op == "output":
            returned = node.args[0]
            whole = returned if isinstance(returned, (tuple, list)) else (returned,)
            return recipe if list(whole) == [value] else None
        elif node.op == "call_function" and node.args[:1] == (value,) and not node.kwargs:
            name = getattr(node.target, "name", str)()  # of an operator: aten::linear, aten::flatten.using_ints
            operands = [None, *[_operand(a) for a in node.args[1:]]]
            layer = _recipe_of(name.split(".")[0], [*operands, *_DEFAULTS.get(name, [])[len(operands) :]])
            if layer is None:
                return None
            recipe.append(layer)
            value = node
        elif node.op != "get_attr" and node.target != "_guards_fn":
            return None
    return None


def _operand(value: Any) -> Get | None:
    if not isinstance(value, torch.fx.Node):
        return lambda model: value
    return attrgetter(value.target) if value.op == "get_attr" else None  # type: ignore[arg-type]
