"""The one table of cases: class x model x arguments. Most tests loop over it; a new class is new rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import Subject, noise, subject

METHODS = ("riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre")
KINDS = ("smoothgrad", "smoothgrad_sq", "vargrad")
# Formats whose layers are no modules of the subject.
CONVERTED = (torch.jit.ScriptModule, torch.fx.GraphModule, torch.export.ExportedProgram)


@dataclass(frozen=True)
class Case:
    """chain: class names, a NoiseTunnel before what it holds. no_peer: why captum is not the measure, if it is not.

    layer: the dotted name of the layer that the class looks at, or names, or None for a class of the inputs.
    """

    name: str
    chain: tuple[str, ...]
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    no_peer: str = ""
    layer: str | list[str] | None = None

    @property
    def subject(self) -> Subject:
        return subject(self.model)

    def keywords(self) -> dict[str, Any]:
        """The arguments of attribute: the subject's where the case has none of its own."""
        own: dict[str, Any] = {"inputs": self.subject.inputs}
        if self.has_target:
            own["target"] = self.subject.target
        if self.subject.extra:
            own["additional_forward_args"] = self.subject.extra
        if self.chain[-1].endswith("Shap"):
            own["baselines"] = self.subject.distribution
        return {**own, **self.arguments}

    @property
    def has_target(self) -> bool:
        """Whether the output is explained, and not a layer's values or a neuron."""
        name = self.chain[-1]
        return name == "NeuronConductance" or not (name == "LayerActivation" or name.startswith("Neuron"))

    def explainer(self, attr: ModuleType, forward: Callable[..., Any] | None = None) -> Any:
        """The object to ask, of fusum's or captum's attr."""
        forward = self.subject.module if forward is None else forward
        layers = [] if self.layer is None else [self._layers_of(forward)]
        method = getattr(attr, self.chain[-1])(forward, *layers, **self.options)
        for name in self.chain[-2::-1]:
            method = getattr(attr, name)(method)
        return method

    def _layers_of(self, forward: Callable[..., Any]) -> Any:
        """The layers themselves, or their names where the model was converted."""
        if isinstance(forward, CONVERTED):
            return self.layer
        module = self.subject.module
        find = (forward if type(forward) is type(module) else module).get_submodule
        return [find(name) for name in self.layer] if isinstance(self.layer, list) else find(self.layer or "")

    def attribute(self, attr: ModuleType, forward: Callable[..., Any] | None = None, **changes: Any) -> Any:
        """The result, from fixed seeds."""
        keywords = {**self.keywords(), **changes}
        explainer = self.explainer(attr, forward)
        seed()
        return explainer.attribute(**keywords)


def seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


def on(cases: list[Case]) -> list[Any]:
    """cases as pytest parameters."""
    import pytest

    return [pytest.param(case, id=case.name) for case in cases]


def having(name: str) -> list[Case]:
    """The cases in which the class of this name takes part."""
    return [case for case in CASES if name in case.chain]


def _integrated_gradients() -> Iterator[Case]:
    chain = ("IntegratedGradients",)
    for model in ("mlp", "cnn", "two_inputs", "many_kinds", "number", "column", "volume", "flat", "tokens", "one_row"):
        yield Case(f"IG-{model}", chain, model, {"n_steps": 9, "return_convergence_delta": True})
    for model in ("in_a_dict", "in_a_tuple", "in_a_namedtuple", "in_an_object", "ignores"):
        yield Case(f"IG-{model}", chain, model, {"n_steps": 4})
    one = {"inputs": (noise(5, 8),), "baselines": 0.5, "return_convergence_delta": True}
    yield Case("IG-tuple-of-one", chain, "mlp", one)
    for method in METHODS:
        why = "captum's trapezoid weights sum to 1 - 1/n" if method == "riemann_trapezoid" else ""
        arguments = {"method": method, "n_steps": 11, "return_convergence_delta": True}
        yield Case(f"IG-{method}", chain, "mlp", arguments, no_peer=why)
    yield Case("IG-defaults", chain, "mlp")
    yield Case("IG-local", chain, "mlp", {"baselines": 0.3, "n_steps": 5}, {"multiply_by_inputs": False})
    for ibs in (1, 7, 20):
        yield Case(
            f"IG-ibs-{ibs}",
            chain,
            "mlp",
            {"n_steps": 6, "internal_batch_size": ibs, "return_convergence_delta": True},
        )
    yield Case("IG-baselines-broadcast", chain, "cnn", {"baselines": noise(1, 1, 1, 8, seed=3), "n_steps": 5})
    for name, model, baselines in _baselines():
        arguments = {"baselines": baselines, "n_steps": 5, "return_convergence_delta": True}
        yield Case(f"IG-baselines-{name}", chain, model, arguments)


