"""One view of every model format: functions, modules, ScriptModules, exported programs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError
from .cpu import our_way
from .graph import function

# What an exported program takes, by program: (its module where the program is not one itself, low, high).
_exported: WeakKeyDictionary[Any, tuple[nn.Module | None, int, int | None]] = WeakKeyDictionary()
# The forward of a ScriptModule, and the defaults of its arguments.
_functions: WeakKeyDictionary[Any, tuple[Callable[..., Any], tuple[Any, ...]]] = WeakKeyDictionary()
_FIXED = (torch.fx.GraphModule, torch.export.ExportedProgram)
_COUPLING = ("BatchNorm", "Dropout")
# The part of a model that is all of it, in one operator of ours.
ONE_OPERATOR = "perceptron"
# Classes whose methods, as models, take one row at a time and may draw anew, or report, at each; patch names them.
one_by_one: set[type] = set()


class Model:
    """A callable on rows. low, high: how many rows it takes at once, where an exported program fixes that.

    part: which part of the model key it is, if it is not the whole.
    """

    __slots__ = ("call", "high", "key", "low", "part")

    def __init__(
        self, call: Callable[..., Any], key: Any, low: int = 1, high: int | None = None, part: Hashable = None
    ) -> None:
        self.call, self.key, self.low, self.high, self.part = call, key, low, high, part

    def only(self, call: Callable[..., Any], part: Hashable) -> Model:
        """Part of the same model."""
        return Model(call, self.key, self.low, self.high, part)

    def rows(self, rows: int) -> int:
        """How many rows the model is given for so many."""
        return max(rows, self.low)

    def __call__(self, inputs: tuple[Tensor | None, ...], extra: tuple[Any, ...], rows: int) -> Tensor:
        """The output that is explained, [rows, ...]."""
        return self.result(self.run(self.given(inputs, extra, rows)), rows)

    def run(self, args: tuple[Any, ...]) -> Any:
        """What the model returns at its arguments."""
        if self.part == ONE_OPERATOR:
            return self.call(*args)
        with our_way(self.key, args):
            return self.call(*args)

    def given(self, inputs: tuple[Tensor | None, ...], extra: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
        """The model's arguments; short batches are padded to what an exported program takes."""
        if rows >= self.low:
            return (*inputs, *extra)
        return tuple([_pad(x, rows, self.low - rows) for x in (*inputs, *extra)])

    def result(self, returned: Any, rows: int) -> Tensor:
        """The output that is explained, [rows, ...], of what the model returned."""
        out = explained(returned)
        return out[:rows] if rows < self.low and out.dim() and out.shape[0] == self.low else out


def view(forward_func: Any) -> Model:
    """The Model of what a user passed as forward_func."""
    if isinstance(forward_func, _FIXED):
        if forward_func not in _exported:
            _exported[forward_func] = _look_into(forward_func)
        module, low, high = _exported[forward_func]
        return Model(module or forward_func, forward_func, low, high)
    if not callable(forward_func):
        raise ArgumentTypeError(
            f"forward_func: got {type(forward_func).__name__}; expected a callable, a module or an exported program"
        )
    # A bound method is made anew at every access; its object lasts. Modules are not asked: they are slow to say no.
    owner = None if isinstance(forward_func, nn.Module) else getattr(forward_func, "__self__", None)
    return Model(forward_func, forward_func if owner is None else owner)


