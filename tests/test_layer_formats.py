"""Layers and neurons on every model format, by dotted name: the eager numbers in every cell."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

import fusum.attr
from cases import Case, on
from checkers import assert_same, untouched
from formats import FORMATS, converted
from fusum import ArgumentError, ArgumentTypeError
from fusum.attr import LayerActivation, LayerGradientXActivation
from layer_cases import GUIDED_CAM, HEAD, HIDDEN, LAYER, LAYERED_SHORT, MAPS, Place, first_summed
from models import noise, subject

# NeuronConductance warns of functions.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

# Their layers are out of reach; tests below show how that is said.
CLOSED = ("frozen", "around_optimised")
OPEN = [form for form in FORMATS if form not in (*CLOSED, "eager")]
# One format of each kind.
KINDS = ("function", "scripted", "traced", "exported_bounded", "exported_static_program")
# One class a way of evaluating.
FEW = ("LayerActivation", "LayerGradientXActivation", "LayerIntegratedGradients", "LayerConductance", "LayerDeepLift")
MORE = (*FEW, "NeuronGradient", "NeuronDeepLift")
OF_INPUTS = ("LayerConductance", "NeuronGradient", "NeuronDeepLift")  # which token ids have no gradients for


def _cases() -> Iterator[Case]:
    yield from LAYERED_SHORT
    yield GUIDED_CAM
    for name in ("LayerGradientXActivation", "LayerIntegratedGradients", "LayerDeepLift", "LayerLRP", "NeuronDeepLift"):
        yield MAPS.case(name, of_input=True)
    yield HEAD.case("LayerIntegratedGradients")


@pytest.mark.parametrize("form", OPEN)
@pytest.mark.parametrize("case", on(list(_cases())))
def test_the_eager_numbers(case: Case, form: str) -> None:
    assert_same(case.attribute(fusum.attr, converted(case.model, form)), case.attribute(fusum.attr))


def _odd() -> Iterator[Any]:
    """Layers that run twice, hold tuples, have their rows elsewhere, write in place, or take token ids."""
    places = [("twice", "inner"), ("siamese", "inner"), ("lstm", "layer"), ("merged", "inner")]
    places += [("overwriting", "inner"), ("overwriting", "act2"), ("embedded", "words"), ("compared", "words")]
    for (model, layer), form, name in product(places, KINDS, MORE):
        if model not in ("embedded", "compared") or name not in OF_INPUTS:
            case = Place(model, layer, first_summed, first_summed).case(name)
            yield pytest.param(case, form, id=f"{case.name}-{form}")


@pytest.mark.parametrize(("case", "form"), list(_odd()))
def test_the_eager_numbers_of_odd_layers(case: Case, form: str) -> None:
    assert_same(case.attribute(fusum.attr, converted(case.model, form)), case.attribute(fusum.attr))


@pytest.mark.parametrize("form", OPEN)
@pytest.mark.parametrize("name", ["LayerActivation", "LayerGradientXActivation", "LayerLRP"])
def test_lists_of_layers(name: str, form: str) -> None:
    case = Case("", (name,), "mlp", {}, layer=["0", "2"])
    found, expected = case.attribute(fusum.attr, converted("mlp", form)), case.attribute(fusum.attr)
    assert isinstance(found, list)
    assert_same(tuple(found), tuple(expected))


@pytest.mark.parametrize("form", OPEN)
def test_a_layer_in_a_region_without_gradients(form: str) -> None:
    """A program keeps such a region in a graph of its own: that is said."""
    case = Place("backbone", "inner", None, None).case("LayerGradientXActivation")
    if form.startswith("exported"):
        with pytest.raises(ArgumentError, match=r"^layer: 'inner' is called inside a block"):
            case.attribute(fusum.attr, converted("backbone", form))
    elif form != "optimised":  # it has run with gradients of its inputs
        assert_same(case.attribute(fusum.attr, converted("backbone", form)), case.attribute(fusum.attr))


@pytest.mark.parametrize("form", ["eager", *OPEN])
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("name", ["LayerGradientXActivation", "LayerIntegratedGradients", "LayerDeepLift"])
def test_other_numbers_of_examples(name: str, form: str, rows: int) -> None:
    x, case = noise(rows, 8, seed=rows), HIDDEN.case(name)
    whole = case.attribute(fusum.attr, inputs=torch.cat([x, noise(4, 8)]))
    found = case.attribute(fusum.attr, converted("mlp", form), inputs=x)
    if not isinstance(found, tuple):
        found, whole = (found,), (whole,)
    assert_same(found, tuple(each[:rows] for each in whole))


@pytest.mark.parametrize("form", OPEN)
def test_a_layer_by_name_or_as_a_module(form: str) -> None:
    """The name is that inside what is spread over devices or compiled; programs have no modules."""
    model, source = converted("mlp", form), subject("mlp")
    expected = LayerActivation(source.module, source.module[2]).attribute(source.inputs)
    modules = {} if form.startswith("exported") or form == "function" else dict(model.named_modules())
    layers = [module for name, module in modules.items() if name.split(".")[-1] == "2"]
    for layer in (source.module[2],) if form == "function" else ("2", *layers):
        assert_same(LayerActivation(model, layer).attribute(source.inputs), expected)


@pytest.mark.parametrize("form", [form for form in OPEN if form.startswith("exported")])
def test_a_program_knows_no_module_of_the_model(form: str) -> None:
    with pytest.raises(ArgumentError, match=r"^layer: got a Linear .*expected a dotted name, .*: one of 0, 1, 2, 3, 4"):
        LayerActivation(converted("mlp", form), subject("mlp").module[2]).attribute(subject("mlp").inputs)


@pytest.mark.parametrize("case", on(LAYERED_SHORT))
def test_frozen_models_have_no_layers(case: Case) -> None:
    said = r"^layer: got '2', .*expected '', the model itself, .*torch\.jit\.freeze"
    with untouched(subject("mlp").module), pytest.raises(ArgumentError, match=said):
        case.attribute(fusum.attr, converted("mlp", "frozen"))


@pytest.mark.parametrize("name", LAYER)
def test_the_layer_of_a_script_module_inside_a_model_of_python(name: str) -> None:
    around = converted("mlp", "around_optimised")
    method = getattr(fusum.attr, name)(around, "inner.2")
    case = HIDDEN.case(name)
    with pytest.raises(ArgumentTypeError, match=r"^layer: .*inner\.2.*ScriptModule.*expected"):
        method.attribute(**case.keywords())


@pytest.mark.parametrize("form", OPEN)
def test_repeated_calls_do_not_drift(form: str) -> None:
    """What is kept of a model serves other layers and other sizes."""
    forward, source = converted("mlp", form), subject("mlp")
    for rows, layer in ((5, "2"), (3, "0"), (5, "2"), (8, "3"), (8, "2")):
        x = noise(rows, 8, seed=rows)
        at = source.module[int(layer)] if form == "function" else layer
        found = LayerGradientXActivation(forward, at).attribute(x, target=2)
        assert_same(found, LayerGradientXActivation(source.module, source.module[int(layer)]).attribute(x, target=2))
