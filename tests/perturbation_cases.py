"""The rows of the case table for methods that change inputs and watch the output: class x model x arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from cases import Case, _baselines, _targets
from layer_cases import HIDDEN, MAPS, PLACES, Place, first_summed
from models import Mlp, Subject, Volume, Wrapped, noise, register, subject, tokens

SAMPLING = ("ShapleyValueSampling", "ShapleyValues")
MASKED = ("FeatureAblation", "FeaturePermutation", *SAMPLING)
METHODS = (*MASKED, "Occlusion")
BASELINED = [name for name in METHODS if name != "FeaturePermutation"]
EVALS = (1, 2, 7)
# Why captum is not the measure of a row.
THINNED = "captum raises for most masks of fewer dimensions than inputs"
ROUNDED = "captum rounds baselines of integers to integers"


class Mixed(nn.Module):
    """Takes token ids and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(20, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(ids).mean(1) * self.body(x)))


class Three(nn.Module):
    """Takes three inputs, of which the second has no dimensions but its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(self.body(a) * b[:, None]) + c.flatten(1).sin().sum(1, keepdim=True)


class Ragged(nn.Module):
    """Takes inputs of any numbers of rows, and returns one number."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a.cumsum(1).tanh().sum() + (b.float() ** 2).mean().nan_to_num()


def made_of(form: Callable[[Tensor], Any], x: Tensor | None = None, target: Any = None) -> Callable[[], Subject]:
    """A model that is a function of the inputs."""
    return lambda: Subject(Wrapped(nn.Identity(), form), noise(4, 6) if x is None else x, target)


def topped(form: Callable[[Tensor], Any], target: Any = None) -> Callable[[], Subject]:
    """A model whose output is a function of all rows of scores."""
    return lambda: Subject(Wrapped(Mlp(6), form), noise(4, 6), target)


# What they return has no row for each example.
AGGREGATES: dict[str, Callable[[], Subject]] = {
    "sum_of_batch": topped(lambda out: out.sum()),
    "one_of_batch": topped(lambda out: out.sum().reshape(1)),
    "row_of_batch": topped(lambda out: torch.stack([out.sum(), out.mean(), out.max()])[None]),
    "python_float": topped(lambda out: out.double().sum().item()),
    "python_int": topped(lambda out: int(100 * out.sum())),
}
# An example's row depends on the others'.
MIXING: dict[str, Callable[[], Subject]] = {
    "softmax_of_batch": topped(lambda out: out.softmax(0), 1),
    "centred": topped(lambda out: out[:, 0] - (out[:, 1] * out[:, 2]).mean()),
    "ranked": topped(lambda out: out[:, 0] * out[:, 1].argsort()),
}
register(
    {
        "mixed": lambda: Subject(Mixed(), (tokens(4, 3), noise(4, 4)), 1),
        "three": lambda: Subject(Three(), (noise(4, 6), noise(4, seed=1), noise(4, 2, 3, seed=2)), 1),
        "ragged": lambda: Subject(Ragged(), (noise(5, 6), tokens(7))),
        "hollow": lambda: Subject(Ragged(), (noise(5, 6), tokens(0))),
        "double": lambda: Subject(Mlp(6).double(), noise(4, 6).double(), 1),
        "half": lambda: Subject(Mlp(6).half(), noise(4, 6).half(), 1),
        "bfloat16": lambda: Subject(Mlp(6).bfloat16(), noise(4, 6).bfloat16(), 1),
        "narrow": lambda: Subject(Volume(), noise(3, 6), (1, 2)),
        "whole": made_of(lambda x: (x.float() ** 2 / 7).cumsum(1), tokens(4, 6), 3),
        "whole_out": made_of(lambda x: x**2 + x.flip(1), tokens(4, 6), 3),
        "flags": made_of(lambda x: (x.float() * torch.arange(6)).cumsum(1).tanh(), noise(4, 6) > 0, 4),
        **AGGREGATES,
        **MIXING,
    }
)
TYPES = ("double", "half", "bfloat16", "whole", "whole_out", "flags")


def grouped(model: str, features: int) -> Any:
    """A mask of so many features for a model's inputs, in one row; inputs share features."""
    masks = tuple(torch.arange(x[:1].numel()).view(x[:1].shape) % features for x in subject(model).tensors)
    return masks if isinstance(subject(model).inputs, tuple) else masks[0]