def bare(forward_func: Any) -> Any:
    """The module inside those that spread it over devices or compile it: there operators are out of a rule's reach."""
    while True:
        if isinstance(forward_func, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            forward_func = forward_func.module
        elif type(forward_func).__name__ == "OptimizedModule":  # its class is not asked for: that would import dynamo
            forward_func = forward_func._orig_mod
        elif isinstance(forward_func, nn.Module):
            return forward_func
        else:
            return getattr(forward_func, "_torchdynamo_orig_callable", forward_func)


def uncompiled(model: Model) -> Model:
    """The same, never by a plan that TorchScript's executor has made: that knows nothing of the rule of an operator.

    Such a plan is kept once a ScriptModule has run with gradients, also of another module of its type.
    """
    module = model.call
    if not isinstance(module, nn.Module):
        return model
    if isinstance(module, torch.jit.ScriptModule):
        return Model(_private(module), model.key, model.low, model.high)
    for inner in module.modules():
        if isinstance(inner, torch.jit.ScriptModule):
            inner._c._get_method("forward")._debug_flush_compilation_cache()
    return model


def _private(module: torch.jit.ScriptModule) -> Callable[..., Any]:
    """The forward of a ScriptModule as a function with an executor of its own."""
    if module not in _functions:
        method = module._c._get_method("forward")
        defaults = tuple(a.default_value for a in method.schema.arguments[1:])
        _functions[module] = function(method.graph.copy()), defaults
    forward, defaults = _functions[module]
    inner = module._c
    return lambda *args: forward(inner, *args, *defaults[len(args) :])


def _look_into(program: Any) -> tuple[nn.Module | None, int, int | None]:
    module = program if isinstance(program, torch.fx.GraphModule) else program.module()
    low, high = 1, None
    values = (node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder")
    batch: Any = next((v.shape[0] for v in values if isinstance(v, Tensor) and v.dim()), None)
    if isinstance(batch, int):
        low = high = batch
    elif batch is not None:
        bounds = batch.node.shape_env.bound_sympy(batch.node.expr)
        low, high = max(1, int(bounds.lower)), int(bounds.upper) if bounds.upper.is_Integer else None
    # A GraphModule is not stored in its own entry: a weak key that its value holds would never be collected.
    return None if module is program else module, low, high


def explained(out: Any) -> Tensor:
    """Of several outputs `logits`, or else the first tensor."""
    if isinstance(out, Tensor):
        return out
    logits = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    items = out.values() if isinstance(out, Mapping) else out if isinstance(out, (tuple, list)) else ()
    for item in items:
        if isinstance(item, Tensor):
            return item
    raise ArgumentTypeError(
        f"forward_func: returned {type(out).__name__}; expected a tensor, or a tuple or mapping that holds one"
    )


def check_rows(out: Tensor, rows: int) -> None:
    """Raise unless out has a row for each of rows examples."""
    if out.dim() == 0 or out.shape[0] != rows:
        raise ArgumentError(
            f"forward_func: returned shape {tuple(out.shape)} for {rows} examples; expected one row an example "
            "(a model that returns one number a batch cannot be explained example by example)"
        )


def couples_rows(owner: Any) -> bool:
    """Whether cutting a batch would change the results of a model.

    It has batch norm or dropout in training mode, or is a method of a class of one_by_one.
    """
    if isinstance(owner, tuple(one_by_one)):
        return True
    # A frozen module does not have the flag.
    training = isinstance(owner, nn.Module) and getattr(owner, "training", False)
    if not training:
        return False
    names = (getattr(m, "original_name", type(m).__name__) for m in owner.modules() if m.training)
    return any(word in name for name in names for word in _COUPLING)


def keeps_rows_apart(owner: Any) -> bool:
    """Whether a row's value is known not to depend on its batch; of a function's model nothing is known."""
    return isinstance(owner, (nn.Module, torch.export.ExportedProgram)) and not couples_rows(owner)


def _pad(x: Any, rows: int, padding: int) -> Any:
    if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[0] != rows:
        return x
    return torch.cat([x, x[-1:].expand(padding, *x.shape[1:])])


def remember(models: WeakSet[Any], key: Any) -> None:
    """Put a model into a set, unless it cannot be referred to weakly."""
    with suppress(TypeError):
        models.add(key)


def remembers(models: WeakSet[Any], key: Any) -> bool:
    """Whether a model is in a set."""
    try:
        return key in models
    except TypeError:
        return False
