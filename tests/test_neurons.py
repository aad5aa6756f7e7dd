"""Scores of neurons: what each class gives of the model that ends there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fusum.attr
from cases import Case, on, seed
from checkers import assert_complete, assert_same
from fusum.attr import IntegratedGradients, NeuronConductance, NeuronGradient, NeuronIntegratedGradients
from layer_cases import HIDDEN, MAPS, NEURON, Place, first_summed
from models import noise, subject

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # NeuronConductance warns of functions

# The class of whose numbers those of a neuron are, where the model ends with it.
WHOLE = {
    "NeuronIntegratedGradients": "IntegratedGradients",
    "NeuronGradientShap": "GradientShap",
    "NeuronDeepLift": "DeepLift",
    "NeuronDeepLiftShap": "DeepLiftShap",
    "NeuronGuidedBackprop": "GuidedBackprop",
    "NeuronDeconvolution": "Deconvolution",
}


def first(model: str, layers: int) -> nn.Sequential:
    """The first layers of a model."""
    return nn.Sequential(*list(subject(model).module)[:layers])


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("of_input", [False, True])
def test_the_numbers_of_the_model_that_ends_there(name: str, layer: int, of_input: bool) -> None:
    case = Place("mlp", str(layer), 1, 1).case(name, of_input)
    until = first("mlp", layer + (not of_input))
    whole = {key: value for key, value in case.arguments.items() if "neuron" not in key}
    found = case.attribute(fusum.attr)
    if len(until):
        assert_same(found, Case("", (WHOLE[name],), "mlp", {"target": 1, **whole}).attribute(fusum.attr, until))
    else:
        _assert_of_one_feature(found, name)


def _assert_of_one_feature(scores: Tensor, name: str) -> None:
    """A neuron that is itself an input has no influence but its own."""
    assert scores[:, 1].abs().min() > 0, name
    assert not scores[:, [0, *range(2, 8)]].any()


def test_the_gradient_is_that_of_autograd() -> None:
    x = subject("mlp").inputs.clone().requires_grad_()
    expected = torch.autograd.grad(first("mlp", 3)(x)[:, 4].sum(), x)[0]
    assert_same(HIDDEN.case("NeuronGradient", neuron_selector=4).attribute(fusum.attr), expected)


@pytest.mark.parametrize("multiply", [True, False])
def test_conductances_of_all_neurons_are_the_integrated_gradients(multiply: bool) -> None:
    model, x = subject("smooth").module, subject("smooth").inputs
    same = {"baselines": 0.2, "target": 1, "n_steps": 7, "method": "gausslegendre"}
    neurons = NeuronConductance(model, model[1], multiply_by_inputs=multiply)
    parts = [neurons.attribute(x, neuron, **same) for neuron in range(16)]
    assert_same(torch.stack(parts).sum(0), IntegratedGradients(model, multiply).attribute(x, **same))


def test_integrated_gradients_are_complete() -> None:
    model, until, x = subject("smooth").module, first("smooth", 4), subject("smooth").inputs
    scores = NeuronIntegratedGradients(model, model[3]).attribute(x, 5, 0.2)
    with torch.no_grad():
        change = until(x)[:, 5] - until(torch.full_like(x, 0.2))[:, 5]
    assert_complete(scores, change, 1e-5)


@pytest.mark.parametrize(
    ("selector", "same"),
    [
        (slice(2, 5), (slice(2, 5),)),
        (np.int64(3), 3),
        (torch.tensor(3), 3),
        (-1, 7),
        (lambda held: held[:, 3], 3),
        (lambda held: held[:, 3:4], 3),
        (lambda held: held[:, 2:5].sum(1), (slice(2, 5),)),
        ((slice(None),), lambda held: held.sum(1)),
    ],
    ids=["slice", "numpy", "tensor", "negative", "function", "column", "sum", "all"],
)
@pytest.mark.parametrize("name", NEURON)
def test_ways_to_name_the_same_neuron(name: str, selector: Any, same: Any) -> None:
    found = HIDDEN.case(name, neuron_selector=selector).attribute(fusum.attr)
    assert_same(found, HIDDEN.case(name, neuron_selector=same).attribute(fusum.attr))


@pytest.mark.parametrize("name", sorted({*NEURON} - {"NeuronConductance", "NeuronFeatureAblation"}))
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_number_for_the_whole_batch(name: str, shape: tuple[int, ...]) -> None:
    """The gradients of what examples add up to are their own, however the batch is cut."""
    expected = HIDDEN.case(name, neuron_selector=3).attribute(fusum.attr)
    case = HIDDEN.case(name, neuron_selector=lambda held: held[:, 3].sum().reshape(shape))
    assert_same(case.attribute(fusum.attr), expected)
    with fusum.config(max_rows=2):
        assert_same(case.attribute(fusum.attr), expected)


def test_conductance_of_one_number_for_the_batch() -> None:
    """It weighs each example's gradients by its own number."""
    with pytest.raises(fusum.ArgumentError, match=r"^neuron_selector: .*expected one number for each of"):
        HIDDEN.case("NeuronConductance", neuron_selector=lambda held: held.sum()).attribute(fusum.attr)


@pytest.mark.parametrize("selector", [8, -9, (8,), (0, 0)])
@pytest.mark.parametrize("name", NEURON)
def test_a_neuron_out_of_range(name: str, selector: Any) -> None:
    """An IndexError, too, as torch's own."""
    with pytest.raises(fusum.TargetError, match=r"^neuron_selector: .*expected") as caught:
        HIDDEN.case(name, neuron_selector=selector).attribute(fusum.attr)
    assert isinstance(caught.value, IndexError)