def _baselines() -> Iterator[tuple[str, str, Any]]:
    yield "int", "mlp", 1
    yield "float", "mlp", -0.5
    yield "one-row", "mlp", noise(1, 8, seed=3)
    yield "row-each", "mlp", noise(5, 8, seed=3)
    yield "image-row", "cnn", noise(1, 1, 8, 8, seed=3)
    yield "tuple-scalars", "two_inputs", (0, 0.25)
    yield "tuple-mixed", "two_inputs", (0.5, noise(1, 2, 3, seed=4))
    yield "tuple-tensors", "two_inputs", (noise(4, 6, seed=3), noise(4, 2, 3, seed=4))
    yield "float64-for-float32", "mlp", noise(1, 8, seed=3).double().float()
    yield "flat", "flat", noise(6, seed=3)


def _targets() -> Iterator[tuple[str, str, Any]]:
    yield "int", "mlp", 2
    yield "negative", "mlp", -1
    yield "tuple", "mlp", (0,)
    yield "list", "mlp", [0, 1, 2, 1, 0]
    yield "tensor", "mlp", torch.tensor([2, 1, 0, 0, 1])
    yield "one-element", "mlp", torch.tensor([1])
    yield "zero-dim", "mlp", torch.tensor(0)
    yield "int32", "mlp", torch.tensor(1, dtype=torch.int32)
    yield "place", "volume", (0, 3)
    yield "places", "volume", [(0, 1), (1, 3), (-1, 0)]
    yield "none", "column", None


def _every_target() -> Iterator[Case]:
    chains = {
        "IG": (("IntegratedGradients",), {"n_steps": 3, "return_convergence_delta": True}),
        "Saliency": (("Saliency",), {}),
        "IxG": (("InputXGradient",), {}),
        "GShap": (("GradientShap",), {"n_samples": 3, "return_convergence_delta": True}),
        "NT-IG": (("NoiseTunnel", "IntegratedGradients"), {"n_steps": 3, "nt_samples": 3}),
    }
    for (short, (chain, arguments)), (name, model, target) in product(chains.items(), _targets()):
        yield Case(f"{short}-target-{name}", chain, model, {"target": target, **arguments})


def _once() -> Iterator[Case]:
    models = ("mlp", "cnn", "two_inputs", "many_kinds", "number", "flat", "tokens", "in_a_dict", "ignores", "one_row")
    for model in models:
        yield Case(f"Saliency-{model}", ("Saliency",), model)
        yield Case(f"IxG-{model}", ("InputXGradient",), model)
    yield Case("Saliency-signed", ("Saliency",), "cnn", {"abs": False})


def _gradient_shap() -> Iterator[Case]:
    chain = ("GradientShap",)
    for model in ("mlp", "cnn", "two_inputs", "many_kinds", "number", "flat", "tokens", "in_a_tuple", "ignores"):
        yield Case(f"GShap-{model}", chain, model, {"return_convergence_delta": True})
    yield Case("GShap-noise", chain, "cnn", {"stdevs": 0.3, "n_samples": 4, "return_convergence_delta": True})
    yield Case("GShap-noises", chain, "two_inputs", {"stdevs": (0.3, 0.0), "return_convergence_delta": True})
    yield Case("GShap-one-sample", chain, "mlp", {"n_samples": 1, "stdevs": 0.1})
    yield Case("GShap-local", chain, "mlp", {"n_samples": 3}, {"multiply_by_inputs": False})
    yield Case("GShap-one-baseline", chain, "mlp", {"baselines": noise(1, 8, seed=9), "return_convergence_delta": True})
    yield Case("GShap-of-inputs", chain, "mlp", {"baselines": _shifted})
    yield Case("GShap-of-nothing", chain, "mlp", {"baselines": lambda: noise(6, 8, seed=8)})


def _shifted(inputs: Tensor) -> Tensor:
    return inputs * 0.5 + 0.1


def _noise_tunnel() -> Iterator[Case]:
    for kind, size in product(KINDS, (None, 1, 2, 9)):
        arguments = {"nt_type": kind, "nt_samples_batch_size": size, "nt_samples": 5, "stdevs": 0.5}
        yield Case(f"NT-Saliency-{kind}-{size}", ("NoiseTunnel", "Saliency"), "cnn", arguments)
        line = {**arguments, "n_steps": 3, "return_convergence_delta": True}
        yield Case(f"NT-IG-{kind}-{size}", ("NoiseTunnel", "IntegratedGradients"), "mlp", line)
    for model in ("two_inputs", "many_kinds", "tokens", "flat", "ignores"):
        arguments = {"nt_samples": 3, "n_steps": 3, "return_convergence_delta": True}
        yield Case(f"NT-IG-{model}", ("NoiseTunnel", "IntegratedGradients"), model, arguments)
        yield Case(f"NT-IxG-{model}", ("NoiseTunnel", "InputXGradient"), model, {"nt_samples": 2})
    yield Case("NT-Saliency-defaults", ("NoiseTunnel", "Saliency"), "mlp")
    yield Case("NT-stdevs", ("NoiseTunnel", "InputXGradient"), "two_inputs", {"stdevs": (0.1, 2.0)})
    yield Case("NT-no-noise", ("NoiseTunnel", "Saliency"), "mlp", {"stdevs": 0.0, "nt_samples": 2})
    yield from _tunnel_baselines()
    yield from _nested_tunnels()


