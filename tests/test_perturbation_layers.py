"""Methods that change what layers hold, and those that explain neurons: captum's numbers, and those by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum.attr
from cases import Case, on, seed
from checkers import assert_no_graph, assert_refused, assert_same, flat, untouched
from formats import FORMATS, converted
from fusum import ArgumentError, ArgumentTypeError
from fusum.attr import FeatureAblation, LayerFeatureAblation, LayerFeaturePermutation, NeuronFeatureAblation
from layer_cases import HEAD, HIDDEN, MAPS, Place, first_summed
from models import Recorder, noise, subject
from perturbation_cases import LAYER_ROWS, LAYERS, ODD_LAYERS, at

# captum warns of numbers that are missing in masks; fusum of single examples, which cannot be shuffled.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")

X = noise(5, 8)
SHORT = [at(name, HIDDEN) for name in LAYERS]
ABLATION, PERMUTATION, NEURON = SHORT


def picked(row: Case) -> Callable[..., Tensor]:
    """The model with its target picked: captum gives LayerFeaturePermutation's forward none to pick."""
    target = row.keywords()["target"]
    index = target if isinstance(target, tuple) else (target,)
    model = row.subject.peer or row.subject.module
    return lambda *args: model(*args)[(slice(None), *index)]


@pytest.mark.parametrize("row", on([row for row in LAYER_ROWS if not row.no_peer]))
def test_same_as_captum(row: Case) -> None:
    if row.chain == PERMUTATION.chain and row.keywords()["target"] is not None:
        peer, changes = picked(row), {"target": None}
    else:
        peer, changes = row.subject.peer, {}
    theirs = row.attribute(captum_attr, peer, **changes)
    drawn = torch.get_rng_state()
    assert_same(row.attribute(fusum.attr), theirs)
    assert torch.equal(torch.get_rng_state(), drawn), "other random numbers were drawn"


def lost_by_hand(row: Case, of_input: bool = False) -> tuple[Tensor, ...]:
    """What the output loses where one element of one of a layer's calls is 0, by hooks; others keep theirs."""
    model, held = row.subject.module, held_by(row, of_input)
    layer = model.get_submodule(str(row.layer))

    def output(values: list[Tensor]) -> Tensor:
        given = iter(values)
        if of_input:
            handle: Any = layer.register_forward_pre_hook(lambda *_: next(given))
        else:
            handle = layer.register_forward_hook(lambda *_: next(given))
        with handle, torch.no_grad():
            return model(*row.subject.tensors, *row.subject.extra)[:, row.subject.target]

    found = []
    for call, value in enumerate(held):
        scores = torch.empty(value.shape)
        for element in range(value[0].numel()):
            changed = [x.clone() for x in held]
            changed[call].view(len(value), -1)[:, element] = 0
            scores.view(len(value), -1)[:, element] = output([*held]) - output(changed)
        found.append(scores)
    return tuple(found)


def held_by(row: Case, of_input: bool) -> tuple[Tensor, ...]:
    explainer = fusum.attr.LayerActivation(row.subject.module, row.layer)
    extra = {"additional_forward_args": row.subject.extra} if row.subject.extra else {}
    held = explainer.attribute(row.subject.inputs, attribute_to_layer_input=of_input, **extra)
    return held if isinstance(held, tuple) else (held,)


PLACES = [
    *(HIDDEN, MAPS, HEAD, Place("twice", "inner", 0, 0), Place("siamese", "inner", 0, 0)),
    *(Place("compared", "body", 0, 0), Place("embedded", "words", 0, 0)),
]


@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.model}-{place.layer}")
def test_ablation_by_hand(place: Place, of_input: bool) -> None:
    """A layer that is called twice has features of its own in each call."""
    row = at("LayerFeatureAblation", place, of_input=of_input)
    assert_same(flat(row.attribute(fusum.attr)), lost_by_hand(row, of_input))


def test_parts_of_several_calls_are_one_feature() -> None:
    row = at("LayerFeatureAblation", Place("siamese", "inner", 0, 0))
    shared = torch.zeros(1, 6, dtype=torch.int64)
    both = row.attribute(fusum.attr, layer_mask=(shared, shared))
    assert_same(both[0], both[1])
    model, x = row.subject.module, row.subject.inputs
    with torch.no_grad():
        with model.get_submodule("inner").register_forward_hook(lambda _, args, out: 0 * out):
            empty = model(x)[:, 1]
        change = model(x)[:, 1] - empty
    assert_same(both[0], change[:, None].expand(5, 6))