def windows(model: str) -> Any:
    """Windows of at most two places along each dimension."""
    shapes = tuple(tuple(min(2, n) for n in x.shape[1:]) for x in subject(model).tensors)
    return shapes if isinstance(subject(model).inputs, tuple) else shapes[0]


def case(name: str, model: str, label: str = "", no_peer: str = "", **arguments: Any) -> Case:
    """A row of a class, with few features or samples where captum needs many evaluations."""
    own: dict[str, Any] = {}
    if name == "Occlusion":
        own["sliding_window_shapes"] = windows(model)
    elif name == "ShapleyValues":
        own["feature_mask"] = grouped(model, 3)
    elif name == "ShapleyValueSampling":
        own["n_samples"] = 3
    title = f"{name}-{model}{label and '-' + label}"
    return Case(title, (name,), model, {**own, **arguments}, no_peer=no_peer)


def _every_model() -> Iterator[Case]:
    models = ("mlp", "cnn", "two_inputs", "many_kinds", "number", "column", "volume", "tokens", "one_row", "three")
    models += ("in_a_dict", "in_a_namedtuple", "in_an_object", "ignores", "embedded", "compared", "mixed", *TYPES)
    for name, model, evals in product(METHODS, models, EVALS):
        yield case(name, model, f"{evals}-at-once", perturbations_per_eval=evals)
    for name, model, evals in product(METHODS, MIXING, EVALS):
        if name != "ShapleyValues" or evals == 1:  # which takes each coalition once, so others share its batch
            yield case(name, model, f"{evals}-at-once", perturbations_per_eval=evals)
    for name, evals in product(MASKED, EVALS):
        yield case(name, "flat", f"{evals}-at-once", perturbations_per_eval=evals)
    for name, model in product(METHODS, AGGREGATES):
        yield case(name, model)
    for name, model in product(MASKED[:2], ("ragged", "hollow")):
        yield case(name, model)
    mask = (torch.arange(6)[None], torch.tensor(6))
    yield case("FeatureAblation", "ragged", "masked", feature_mask=mask, baselines=(0.5, 3))


def _every_target() -> Iterator[Case]:
    for name, (form, model, target), evals in product(METHODS, _targets(), (1, 3)):
        yield case(name, model, f"target-{form}-{evals}", target=target, perturbations_per_eval=evals)
    for name, model, evals in product(METHODS, ("mlp", "volume"), (1, 3)):
        yield case(name, model, f"no-target-{evals}", target=None, perturbations_per_eval=evals)


def _every_baseline() -> Iterator[Case]:
    for name, (form, model, baselines), evals in product(BASELINED, _baselines(), EVALS):
        if (name, model) != ("Occlusion", "flat"):
            yield case(name, model, f"baselines-{form}-{evals}", baselines=baselines, perturbations_per_eval=evals)
    whole: list[tuple[str, str, Any]] = [
        ("int", "whole", 3),
        ("float", "whole", 0.5),
        ("row-of-floats", "whole", noise(1, 6, seed=3)),
        ("row-of-ints", "whole", tokens(1, 6, seed=3)),
        ("bool", "flags", 1),
        ("row-of-bools", "flags", noise(4, 6, seed=3) > 0),
        ("mixed", "mixed", (0, noise(1, 4, seed=3))),
    ]
    for name, (form, model, baselines) in product(BASELINED, whole):
        rounded = name in SAMPLING and (model, form) == ("whole", "float")
        yield case(name, model, f"baselines-{form}", ROUNDED if rounded else "", baselines=baselines)


