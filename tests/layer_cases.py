"""The rows of the case table for classes that look at a layer: class x model x layer x arguments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from torch import Tensor

from cases import DELTA, METHODS, Case, _baselines, _targets
from models import noise

# Each class with arguments that are not its defaults.
LAYER: dict[str, dict[str, Any]] = {
    "LayerActivation": {},
    "LayerGradientXActivation": {},
    "LayerGradCam": {},
    "GuidedGradCam": {},
    "LayerIntegratedGradients": {"n_steps": 5, **DELTA},
    "LayerGradientShap": {"n_samples": 3, "stdevs": 0.2, **DELTA},
    "LayerConductance": {"n_steps": 5, **DELTA},
    "InternalInfluence": {"n_steps": 5},
    "LayerDeepLift": DELTA,
    "LayerDeepLiftShap": DELTA,
    "LayerLRP": DELTA,
}
NEURON: dict[str, dict[str, Any]] = {
    "NeuronGradient": {},
    "NeuronIntegratedGradients": {"n_steps": 5},
    "NeuronConductance": {"n_steps": 5, "method": "gausslegendre"},
    "NeuronGradientShap": {"n_samples": 3, "stdevs": 0.2},
    "NeuronDeepLift": {},
    "NeuronDeepLiftShap": {},
    "NeuronGuidedBackprop": {},
    "NeuronDeconvolution": {},
}
# Those that add gradients up along a path.
BASELINED = [name for name in (*LAYER, *NEURON) if "Integrated" in name or "Conduct" in name or "Influence" in name]
LOCAL = [
    "LayerGradientXActivation",
    *(name for name in LAYER if name.endswith("Shap") or name in ("LayerIntegratedGradients", "LayerDeepLift")),
    *(name for name in NEURON if "Lift" in name or "Shap" in name or "Integrated" in name or "Conduct" in name),
]
CUSTOM = [name for name in (*LAYER, *NEURON) if "Lift" in name]
UNUSED = [
    "LayerGradientXActivation",
    "LayerGradCam",
    "LayerIntegratedGradients",
    "LayerConductance",
    "InternalInfluence",
    "LayerDeepLift",
    "NeuronConductance",
]
TUNNELS: dict[str, dict[str, Any]] = {
    "": {},
    "variance": {"nt_type": "vargrad"},
    "squares": {"nt_type": "smoothgrad_sq"},
    "in-parts": {"nt_samples_batch_size": 2},
}
# One class for each way in which the engine evaluates a model.
KINDS_OF_RUNS = [
    *("LayerActivation", "LayerGradientXActivation", "LayerIntegratedGradients", "LayerConductance"),
    *("LayerGradientShap", "LayerDeepLift", "LayerDeepLiftShap", "NeuronGradient", "NeuronConductance"),
    *("NeuronDeepLift", "NeuronDeepLiftShap"),
]


@dataclass(frozen=True)
class Place:
    """A layer of a model; taken, returned: a neuron of what it takes, and of what it returns."""

    model: str
    layer: str
    taken: Any
    returned: Any

    def case(self, name: str, of_input: bool = False, label: str = "", **arguments: Any) -> Case:
        """A row of a class here."""
        title = f"{name}-{self.model}-{self.layer}-{'in' if of_input else 'out'}{label and '-' + label}"
        own = {**LAYER, **NEURON}[name]
        if name in NEURON:
            own = {"neuron_selector": self.taken if of_input else self.returned, **own}
        if of_input:
            own = {**own, f"attribute_to_{'neuron' if name in NEURON else 'layer'}_input": True}
        why = unshared(name, self, of_input)
        return Case(title, (name,), self.model, {**own, **arguments}, no_peer=why, layer=self.layer)


PLACES = [
    Place("mlp", "0", 7, (3,)),
    Place("mlp", "1", (2,), 15),
    Place("mlp", "2", 0, -1),
    Place("skip", "inner", (1, 2, 3), (0, 5, 5)),
    Place("skip", "pool", (2, 0, 1), (1, 2, 0)),
    Place("skip", "act2", (0, 1, 1), (2, 3, 3)),
    Place("joined", "first", (2,), 1),
    Place("joined", "head", 5, (0,)),
    Place("two_inputs", "head", 4, 2),
]
HIDDEN, MAPS, HEAD = PLACES[2], PLACES[3], PLACES[7]


def unshared(name: str, place: Place, of_input: bool) -> str:
    """Why captum is not the measure of a class at a place."""
    activation = place.layer in ("1", "act2")
    if name == "LayerLRP" and (activation or place.model == "joined" or place == MAPS):
        return "captum raises AttributeError" if activation else "functional operators"
    if place.model == "two_inputs" and ("Lift" in name or "LRP" in name):
        return "functional operators"
    if name in ("LayerDeepLift", "LayerDeepLiftShap") and activation and of_input:
        return "captum's scores are not complete"
    if name in NEURON and place.layer == "first":
        return "captum raises RuntimeError where an input is not used"
    return ""


def first_summed(held: Any) -> Tensor:
    """A neuron for any layer: the sum of its first tensor."""
    return (held[0] if isinstance(held, tuple) else held).flatten(1).sum(1)


def _everywhere() -> Iterator[Case]:
    for name, place, of_input in product((*LAYER, *NEURON), PLACES, (False, True)):
        if name != "GuidedGradCam" or place.model == "skip":
            yield place.case(name, of_input)


def _every_form() -> Iterator[Case]:
    """Models whose arguments and outputs have other forms."""
    places = [("many_kinds", "body"), ("flat", "body"), ("tokens", "inner"), ("number", "body.2")]
    places += [("in_a_dict", "body.2"), ("in_an_object", "body.0"), ("one_row", "2"), ("ignores", "body.2")]
    for (model, layer), name in product(places, KINDS_OF_RUNS):
        if "Lift" not in name and (model != "ignores" or name not in NEURON):
            yield Place(model, layer, 0, first_summed).case(name)


def _every_target() -> Iterator[Case]:
    deep = {"volume": Place("volume", "body.2", 0, 1), "column": Place("column", "2", 0, 1), "mlp": HIDDEN}
    for name, (form, model, target) in product([*LAYER, "NeuronConductance"], _targets()):
        if name not in ("LayerActivation", "GuidedGradCam"):
            yield deep[model].case(name, label=f"target-{form}", target=target)


def _every_selector() -> Iterator[Case]:
    forms: list[tuple[str, Place, Any]] = [
        ("int", HIDDEN, 3),
        ("negative", HIDDEN, -2),
        ("tuple", MAPS, (0, -1, 2)),
        ("slice", MAPS, (slice(0, 2), 1, slice(1, 6, 2))),
        ("slice-of-one", HIDDEN, (slice(2, 3),)),
        ("function", MAPS, lambda held: held[:, 1].sum((1, 2)) - held[:, 0, 0, 0]),
        ("function-of-the-tuple", HIDDEN, lambda held: (held[0] if isinstance(held, tuple) else held)[:, 1]),
    ]
    for name, (form, place, selector) in product(NEURON, forms):
        yield place.case(name, label=f"selector-{form}", neuron_selector=selector)


def _on_the_way() -> Iterator[Case]:
    for name in BASELINED:
        for method in METHODS[:3]:
            yield HIDDEN.case(name, label=method, method=method, n_steps=6)
        for ibs in (1, 7, 20):
            yield HIDDEN.case(name, label=f"ibs-{ibs}", internal_batch_size=ibs)
    for name in (*BASELINED, "LayerDeepLift", "NeuronDeepLift"):
        for form, model, baselines in _baselines():
            place = {"mlp": HIDDEN, "two_inputs": PLACES[-1]}.get(model)
            if place is not None:
                yield place.case(name, label=f"baselines-{form}", baselines=baselines)


def _swapped(multipliers: Any, inputs: Any, baselines: Any) -> Any:
    return tuple(m * (b - 2 * x) for m, x, b in zip(multipliers, inputs, baselines, strict=True))


def _every_option() -> Iterator[Case]:
    for name in (*LAYER, *NEURON):
        if name in LOCAL:
            yield replace(HIDDEN.case(name, label="local"), options={"multiply_by_inputs": False})
        if name in CUSTOM:
            yield HIDDEN.case(name, label="custom", custom_attribution_func=_swapped)
        if name in UNUSED:
            for unused in ({}, {"allow_unused": True}, {"materialize_grads": True}, {"retain_graph": True}):
                yield HIDDEN.case(name, label=f"grad-kwargs-{next(iter(unused), 'empty')}", grad_kwargs=unused)
        if "return_convergence_delta" in LAYER.get(name, ()):
            yield HIDDEN.case(name, label="no-delta", return_convergence_delta=False)
    yield replace(HIDDEN.case("LayerGradientXActivation", label="on-the-cpu"), options={"memory_efficient": True})
    yield HIDDEN.case("LayerLRP", label="verbose", verbose=True)
    for positive, summed in product((False, True), repeat=2):
        how = {"relu_attributions": positive, "attr_dim_summation": summed}
        for place in (MAPS, HIDDEN):
            yield place.case("LayerGradCam", label=f"relu-{positive}-sum-{summed}", **how)
    for mode in ("bilinear", "bicubic", "area"):
        yield MAPS.case("GuidedGradCam", label=mode, interpolate_mode=mode)
    drawn = {"baselines": lambda: noise(6, 8, seed=8)}
    for name in ("LayerGradientShap", "NeuronGradientShap", "LayerDeepLiftShap", "NeuronDeepLiftShap"):
        yield HIDDEN.case(name, label="drawn", **drawn)


def _tunnels() -> Iterator[Case]:
    tunnel = {"nt_samples": 3, "stdevs": 0.3}
    for name, (form, more) in product((*LAYER, *NEURON), TUNNELS.items()):
        if not name.endswith("Shap"):
            place = MAPS if "Cam" in name else HIDDEN
            yield _tunnel(place.case(name, label=form, **tunnel, **more))
    for place in (MAPS, HEAD):
        yield _tunnel(place.case("LayerIntegratedGradients", **tunnel))


def _tunnel(case: Case) -> Case:
    why = "captum raises AttributeError" if "LayerLRP" in case.chain else case.no_peer
    return replace(case, name=f"NT-{case.name}", chain=("NoiseTunnel", *case.chain), no_peer=why)


def _odd() -> Iterator[Case]:
    """Layers that run twice, return tuples, have their rows elsewhere than first, or write in place."""
    places = [("twice", "inner"), ("siamese", "inner"), ("lstm", "layer"), ("gru", "layer")]
    places += [("merged", "inner"), ("overwriting", "inner"), ("overwriting", "act2")]
    for (model, layer), of_input, name in product(places, (False, True), KINDS_OF_RUNS):
        yield Place(model, layer, first_summed, first_summed).case(name, of_input)


EVERYWHERE = [*_everywhere()]
# One place for each way in which values are held.
SOMEWHERE = [case for case in EVERYWHERE if (case.model, case.layer) in (("mlp", "2"), ("skip", "inner"))]
ODD = [*_odd()]
LAYERED = [
    *EVERYWHERE,
    *_every_form(),
    *_every_target(),
    *_every_selector(),
    *_on_the_way(),
    *_every_option(),
    *_tunnels(),
]

# One case a class, for what does not need all of them; this one needs maps.
LAYERED_SHORT = [HIDDEN.case(name) for name in (*LAYER, *NEURON) if name != "GuidedGradCam"]
GUIDED_CAM = MAPS.case("GuidedGradCam")