def test_a_tuple_of_tensors() -> None:
    """All of what a recurrent layer returns as one feature is what the output loses without it."""
    row = at("LayerFeatureAblation", Place("lstm", "layer", 0, 0))
    masks = tuple(torch.zeros(1, *[1] * (x.dim() - 1), dtype=torch.int64) for x in held_by(row, False))
    scores = row.attribute(fusum.attr, layer_mask=masks)
    model, x = row.subject.module, row.subject.inputs
    with torch.no_grad():
        change = (model(x) - model.head(torch.zeros(5, 6)))[:, row.subject.target]
    for each, held in zip(scores, held_by(row, False), strict=True):
        assert each.shape == held.shape
        rows_first = each if len(each) == 5 else each.transpose(0, 1)
        assert_same(rows_first, change[:, None, None].expand(rows_first.shape))


@pytest.mark.parametrize("evals", [1, 4])
def test_a_neuron_is_the_output_of_a_model_that_ends_there(evals: int) -> None:
    model = nn.Sequential(*subject("mlp").module)
    how: dict[str, Any] = {"feature_mask": torch.arange(8)[None] // 3, "perturbations_per_eval": evals}
    found = NeuronFeatureAblation(model, "2").attribute(X, (5,), 0.3, **how)
    assert_same(found, FeatureAblation(model[:3]).attribute(X, 0.3, target=5, **how))
    found = NeuronFeatureAblation(model, "2").attribute(X, 5, 0.3, attribute_to_neuron_input=True, **how)
    assert_same(found, FeatureAblation(model[:2]).attribute(X, 0.3, target=5, **how))


def test_an_additive_head() -> None:
    """Of a linear layer the last one's inputs lose weight times value."""
    head = subject("mlp").module[4]
    held = fusum.attr.LayerActivation(subject("mlp").module, "4").attribute(X, attribute_to_layer_input=True)
    found = LayerFeatureAblation(subject("mlp").module, "4").attribute(X, 0.5, 2, attribute_to_layer_input=True)
    assert_same(found, (held - 0.5) * head.weight.detach()[2])
    swapped = LayerFeaturePermutation(subject("mlp").module, "3").attribute(X[:2], target=2)
    assert_same(swapped, (held[:2] - held[:2].flip(0)) * head.weight.detach()[2])


# Formats, rows, states.

CLOSED = ("frozen", "around_optimised")


@pytest.mark.parametrize("form", [form for form in FORMATS if form not in (*CLOSED, "eager")])
@pytest.mark.parametrize("row", on([*SHORT, *(at(name, MAPS) for name in LAYERS)]))
def test_the_eager_numbers(row: Case, form: str) -> None:
    assert_same(row.attribute(fusum.attr, converted(row.model, form)), row.attribute(fusum.attr))


@pytest.mark.parametrize("form", ["scripted", "traced", "exported_bounded"])
@pytest.mark.parametrize("row", on([row for row in LAYER_ROWS if row.model in ODD_LAYERS]))
def test_the_eager_numbers_of_odd_layers(row: Case, form: str) -> None:
    assert_same(row.attribute(fusum.attr, converted(row.model, form)), row.attribute(fusum.attr))


@pytest.mark.parametrize("row", on([*SHORT, *(row for row in LAYER_ROWS if row.model in ODD_LAYERS)]))
@pytest.mark.parametrize("options", [{"max_rows": 7}, {"memory": 2000}, {"backend": "reference"}], ids=str)
def test_settings_change_nothing(row: Case, options: dict[str, Any]) -> None:
    with fusum.config(**options):
        found = row.attribute(fusum.attr)
    assert_same(found, row.attribute(fusum.attr))


@pytest.mark.parametrize(("row", "evals"), list(product(SHORT, (2, 7, 100))), ids=str)
def test_perturbations_per_eval_changes_nothing(row: Case, evals: int) -> None:
    assert_same(row.attribute(fusum.attr, perturbations_per_eval=evals), row.attribute(fusum.attr))


@pytest.mark.parametrize("row", on(LAYER_ROWS))
def test_nothing_is_left_behind(row: Case) -> None:
    with untouched(row.subject.module, *row.subject.tensors):
        assert_no_graph(row.attribute(fusum.attr))


class Fails(nn.Module):
    """Counts its calls, and raises at one of them."""

    def __init__(self, at_call: int = 0) -> None:
        super().__init__()
        self.at_call, self.calls = at_call, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        if self.calls[0] == self.at_call:
            raise ValueError("mine")
        return x


@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("row", on(SHORT))
def test_the_models_own_errors_pass_through(row: Case, which: str) -> None:
    place = 0 if row is NEURON else 4  # behind its layer nothing of a neuron's model runs

    def explain(fails: Fails) -> Any:
        body = [*subject("mlp").module]
        model = nn.Sequential(*body[:place], fails, *body[place:]).eval()
        seed()
        with untouched(model, X):
            return getattr(fusum.attr, row.chain[0])(model, body[2]).attribute(**row.keywords())

    counted = Fails()
    assert_same(explain(counted), row.attribute(fusum.attr))
    with pytest.raises(ValueError, match=r"^mine$"):
        explain(Fails(1 if which == "first" else counted.calls[0]))


# Errors.

MASK = torch.arange(8)[None] % 3
WRONG: list[tuple[str, Any, type[Exception]]] = [
    ("layer_mask", MASK[:, :7], ArgumentError),
    ("layer_mask", MASK - 1, ArgumentError),
    ("layer_mask", MASK.float(), ArgumentTypeError),
    ("layer_mask", (MASK, MASK), ArgumentError),
    ("layer_baselines", noise(5, 7), ArgumentError),
    ("layer_baselines", noise(2, 8), ArgumentError),
    ("layer_baselines", "black", ArgumentTypeError),
    ("layer_baselines", (0, 0), ArgumentError),
]


FITTED = [(name, *rest) for name, rest in product(LAYERS[:2], WRONG) if name in ABLATION.chain or "mask" in rest[0]]


@pytest.mark.parametrize(("name", "argument", "value", "kind"), FITTED, ids=str)
def test_what_does_not_fit_the_layer(name: str, argument: str, value: Any, kind: Any) -> None:
    """Known once the layer has run."""
    model = Recorder(subject("mlp").module)
    explainer = getattr(fusum.attr, name)(model, "body.2")
    with untouched(model, X), pytest.raises(kind, match=rf"^{argument}: got .*expected"):
        explainer.attribute(X, target=1, **{argument: value})
    assert len(model.rows) == 1


@pytest.mark.parametrize("row", on(SHORT))
@pytest.mark.parametrize(
    ("arguments", "names", "kind"),
    [
        ({"perturbations_per_eval": 0}, "perturbations_per_eval", ArgumentError),
        ({"perturbations_per_eval": 1.5}, "perturbations_per_eval", ArgumentTypeError),
        ({"inputs": X[:0]}, "inputs", ArgumentError),
        ({"inputs": [X]}, "inputs", ArgumentTypeError),
    ],
    ids=str,
)
def test_shared_arguments(row: Case, arguments: dict[str, Any], names: str, kind: type[Exception]) -> None:
    model = Recorder(subject("mlp").module)
    explainer = getattr(fusum.attr, row.chain[0])(model, "body.2")
    with untouched(model, X):
        assert_refused(lambda: explainer.attribute(**{**row.keywords(), **arguments}), names, model.rows, kind)


@pytest.mark.parametrize("row", on(SHORT))
@pytest.mark.parametrize("layer", ["nothing", nn.Linear(2, 2), 3])
def test_what_is_no_layer(row: Case, layer: Any) -> None:
    model = Recorder(subject("mlp").module)
    explain = lambda: getattr(fusum.attr, row.chain[0])(model, layer).attribute(**row.keywords())  # noqa: E731
    kind = ArgumentTypeError if layer == 3 else ArgumentError
    assert_refused(explain, "layer: ", model.rows, kind)


def test_one_number_for_the_whole_batch() -> None:
    model = subject("mlp").module
    summed = lambda held: held[:, 3].sum()  # noqa: E731
    NeuronFeatureAblation(model, "0").attribute(X, first_summed)  # finds that this one keeps rows apart
    expected = fusum.attr.FeatureAblation(lambda x: summed(model[0](x))).attribute(X)
    assert_same(NeuronFeatureAblation(model, "0").attribute(X, summed), expected)


def test_what_is_no_neuron() -> None:
    with pytest.raises(ArgumentError, match=r"^neuron_selector: .*expected"):
        NeuronFeatureAblation(subject("mlp").module, "2").attribute(X, 99)
    assert first_summed(X).shape == (5,)