MASKS: list[tuple[str, str, Any]] = [
    ("one-row", "mlp", torch.tensor([[0, 0, 1, 3, 2, 1, 1, 2]])),
    ("row-each", "mlp", tokens(5, 8, most=4, seed=5) - 1),
    ("column", "mlp", torch.tensor([[0], [1], [2], [1], [0]])),
    ("one-number", "mlp", torch.tensor([[0]])),
    ("missing", "mlp", torch.tensor([[1, 1, 3, 3, 3, 4, 1, 4]])),
    ("missing-in-some-rows", "mlp", torch.tensor([[0] * 8, [1] * 8, [3] * 8, [0, 3] * 4, [4, 0] * 4])),
    ("int32", "mlp", torch.tensor([[0, 0, 1, 1, 2, 2, 2, 2]], dtype=torch.int32)),
    ("uint8", "mlp", torch.tensor([[0, 0, 1, 1, 2, 2, 2, 2]], dtype=torch.uint8)),
    ("quarters", "cnn", (torch.arange(8)[:, None] // 4 * 2 + torch.arange(8) // 4)[None, None]),
    ("columns-each", "cnn", tokens(3, 1, 1, 8, most=5, seed=5) - 1),
    ("shared", "two_inputs", (torch.tensor([[0, 1, 1, 2, 2, 2]]), torch.tensor([[[2, 0, 3], [3, 3, 0]]]))),
    ("apart", "two_inputs", (torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.tensor([[[2], [3]]]))),
    ("shared-each", "two_inputs", (tokens(4, 6, most=4, seed=5) - 1, torch.tensor([[[3, 0, 1]]]))),
    ("one-for-all", "two_inputs", (torch.tensor([[0]]), torch.tensor([[[0]]]))),
    ("places", "tokens", torch.tensor([[[0], [0], [1], [1], [2], [2], [3]]])),
    ("places-each", "tokens", (tokens(3, 7, 1, most=4, seed=5) - 1)),
    ("numbers-and-ids", "mixed", (torch.tensor([[0, 1, 0]]), torch.tensor([[2, 1, 1, 3]]))),
]
FEWER: list[tuple[str, str, Any]] = [
    ("no-rows", "mlp", torch.tensor([0, 0, 1, 3, 2, 1, 1, 2])),
    ("no-dimensions", "mlp", torch.tensor(0)),
    ("no-channel", "cnn", torch.arange(8)[:, None] // 4 * 2 + torch.arange(8) // 4),
    ("lines", "cnn", (torch.arange(8) // 3)[:, None]),
]


def _every_mask() -> Iterator[Case]:
    for name, (form, model, mask), evals in product(MASKED, MASKS, EVALS):
        yield case(name, model, f"mask-{form}-{evals}", feature_mask=mask, perturbations_per_eval=evals)
    for name, (form, model, mask), evals in product(MASKED, FEWER, EVALS):
        yield case(name, model, f"mask-{form}-{evals}", THINNED, feature_mask=mask, perturbations_per_eval=evals)
    for name, model in product(MASKED, AGGREGATES):
        yield case(name, model, "masked", feature_mask=torch.tensor([[0, 1, 1, 2, 0, 2]]))
    for name, model, evals in product(MASKED[:3], MIXING, EVALS):
        mask = torch.tensor([[0, 1, 1, 2, 0, 2]])
        yield case(name, model, f"masked-{evals}", feature_mask=mask, perturbations_per_eval=evals)


WINDOWS: list[tuple[str, str, Any, Any]] = [
    ("side-by-side", "mlp", (2,), 2),
    ("uneven", "mlp", (3,), 2),
    ("short-tail", "mlp", (3,), (3,)),
    ("all", "mlp", (8,), None),
    ("all-far", "mlp", (8,), 11),
    ("single", "mlp", (1,), 1),
    ("squares", "cnn", (1, 2, 2), 1),
    ("far", "cnn", (1, 4, 3), (1, 4, 2)),
    ("uneven-image", "cnn", (1, 3, 5), (1, 2, 4)),
    ("pair", "two_inputs", ((2,), (1, 2)), (2, (1, 1))),
    ("pair-by-numbers", "two_inputs", ((4,), (2, 2)), (3, 1)),
    ("pair-default", "two_inputs", ((2,), (1, 2)), None),
    ("time", "tokens", (2, 5), (1, 5)),
    ("three", "three", ((3,), (), (1, 2)), (2, 1, (1, 1))),
]


def _every_window() -> Iterator[Case]:
    for (form, model, shapes, strides), evals in product(WINDOWS, EVALS):
        how = {"sliding_window_shapes": shapes, "strides": strides, "perturbations_per_eval": evals}
        yield case("Occlusion", model, f"{form}-{evals}", **how)
        yield case("Occlusion", model, f"{form}-no-target-{evals}", target=None, **how)


def _reversed(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x.flip(0), x)


def _noisy(x: Tensor, mask: Tensor) -> Tensor:
    return x + mask * torch.randn(x.shape)


def _every_option() -> Iterator[Case]:
    for (form, function), model, evals in product(
        (("reversed", _reversed), ("noisy", _noisy)), ("mlp", "two_inputs", "centred"), EVALS
    ):
        for masked, mask in (("", None), ("-masked", grouped(model, 4))):
            how = {"perturbations_per_eval": evals, "feature_mask": mask}
            row = case("FeaturePermutation", model, f"{form}{masked}-{evals}", **how)
            yield replace(row, options={"perm_func": function})
    for name in METHODS:
        yield case(name, "mlp", "tuple-of-one", inputs=(noise(5, 8),))
        yield case(name, "mlp", "progress", show_progress=True)
        yield case(name, "two_inputs", "none-in-extra", additional_forward_args=(torch.ones(()),))


PERTURBED = [
    *_every_model(),
    *_every_target(),
    *_every_baseline(),
    *_every_mask(),
    *_every_window(),
    *_every_option(),
]

# Several calls, tuples and rows elsewhere: captum takes one call, raises for tuples, or adds rows up.
ODD_LAYERS = ("twice", "siamese", "compared", "lstm", "merged")
MORE_LAYERS = [
    *(("many_kinds", "body"), ("flat", "body"), ("tokens", "inner"), ("number", "body.2"), ("volume", "body.2")),
    *(("in_a_dict", "body.2"), ("one_row", "2"), ("ignores", "body.2"), ("embedded", "words"), ("embedded", "body")),
    *(("twice", "inner"), ("siamese", "inner"), ("lstm", "layer"), ("merged", "inner"), ("overwriting", "inner")),
    *(("backbone", "inner"), ("compared", "words")),
]
LAYERS = ("LayerFeatureAblation", "LayerFeaturePermutation", "NeuronFeatureAblation")


def at(name: str, place: Place, label: str = "", of_input: bool = False, **arguments: Any) -> Case:
    """A row of a class of layers or neurons."""
    own: dict[str, Any] = {}
    if name.startswith("Neuron"):
        own["neuron_selector"] = place.taken if of_input else place.returned
    if of_input:
        own[f"attribute_to_{'neuron' if name.startswith('Neuron') else 'layer'}_input"] = True
    title = f"{name}-{place.model}-{place.layer}-{'in' if of_input else 'out'}{label and '-' + label}"
    return Case(title, (name,), place.model, {**own, **arguments}, layer=place.layer)


def _every_layer() -> Iterator[Case]:
    for name, place, of_input, evals in product(LAYERS, PLACES, (False, True), (1, 3)):
        if not (of_input and name == "LayerFeaturePermutation"):
            yield at(name, place, f"{evals}-at-once", of_input, perturbations_per_eval=evals)


def _every_layer_option() -> Iterator[Case]:
    mask, maps = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3]]), torch.arange(3).view(1, 3, 1, 1)
    for evals in EVALS:
        for name, (form, baselines) in product(
            ("LayerFeatureAblation",), (("1", noise(1, 8)), ("5", noise(5, 8)), ("0.5", 0.5))
        ):
            yield at(name, HIDDEN, f"baselines-{form}-{evals}", layer_baselines=baselines, perturbations_per_eval=evals)
        for name in LAYERS[:2]:
            yield at(name, HIDDEN, f"mask-{evals}", layer_mask=mask, perturbations_per_eval=evals)
            yield at(name, MAPS, f"mask-{evals}", layer_mask=maps, perturbations_per_eval=evals)
            yield at(
                name, HIDDEN, f"mask-each-{evals}", layer_mask=tokens(5, 8, most=4) - 1, perturbations_per_eval=evals
            )
            yield at(name, HIDDEN, f"no-target-{evals}", target=None, perturbations_per_eval=evals)
        for form, selector in (("slice", (slice(0, 3),)), ("function", first_summed)):
            yield at(LAYERS[2], HIDDEN, f"{form}-{evals}", neuron_selector=selector, perturbations_per_eval=evals)
        how = {"baselines": noise(1, 8), "feature_mask": mask, "perturbations_per_eval": evals}
        yield at(LAYERS[2], HIDDEN, f"baselines-and-mask-{evals}", **how)
    for name, (model, layer) in product(LAYERS, MORE_LAYERS):
        row = at(name, Place(model, layer, first_summed, first_summed))
        yield replace(row, no_peer="see ODD_LAYERS" if model in ODD_LAYERS else "")
    for name, model in product(LAYERS[:2], (*AGGREGATES, *MIXING)):
        yield at(name, Place(model, "body.2", 0, 1))


LAYER_ROWS = [*_every_layer(), *_every_layer_option()]

# One case a class, for what does not need all of them.
PERTURBED_SHORT = [case(name, "mlp") for name in METHODS]
