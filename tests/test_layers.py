"""Scores of layers: lists, layers of all kinds, and closed forms where captum is not the measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum
import fusum.attr
from cases import DELTA, Case, on, seed
from checkers import assert_complete, assert_identical, assert_same
from fusum.attr import LayerActivation, LayerIntegratedGradients
from layer_cases import LAYER, NEURON, Place, first_summed
from models import noise, subject

# captum warns whenever it sets requires_grad on an input, and NeuronConductance of a function.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def of(name: str, model: str, layer: str, of_input: bool = False, **arguments: Any) -> Case:
    """A case of a class with its usual arguments."""
    return Place(model, layer, first_summed, first_summed).case(name, of_input, **arguments)


# Lists of layers.


def _lists() -> Iterator[Case]:
    for model, layers in (("mlp", ["2", "0"]), ("skip", ["inner", "body"]), ("joined", ["first", "second"])):
        for name in ("LayerActivation", "LayerGradientXActivation", "LayerLRP", "LayerIntegratedGradients"):
            apart = model == "joined" or name != "LayerIntegratedGradients"
            functional = "functional operators" if name == "LayerLRP" and model != "mlp" else ""
            if apart:
                yield Case(f"{name}-{model}", (name,), model, LAYER[name], no_peer=functional, layer=layers)
    own = {"attribute_to_layer_input": True}
    yield Case("LayerActivation-input", ("LayerActivation",), "mlp", own, layer=["0", "3"])
    yield Case("of-one", ("LayerGradientXActivation",), "mlp", layer=["0"])


@pytest.mark.parametrize("case", on([case for case in _lists() if not case.no_peer]))
def test_lists_give_captums_lists(case: Case) -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    _assert_same_lists(case.attribute(fusum.attr), case.attribute(captum_attr))


def _assert_same_lists(found: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        assert isinstance(found, tuple)
        for ours, theirs in zip(found, expected, strict=True):
            _assert_same_lists(ours, theirs)
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert_same(tuple(found), tuple(expected))
    else:
        assert_same(found, expected)


@pytest.mark.parametrize("case", on([case for case in _lists() if "IntegratedGradients" not in case.name]))
def test_a_list_gives_what_each_of_its_layers_gives(case: Case) -> None:
    results = case.attribute(fusum.attr)
    found = list(zip(*results, strict=True)) if isinstance(results, tuple) else results
    assert isinstance(case.layer, list)
    for layer, scores in zip(case.layer, found, strict=True):
        alone = Case("", case.chain, case.model, case.arguments, case.options, layer=layer)
        assert_same(scores, alone.attribute(fusum.attr))


def test_a_module_list_is_a_list() -> None:
    model, x = subject("mlp").module, subject("mlp").inputs
    found = LayerActivation(model, nn.ModuleList([model[0], model[2]])).attribute(x)
    _assert_same_lists(found, LayerActivation(model, ["0", "2"]).attribute(x))
    assert len(found) == 2


def test_a_path_between_layers_of_which_one_feeds_the_other() -> None:
    """What stands before a given value has no influence: its zeros would be silent."""
    model, x = subject("mlp").module, subject("mlp").inputs
    for layers in (["0", "2"], ["2", "0"]):
        with pytest.raises(fusum.ArgumentError, match=r"^layer: "):
            LayerIntegratedGradients(model, layers).attribute(x, target=1)


# Completeness.

CUTS = [("smooth", "0"), ("smooth", "2"), ("smooth", "3"), ("merged", "head"), ("twice", "head"), ("backbone", "act")]
COMPLETE: dict[str, tuple[dict[str, Any], float]] = {
    "LayerIntegratedGradients": ({"n_steps": 60}, 1e-5),
    "LayerConductance": ({"n_steps": 400}, 5e-3),
    "LayerDeepLift": ({}, 1e-5),
    "LayerDeepLiftShap": ({}, 1e-5),
}


def ends(model: str, baselines: Any = 0.0) -> Tensor:
    """The explained output's change, of one baseline or on average over many."""
    source = subject(model)
    with torch.no_grad():
        zeros = torch.zeros_like(source.inputs) if isinstance(baselines, float) else baselines
        start, end = source.module(zeros)[:, source.target], source.module(source.inputs)[:, source.target]
    return end - (start.mean() if len(start) != len(end) else start)