def _tunnel_baselines() -> Iterator[Case]:
    chain, rows = ("NoiseTunnel", "IntegratedGradients"), {"n_steps": 3, "nt_samples": 5}
    for size in (None, 2):
        drawn = {"draw_baseline_from_distrib": True, "nt_samples_batch_size": size, "return_convergence_delta": True}
        yield Case(f"NT-IG-drawn-{size}", chain, "mlp", {**rows, **drawn, "baselines": noise(7, 8, seed=4)})
    pair = (noise(7, 6, seed=4), 0.5)
    yield Case(
        "NT-IG-drawn-mixed", chain, "two_inputs", {**rows, "draw_baseline_from_distrib": True, "baselines": pair}
    )
    yield Case("NT-IG-own-baselines", chain, "mlp", {**rows, "baselines": noise(5, 8, seed=4)})
    yield Case("NT-IG-one-baseline", chain, "mlp", {**rows, "baselines": noise(1, 8, seed=4)})
    yield Case("NT-IG-ibs", chain, "mlp", {**rows, "internal_batch_size": 26})


def _nested_tunnels() -> Iterator[Case]:
    shap = {"baselines": noise(5, 8, seed=4), "nt_samples": 2, "n_samples": 3, "return_convergence_delta": True}
    yield Case("NT-GShap", ("NoiseTunnel", "GradientShap"), "mlp", shap)
    twice = {"nt_samples": 2, "stdevs": 0.4}
    yield Case("NT-NT-Saliency", ("NoiseTunnel", "NoiseTunnel", "Saliency"), "mlp", twice)


RULED = ("DeepLift", "DeepLiftShap", "GuidedBackprop", "Deconvolution", "LRP")
DELTA = {"return_convergence_delta": True}


def _rules() -> Iterator[Case]:
    for name, (form, model, target) in product(RULED, _targets()):
        yield Case(f"{name}-target-{form}", (name,), model, {"target": target}, no_peer=UNSHARED.get((name, model), ""))
    for model in ("two_inputs", "many_kinds", "number", "in_a_dict", "ignores"):
        for name in ("DeepLift", "GuidedBackprop"):
            yield Case(f"{name}-{model}", (name,), model, no_peer=UNSHARED.get((name, model), ""))
    for name, model, baselines in _baselines():
        why = UNSHARED.get(("DeepLift", model), "")
        yield Case(f"DeepLift-baselines-{name}", ("DeepLift",), model, {"baselines": baselines, **DELTA}, no_peer=why)
    for name in ("DeepLift", "GuidedBackprop", "LRP"):
        yield Case(f"NT-{name}", ("NoiseTunnel", name), "mlp", {"nt_samples": 3, "stdevs": 0.3})
    refuses = "captum's tunnel refuses a distribution that is not drawn from"
    copies = {"nt_samples": 3, "stdevs": 0.3, **DELTA}
    yield Case("NT-DeepLiftShap", ("NoiseTunnel", "DeepLiftShap"), "mlp", copies, no_peer=refuses)
    drawn = {**copies, "draw_baseline_from_distrib": True}
    yield Case("NT-DeepLiftShap-drawn", ("NoiseTunnel", "DeepLiftShap"), "mlp", drawn)
    yield Case("DeepLift-local", ("DeepLift",), "mlp", {"baselines": 0.3}, {"multiply_by_inputs": False})
    yield Case("DeepLiftShap-local", ("DeepLiftShap",), "mlp", {}, {"multiply_by_inputs": False})


# Why captum is not the measure of a rule on a model.
UNSHARED = {
    **dict.fromkeys(product(["DeepLift", "LRP"], ["two_inputs", "many_kinds", "flat"]), "functional operators"),
    ("DeepLift", "cnn"): "max-pools",
    ("DeepLift", "ignores"): "captum raises AttributeError where an input is not used",
    ("GuidedBackprop", "ignores"): "captum takes modules only",
}

CASES = [*_integrated_gradients(), *_every_target(), *_once(), *_gradient_shap(), *_noise_tunnel(), *_rules()]

# One case a class, for what does not need the whole table.
SHORT = [
    Case("IG", ("IntegratedGradients",), "mlp", {"n_steps": 12, "return_convergence_delta": True}),
    Case("Saliency", ("Saliency",), "mlp"),
    Case("InputXGradient", ("InputXGradient",), "mlp"),
    Case("GradientShap", ("GradientShap",), "mlp", {"stdevs": 0.2, "return_convergence_delta": True}),
    Case("NoiseTunnel-IG", ("NoiseTunnel", "IntegratedGradients"), "mlp", {"n_steps": 6, "nt_samples": 3}),
    Case("NoiseTunnel-Saliency", ("NoiseTunnel", "Saliency"), "mlp", {"nt_type": "vargrad", "nt_samples": 4}),
    Case("DeepLift", ("DeepLift",), "mlp", DELTA),
    Case("DeepLiftShap", ("DeepLiftShap",), "mlp", DELTA),
    Case("GuidedBackprop", ("GuidedBackprop",), "mlp"),
    Case("Deconvolution", ("Deconvolution",), "mlp"),
    Case("LRP", ("LRP",), "mlp", DELTA),
]
