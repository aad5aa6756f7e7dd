"""A spec's method: a class of fusum.attr, what it is made with and what its attribute is given."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch

from .. import attr
from ..errors import ArgumentError
from .spec import Spec

# What the job itself gives: by keys of its own, or from its rows.
_OURS = {
    "forward_func", "model", "device_ids", "inputs", "target", "baselines", "additional_forward_args",
    "neuron_selector", "return_convergence_delta", "show_progress",
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """made: arguments of the class. given: those of attribute. takes: the names of all of those. inner: in a tunnel.

    many_baselines: whether baselines are a distribution, of any number of rows.
    """

    kind: Any
    made: dict[str, Any]
    given: dict[str, Any]
    takes: frozenset[str]
    inner: Method | None
    many_baselines: bool

    def of(self, model: Any) -> Any:
        """The method of a model."""
        return self.kind(model if self.inner is None else self.inner.of(model), **self.made)


def method_of(spec: Spec) -> Method:
    """The method that a spec names; raises ArgumentError where keys or arguments do not fit it, or are missing."""
    values = {name: _value(spec, name, item) for name, item in spec.arguments.items()}
    if "layer" in values:
        raise ArgumentError("arguments.layer: expected the key layer")
    if spec.layer is not None:
        values["layer"] = spec.layer
    method = _method("method", spec.method, values)
    inner = method.inner or method
    used = {*method.made, *inner.made, *method.given, *(["attribution_method"] if method.inner else []), "layer"}
    for name in values:
        if name not in used:
            known = sorted({*method.takes, *_parameters(method.kind.__init__)} - _OURS - {"layer"})
            expected = ", ".join(known) or "none"
            raise ArgumentError(f"arguments.{name}: {spec.method} takes none of that name; expected {expected}")
    fits = {
        "layer": "layer" in _parameters(inner.kind.__init__),
        "neuron": "neuron_selector" in method.takes,
        "target": "target" in method.takes,
        "baselines": "baselines" in method.takes,
    }
    for name, taken in fits.items():
        if not taken and getattr(spec, name) is not None:
            raise ArgumentError(f"{name}: got {getattr(spec, name)!r}; {inner.kind.__name__} takes none")
        if taken and getattr(spec, name) is None and name in ("layer", "neuron"):
            raise ArgumentError(f"{name}: missing; {inner.kind.__name__} needs it")
    if method.many_baselines and not isinstance(spec.baselines, str):
        raise ArgumentError(f'baselines: {spec.method} needs rows; expected "sample:K", "mean" or a file')
    return method


def _method(key: str, name: Any, values: dict[str, Any]) -> Method:
    kind = getattr(attr, name) if isinstance(name, str) and name in attr.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, attr.Attribution) and hasattr(kind, "attribute")):
        raise ArgumentError(f"{key}: got {name!r}; expected a class of fusum.attr that has attribute")
    made, called = _parameters(kind.__init__), _parameters(kind.attribute)
    inner = None
    if "attribution_method" in made:
        inner = _method("arguments.attribution_method", values.get("attribution_method"), values)
        called = {**_parameters(inner.kind.attribute), **called}
    own = {name: item for name, item in values.items() if name not in _OURS and name != "attribution_method"}
    for name, each in [*list(made.items())[1:], *called.items()]:
        if each.default is Parameter.empty and name not in {*own, *_OURS, "layer"}:
            raise ArgumentError(f"arguments.{name}: missing; {kind.__name__} needs it")
    baselines = called.get("baselines")
    many = baselines is not None and baselines.default is Parameter.empty
    return Method(
        kind,
        {name: item for name, item in own.items() if name in made},
        {name: item for name, item in own.items() if name in called},
        frozenset(called),
        inner,
        many or bool(values.get("draw_baseline_from_distrib")),
    )


def _parameters(function: Any) -> dict[str, Parameter]:
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    found = signature(function).parameters.items()
    return {name: each for name, each in found if each.kind not in several and name != "self"}


def _value(spec: Spec, name: str, value: Any) -> Any:
    """An argument as fusum.attr takes it: lists are tuples, masks are tensors, of several inputs one for each."""
    if name in ("feature_mask", "layer_mask"):
        several = sum(each.explain for each in spec.inputs) > 1
        try:
            return tuple(torch.tensor(each) for each in value) if several else torch.tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"arguments.{name}: {error}; expected lists of integers") from None
    return tuple(_value(spec, "", item) for item in value) if isinstance(value, list) else value