@pytest.mark.parametrize(("model", "layer"), CUTS)
@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("name", COMPLETE)
def test_scores_of_a_full_cut_are_complete(name: str, model: str, layer: str, of_input: bool) -> None:
    arguments, atol = COMPLETE[name]
    scores, delta = of(name, model, layer, of_input, **DELTA, **arguments).attribute(fusum.attr)
    change = ends(model, subject(model).distribution if name.endswith("Shap") else 0.0)
    assert_complete(scores, change, atol)
    assert delta.abs().max() <= 2 * atol


@pytest.mark.parametrize("name", COMPLETE)
def test_a_delta_is_what_scores_lack(name: str) -> None:
    """Beside a skip connection there is much that it lacks."""
    scores, delta = of(name, "skip", "inner", **DELTA).attribute(fusum.attr)
    change = ends("skip", subject("skip").distribution if name.endswith("Shap") else 0.0)
    mean = delta.view(4, -1).mean(1)
    assert mean.abs().max() > 1e-3
    assert_complete(scores, change + mean, 1e-5)


def test_the_input_of_an_activation_is_complete_for_deep_lift() -> None:
    scores, delta = of("LayerDeepLift", "mlp", "1", True).attribute(fusum.attr)
    assert_complete(scores, ends("mlp"), 1e-5)
    assert delta.abs().max() < 1e-5


@pytest.mark.parametrize("layer", ["1", "3"])
@pytest.mark.parametrize("of_input", [False, True])
def test_relevance_at_an_activation_is_that_of_its_neighbour(layer: str, of_input: bool) -> None:
    """ReLU passes relevance on as it is."""
    before, after = str(int(layer) - 1), str(int(layer) + 1)
    found = of("LayerLRP", "mlp", layer, of_input).attribute(fusum.attr)
    assert_same(found, of("LayerLRP", "mlp", before if of_input else after, not of_input).attribute(fusum.attr))


# Layers that run more than once.