def test_slices_add_neurons_up() -> None:
    places = list(product((0, 2), (1,), (3, 4, 5)))
    found = MAPS.case("NeuronGradient", neuron_selector=(slice(0, 3, 2), 1, slice(3, 6))).attribute(fusum.attr)
    parts = [MAPS.case("NeuronGradient", neuron_selector=place).attribute(fusum.attr) for place in places]
    assert_same(found, torch.stack(parts).sum(0))


@pytest.mark.parametrize("name", NEURON)
def test_an_input_that_does_not_reach_the_neuron_has_zeros(name: str) -> None:
    """captum raises an error that speaks of the graph."""
    first, second = Place("joined", "first", 1, 1).case(name).attribute(fusum.attr)
    assert first.abs().max() > 0
    assert not second.any()
    assert second.shape == subject("joined").inputs[1].shape


def last_of_twice(x: Tensor) -> Tensor:
    model = subject("twice").module
    return model.inner(model.act1(model.inner(x)))


@pytest.mark.parametrize("name", WHOLE)
def test_of_a_layer_that_runs_twice_the_last_call_is_read(name: str) -> None:
    case = Place("twice", "inner", 3, 3).case(name)
    whole = {key: value for key, value in case.arguments.items() if "neuron" not in key}
    expected = Case("", (WHOLE[name],), "twice", {"target": 3, **whole}).attribute(fusum.attr, last_of_twice)
    assert_same(case.attribute(fusum.attr), expected)


def test_conductance_of_a_layer_that_runs_twice_is_that_of_its_last_call() -> None:
    """All that the output depends on flows through it."""
    model, x = subject("twice").module, subject("twice").inputs
    same = {"target": 1, "n_steps": 7, "method": "gausslegendre"}
    parts = [NeuronConductance(model, model.inner).attribute(x, neuron, **same) for neuron in range(8)]
    assert_same(torch.stack(parts).sum(0), IntegratedGradients(model).attribute(x, **same))


READ: dict[str, Callable[[Any], Tensor]] = {
    "values": lambda held: held[0][:, -1, 2],
    "states": lambda held: held[1][:, 0, 3] + held[-1][:, 1, 2],
}


@pytest.mark.parametrize("model", ["lstm", "gru"])
@pytest.mark.parametrize("what", READ)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_function_reads_what_a_recurrent_layer_returns(model: str, what: str, rows: int) -> None:
    """It is given tensors whose rows come first."""
    source = subject(model)
    x = source.inputs[:rows].clone().requires_grad_()
    out, states = source.module.layer(x)
    held = (out, *(s.movedim(1, 0) for s in (states if model == "lstm" else (states,))))
    expected = torch.autograd.grad(READ[what](held).sum(), x)[0]
    assert_same(NeuronGradient(source.module, source.module.layer).attribute(x, READ[what]), expected)


@pytest.mark.parametrize("name", WHOLE)
def test_a_function_reads_rows_that_are_tokens_of_all_examples(name: str) -> None:
    """It is given [examples, tokens, ...]."""
    case = Place("merged", "inner", None, lambda held: held[:, 1, 4]).case(name)
    inner = subject("merged").module.inner
    whole = {key: value for key, value in case.arguments.items() if "neuron" not in key}
    expected = Case("", (WHOLE[name],), "merged", {"target": (1, 4), **whole}).attribute(fusum.attr, inner)
    assert_same(case.attribute(fusum.attr), expected)


@pytest.mark.parametrize("case", on([HIDDEN.case(name) for name in NEURON]))
def test_the_layers_of_a_function(case: Case) -> None:
    model = subject("mlp").module
    assert_same(case.attribute(fusum.attr, lambda x: model(x)), case.attribute(fusum.attr))


@pytest.mark.parametrize("name", NEURON)
def test_a_first_call_gives_what_later_calls_give(name: str) -> None:
    """The first one learns how often the layer runs: a model that nobody has seen, with operators after the layer."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    keywords = Case("", (name,), "mlp", {**NEURON[name], "neuron_selector": first_summed}).keywords()
    keywords["inputs"] = noise(3, 8, seed=4)
    if name == "NeuronDeepLift":
        keywords["baselines"] = noise(3, 8, seed=5)
    results = []
    for _ in range(3):
        seed()
        results.append(getattr(fusum.attr, name)(model, model[2]).attribute(**keywords))
    for later in results[1:]:
        assert_same(later, results[0])


class Pooled(nn.Module):
    """A layer that also returns integers; indices: whether."""

    def __init__(self, indices: bool, grad: bool = True) -> None:
        super().__init__()
        self.stem, self.head, self.grad = nn.Linear(8, 8), nn.Linear(4, 3), grad
        self.layer = nn.MaxPool1d(2, return_indices=indices)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.grad and torch.is_grad_enabled()):
            hidden = torch.tanh(self.stem(x))[:, None]
        found = self.layer(hidden)
        return self.head((found[0] if isinstance(found, tuple) else found).flatten(1))


def test_the_conductance_of_a_neuron_beside_integers() -> None:
    beside, alone, x = Pooled(True).eval(), Pooled(False).eval(), noise(5, 8)
    alone.load_state_dict(beside.state_dict())
    expected = NeuronConductance(alone, "layer").attribute(x, (0, 1), target=1)
    with pytest.warns(UserWarning, match="neuron_selector"):
        found = NeuronConductance(beside, "layer").attribute(x, lambda held: held[0][:, 0, 1], target=1)
    assert_same(found, expected)


def test_the_conductance_of_a_neuron_that_no_gradient_reaches() -> None:
    method = NeuronConductance(Pooled(False, grad=False).eval(), "layer")
    with pytest.raises(fusum.ArgumentError, match=r"^layer: what it holds does not depend on inputs"):
        method.attribute(noise(5, 8), (0, 1), target=1, attribute_to_neuron_input=True)