def by_hand(model: str, *calls: Callable[[Any, Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Values times gradients of what calls compute, one from the other; the last gives the output."""
    source = subject(model)
    held = [calls[0](source.module, source.inputs).detach().requires_grad_()]
    for call in calls[1:]:
        held.append(call(source.module, held[-1]))
    gradients = torch.autograd.grad(held[-1][:, source.target].sum(), held[:-1])
    return tuple(v.detach() * g for v, g in zip(held, gradients, strict=False))


def test_a_layer_that_runs_twice_has_a_score_for_each_call() -> None:
    expected = by_hand(
        "twice",
        lambda m, x: m.inner(x),
        lambda m, h: m.inner(m.act1(h)),
        lambda m, h: m.head(m.act2(h)),
    )
    assert_same(of("LayerGradientXActivation", "twice", "inner").attribute(fusum.attr), expected)
    first, second = of("LayerActivation", "twice", "inner").attribute(fusum.attr)
    model, x = subject("twice").module, subject("twice").inputs
    assert_identical(first, model.inner(x))
    assert_identical(second, model.inner(model.act1(model.inner(x))))


@pytest.mark.parametrize("of_input", [False, True])
def test_each_call_of_a_row_of_calls_is_a_full_cut(of_input: bool) -> None:
    for name in ("LayerConductance", "LayerDeepLift"):
        arguments, atol = COMPLETE[name]
        scores, _ = of(name, "twice", "inner", of_input, **arguments).attribute(fusum.attr)
        assert isinstance(scores, tuple)
        assert len(scores) == 2
        for each in scores:
            assert_complete(each, ends("twice"), atol)


@pytest.mark.parametrize("model", ["twice", "siamese"])
@pytest.mark.parametrize("of_input", [False, True])
def test_calls_are_complete_together_where_values_are_put_in(model: str, of_input: bool) -> None:
    scores, delta = of("LayerIntegratedGradients", model, "inner", of_input, n_steps=60).attribute(fusum.attr)
    assert isinstance(scores, tuple)
    assert len(scores) == 2
    assert_complete(scores, ends(model), 1e-5)
    assert delta.abs().max() < 1e-5


@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("name", COMPLETE)
def test_calls_side_by_side_are_complete_together(name: str, of_input: bool) -> None:
    arguments, atol = COMPLETE[name]
    scores, _ = of(name, "siamese", "inner", of_input, **arguments).attribute(fusum.attr)
    assert isinstance(scores, tuple)
    assert len(scores) == 2
    assert_complete(scores, ends("siamese", subject("siamese").distribution if "Shap" in name else 0.0), atol)


# Layers that return tuples, or have their rows elsewhere than first.

RECURRENT = {"lstm": 3, "gru": 2}
# LayerGradientShap draws other numbers for fewer rows; LRP has no rule for recurrent layers.
ROW_BY_ROW = [name for name in LAYER if name not in ("GuidedGradCam", "LayerGradientShap", "LayerLRP")]


def rows_first(scores: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a recurrent layer: the states have their rows in dimension 1."""
    return scores[0], *(s.movedim(1, 0) for s in scores[1:])


@pytest.mark.parametrize(("model", "tensors"), RECURRENT.items())
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_recurrent_layer_holds_all_that_it_returns(model: str, tensors: int, rows: int) -> None:
    """Of two rows, the sizes do not tell layers from rows."""
    source = subject(model)
    x = source.inputs[:rows]
    returned = source.module.layer(x)
    states = returned[1] if model == "lstm" else (returned[1],)
    held = of("LayerActivation", model, "layer", inputs=x).attribute(fusum.attr)
    assert len(held) == tensors
    assert_same(held, (returned[0], *states))


@pytest.mark.parametrize("model", RECURRENT)
@pytest.mark.parametrize("name", ROW_BY_ROW)
@pytest.mark.parametrize("rows", [1, 2])
def test_a_recurrent_layers_scores_do_not_depend_on_the_batch(model: str, name: str, rows: int) -> None:
    """As many rows as layers, or one of each, must not be mixed up."""
    x = subject(model).inputs
    case = of(name, model, "layer")
    no_delta = {"return_convergence_delta": False} if "return_convergence_delta" in case.arguments else {}
    whole = rows_first(case.attribute(fusum.attr, **no_delta))
    found = rows_first(case.attribute(fusum.attr, inputs=x[:rows], **no_delta))
    assert_same(found, tuple(s[:rows] for s in whole))


@pytest.mark.parametrize("model", RECURRENT)
@pytest.mark.parametrize("name", COMPLETE)
def test_a_recurrent_layers_scores_are_complete(model: str, name: str) -> None:
    arguments, atol = COMPLETE[name]
    scores, delta = of(name, model, "layer", **arguments).attribute(fusum.attr)
    change = ends(model, subject(model).distribution if name.endswith("Shap") else 0.0)
    assert_complete(rows_first(scores), change, atol)
    assert delta.abs().max() <= 2 * atol


@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5, 6])
@pytest.mark.parametrize("name", COMPLETE)
def test_rows_that_are_tokens_of_all_examples(name: str, rows: int, of_input: bool) -> None:
    """Six examples are as many as features: the sizes do not tell which is which."""
    source, (arguments, atol) = subject("merged"), COMPLETE[name]
    x, many = noise(rows, 3, 4, seed=9), source.distribution
    given = {"inputs": x, **arguments, **({"baselines": many} if name.endswith("Shap") else {})}
    scores, _ = of(name, "merged", "inner", of_input).attribute(fusum.attr, **given)
    assert scores.shape == (rows * 3, 4 if of_input else 6)
    with torch.no_grad():
        start = source.module(many if name.endswith("Shap") else 0 * x[:1])[:, 1].mean()
        change = source.module(x)[:, 1] - start
    assert_complete(scores.view(rows, -1), change, atol)


# Layers that write in place, and models that turn gradients off.


def _twin(model: str) -> nn.Module:
    """The same without what is special in it."""
    module = deepcopy(subject(model).module)
    for inner in module.modules():
        if isinstance(inner, nn.ReLU):
            inner.inplace = False
    if model == "backbone":
        return nn.Sequential(module.stem, module.inner, module.act, module.head).eval()
    return module


SPECIAL = [
    *(("overwriting", layer, layer, way) for layer, way in (("act1", True), ("inner", False), ("act2", False))),
    *(("backbone", layer, twin, way) for layer, twin, way in (("stem", "0", False), ("inner", "1", True))),
    *(("overwriting", "act2", "act2", True), ("backbone", "inner", "1", False), ("backbone", "act", "2", False)),
]


def _special() -> Iterator[Any]:
    for (model, layer, twin, of_input), name in product(SPECIAL, (*LAYER, *NEURON)):
        if name != "GuidedGradCam" and (model == "overwriting" or name not in NEURON):
            case = of(name, model, layer, of_input)
            yield pytest.param(case, twin, id=case.name)


@pytest.mark.parametrize(("case", "twin"), list(_special()))
def test_models_that_work_in_place_or_turn_gradients_off(case: Case, twin: str) -> None:
    """A fresh copy each: what a model does inside is learned from its first call."""
    twins, fresh = _twin(case.model), deepcopy(case.subject.module)
    method, keywords = getattr(fusum.attr, case.chain[0]), case.keywords()
    seed()
    expected = method(twins, twin).attribute(**keywords)
    for forward in (fresh, lambda x: fresh(x)):
        seed()
        layer = fresh.get_submodule(str(case.layer))
        assert_same(method(forward, layer).attribute(**keywords), expected)


# Layers that are called in other ways.


class Named(nn.Module):
    """Takes its tensor by name, and returns several by name, with what is no tensor between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 6)

    def forward(self, *, x: Tensor, scale: float) -> dict[str, Any]:
        hidden = torch.tanh(self.body(x)) * scale
        return {"first": hidden, "count": 3, "nothing": None, "second": [hidden * hidden]}


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = Named(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x=2 * x, scale=0.5)
        return self.head(found["second"][0] - found["first"])


def test_a_layer_that_is_called_by_name() -> None:
    model, x = ByName().eval(), noise(5, 8)
    returned = model.layer(x=2 * x, scale=0.5)
    held = LayerActivation(model, model.layer).attribute(x)
    assert_same(held, (returned["first"], returned["second"][0]))
    assert_same(LayerActivation(model, model.layer).attribute(x, attribute_to_layer_input=True), 2 * x)
    with torch.no_grad():
        change = (model(x) - model(0 * x))[:, 1]
    for of_input in (False, True):
        method = LayerIntegratedGradients(model, model.layer)
        assert_complete(method.attribute(x, target=1, attribute_to_layer_input=of_input), change, 1e-5)
        lifted = fusum.attr.LayerDeepLift(model, model.layer)
        assert_complete(lifted.attribute(x, target=1, attribute_to_layer_input=of_input), change, 1e-5)


# Layers whose tensors are viewed.


class SequenceFirst(nn.Module):
    """Rows in the second dimension, of a tensor that is viewed as a table of all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, rows = x.shape[1], x.shape[0]
        hidden = torch.tanh(self.layer(x.transpose(0, 1))).view(steps * rows, 6)
        return self.head(hidden).view(steps, rows, 3).sum(0)


@pytest.mark.parametrize("export", [False, True])
def test_a_layer_of_rows_elsewhere_may_be_viewed(export: bool) -> None:
    model, x = SequenceFirst().eval(), noise(5, 3, 4)
    program = torch.export.export(model, (noise(7, 3, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    with torch.no_grad():
        change = (model(x) - model(0 * x))[:, 1]
    method = LayerIntegratedGradients(program if export else model, "layer")
    scores = method.attribute(x, target=1, n_steps=50)
    assert scores.shape == (3, 5, 6)
    assert_complete(scores.transpose(0, 1), change, 1e-5)
