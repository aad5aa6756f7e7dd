"""Bad layers, neurons and arguments of theirs raise named errors, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum.attr
from cases import Case
from checkers import assert_refused, assert_same, untouched
from formats import converted
from fusum import ArgumentError, ArgumentTypeError, NoGradientError, TargetError
from fusum.attr import LayerActivation, LayerGradientXActivation, NeuronGradient
from layer_cases import GUIDED_CAM, HIDDEN, LAYER, LAYERED_SHORT, NEURON, UNUSED, first_summed
from models import Recorder, noise, subject

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # NeuronConductance warns of functions

CLASSES = [name for name in (*LAYER, *NEURON) if name != "GuidedGradCam"]
X = noise(5, 8)


def explain(name: str, model: Any, layer: Any, **arguments: Any) -> Any:
    """The result of a class with its usual arguments; a neuron is the sum of what its layer holds."""
    own = {"neuron_selector": first_summed} if name in NEURON else {}
    keywords = HIDDEN.case(name).keywords()
    return getattr(fusum.attr, name)(model, layer).attribute(**{**keywords, **own, **arguments})


# Layers that are known to be wrong before anything runs.

WRONG: list[tuple[str, Any, type[Exception]]] = [
    ("another-module", nn.Linear(2, 2), ArgumentError),
    ("another-name", "body.9", ArgumentError),
    ("a-parameter", "body.2.weight", ArgumentError),
    ("a-number", 3, ArgumentTypeError),
    ("none", None, ArgumentTypeError),
    ("a-tensor", noise(2, 2), ArgumentTypeError),
    ("a-tuple", ("body.0", "body.2"), ArgumentTypeError),
    ("a-list-with-a-number", ["body.0", 3], ArgumentTypeError),
    ("an-empty-list", [], ArgumentError),
]


@pytest.mark.parametrize(("layer", "kind"), [pytest.param(*rest, id=name) for name, *rest in WRONG])
@pytest.mark.parametrize("name", ["LayerActivation", "LayerIntegratedGradients", "LayerDeepLift", "NeuronGradient"])
def test_what_is_no_layer_of_the_model(name: str, layer: Any, kind: type[Exception]) -> None:
    model = Recorder(subject("mlp").module)
    if isinstance(layer, list) and name.startswith("Neuron"):
        kind = ArgumentTypeError  # of a neuron's layer, a list is itself wrong
    with untouched(model):
        assert_refused(lambda: explain(name, model, layer), "layer: ", model.rows, kind)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("form", ["eager", "scripted", "exported_dynamic"])
def test_the_names_that_are_there_are_listed(name: str, form: str) -> None:
    with pytest.raises(ArgumentError, match=r"^layer: .*nothing.*expected one of .*0.*2.*4"):
        explain(name, converted("mlp", form), "nothing")


def test_of_many_names_some_are_listed() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(50)])
    with pytest.raises(ArgumentError, match=r"^layer: .*expected one of 0, 1, .* and 30 more"):
        LayerActivation(model, "other").attribute(noise(3, 2))


def test_a_name_for_a_layer_of_a_function() -> None:
    seen: list[int] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(len(x))
        return subject("mlp").module(x)

    assert_refused(lambda: explain("LayerActivation", forward, "2"), "layer: ", seen)


@pytest.mark.parametrize("name", NEURON)
def test_a_list_of_layers_of_a_neuron(name: str) -> None:
    model = Recorder(subject("mlp").module)
    assert_refused(lambda: explain(name, model, ["body.0"]), "layer: ", model.rows, ArgumentTypeError)


# Layers that turn out to be wrong.


class Never(nn.Module):
    """Has a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.layer = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Constant(Never):
    """Calls it with something of no batch dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.layer(torch.ones(7, 8)).sum()


class Whole(Never):
    """A layer that returns integers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.layer((x > 0).long()).sum(1, keepdim=True)


class Unread(Never):
    """Calls it and does not use what it returns."""

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x)
        return self.body(x)


class Listed(Never):
    """A layer that returns no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Sizes()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.layer(x)[1]


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> list[int]:
        return list(x.shape)


def refused(name: str, model: nn.Module, match: str, kind: type[Exception] = ArgumentError, **arguments: Any) -> None:
    model.eval()
    with untouched(model, X), pytest.raises(kind, match=match):
        explain(name, model, "layer", **arguments)


@pytest.mark.parametrize("name", CLASSES)
def test_a_layer_that_never_runs(name: str) -> None:
    refused(name, Never(), r"^layer: layer did not run; expected")
    with pytest.raises(ArgumentError, match=r"^layer: Linear did not run"):
        explain(name, lambda x: subject("mlp").module(x), nn.Linear(2, 2))


@pytest.mark.parametrize("name", CLASSES)
def test_a_layer_without_rows(name: str) -> None:
    refused(name, Constant(), r"^layer: layer holds .*\(7, 3\)")


def _of_gradients() -> Iterator[Any]:
    for name in CLASSES:
        if name != "LayerActivation":
            yield pytest.param(name, r"^layer: " if name in LAYER else r"^(layer|forward_func): ", id=name)


@pytest.mark.parametrize(("name", "match"), list(_of_gradients()))
def test_a_layer_of_integers_has_no_gradient(name: str, match: str) -> None:
    refused(name, Whole(), match)


def test_a_layer_of_integers_has_values() -> None:
    assert explain("LayerActivation", Whole().eval(), "layer").dtype == torch.int64


@pytest.mark.parametrize(("name", "match"), list(_of_gradients()))
def test_a_layer_of_no_tensors(name: str, match: str) -> None:
    refused(name, Listed(), match)


@pytest.mark.parametrize("name", [*(n for n in LAYER if n in CLASSES and n != "LayerActivation"), "NeuronConductance"])
def test_a_layer_that_the_output_does_not_depend_on(name: str) -> None:
    refused(name, Unread(), r"^layer: the output does not depend on what it holds", NoGradientError)
    refused(name, Unread(), r"^layer: the output", RuntimeError)  # as autograd's own
    if name in UNUSED:
        refused(name, Unread(), r"^layer: the output does not", grad_kwargs={"allow_unused": False})


@pytest.mark.parametrize("name", UNUSED)
@pytest.mark.parametrize("allow", ["allow_unused", "materialize_grads"])
def test_a_layer_without_influence_may_have_zeros(name: str, allow: str) -> None:
    model = Unread().eval()
    with untouched(model, X):
        found = explain(name, model, "layer", grad_kwargs={allow: True})
    scores = found[0] if isinstance(found, tuple) else found
    assert len(scores) == 5
    assert not scores.any()


# Options.


@pytest.mark.parametrize("name", UNUSED)
@pytest.mark.parametrize("options", [{"create_graph": True}, {"is_grads_batched": True}, {"sum": 1}])
def test_options_of_gradients_that_are_not_served(name: str, options: dict[str, Any]) -> None:
    model = Recorder(subject("mlp").module)
    assert_refused(lambda: explain(name, model, "body.2", grad_kwargs=options), "grad_kwargs: ", model.rows)


def test_options_of_gradients_are_a_mapping() -> None:
    model = Recorder(subject("mlp").module)
    call = lambda: explain("LayerGradCam", model, "body.2", grad_kwargs=3)  # noqa: E731
    assert_refused(call, "grad_kwargs: ", model.rows, ArgumentTypeError)


@pytest.mark.parametrize(
    ("arguments", "names", "kind"),
    [
        ({"method": "simpson"}, "method: ", ArgumentError),
        ({"n_steps": 0}, "n_steps: ", ArgumentError),
        ({"n_steps": 1, "method": "riemann_trapezoid"}, "n_steps: ", ArgumentError),
        ({"n_steps": "5"}, "n_steps: ", ArgumentTypeError),
        ({"internal_batch_size": 0}, "internal_batch_size: ", ArgumentError),
        ({"baselines": noise(2, 8)}, "baselines: ", ArgumentError),
        ({"target": 1.5}, "target: ", ArgumentTypeError),
        ({"inputs": X[:0]}, "inputs: ", ArgumentError),
        ({"inputs": X.numpy()}, "inputs: ", ArgumentTypeError),
    ],
)
@pytest.mark.parametrize("name", ["LayerIntegratedGradients", "LayerConductance", "NeuronConductance"])
def test_arguments_are_checked_before_the_model_runs(
    name: str, arguments: dict[str, Any], names: str, kind: type[Exception]
) -> None:
    model = Recorder(subject("mlp").module)
    assert_refused(lambda: explain(name, model, "body.2", **arguments), names, model.rows, kind)


@pytest.mark.parametrize("name", [name for name in CLASSES if HIDDEN.case(name).has_target])
def test_a_target_outside_the_output(name: str) -> None:
    model = subject("mlp").module
    with untouched(model), pytest.raises(TargetError, match=r"^target: got .*expected"):
        explain(name, model, "2", target=3)


OF_INPUTS = ("LayerConductance", "InternalInfluence", *NEURON)


@pytest.mark.parametrize("name", OF_INPUTS)
def test_ids_where_inputs_are_changed_or_have_gradients(name: str) -> None:
    source, ids = subject("embedded"), {"inputs": subject("embedded").inputs}
    if name.endswith("Shap"):
        ids["baselines"] = source.inputs
    with untouched(source.module, *source.inputs):
        refused_ids = lambda: explain(name, source.module, "words", **ids)  # noqa: E731
        assert_refused(refused_ids, "inputs[0]: ", [], ArgumentTypeError)


@pytest.mark.parametrize("name", ["LayerGradientXActivation", "LayerIntegratedGradients", "LayerDeepLift"])
def test_ids_themselves_have_no_scores(name: str) -> None:
    source = subject("embedded")
    with untouched(source.module, *source.inputs), pytest.raises(ArgumentTypeError, match=r"^layer: words.*int64"):
        explain(name, source.module, "words", inputs=source.inputs, attribute_to_layer_input=True)


# Neurons.

SELECTORS: list[tuple[str, Any, type[Exception]]] = [
    ("text", "3", ArgumentTypeError),
    ("none", None, ArgumentTypeError),
    ("float", 1.5, ArgumentTypeError),
    ("bool", True, ArgumentTypeError),
    ("empty", (), ArgumentTypeError),
    ("list", [1], ArgumentTypeError),
    ("float-in-a-tuple", (1.5,), ArgumentTypeError),
    ("dots", ..., ArgumentTypeError),
    ("several-in-a-tensor", torch.tensor([1, 2]), ArgumentTypeError),
]


@pytest.mark.parametrize(("selector", "kind"), [pytest.param(*rest, id=name) for name, *rest in SELECTORS])
@pytest.mark.parametrize("name", NEURON)
def test_what_is_no_neuron(name: str, selector: Any, kind: type[Exception]) -> None:
    model = Recorder(subject("mlp").module)
    call = lambda: explain(name, model, "body.2", neuron_selector=selector)  # noqa: E731
    assert_refused(call, "neuron_selector: ", model.rows, kind)


OUTSIDE: dict[str, Any] = {
    "empty-slice": slice(0, 0),
    "slice-outside": (slice(20, 30),),
    "function-of-all": lambda held: held,
    "function-of-a-number": lambda held: 3,
}


@pytest.mark.parametrize("selector", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("name", NEURON)
def test_neurons_that_are_not_there(name: str, selector: Any) -> None:
    model = subject("mlp").module
    with untouched(model, X), pytest.raises(ArgumentError, match=r"^neuron_selector: .*expected"):
        explain(name, model, "2", neuron_selector=selector)


@pytest.mark.parametrize("selector", [3, (0, 1), slice(0, 2)])
def test_a_layer_of_several_tensors_needs_a_function(selector: Any) -> None:
    source = subject("lstm")
    with pytest.raises(ArgumentError, match=r"^neuron_selector: .*3 tensors; expected a function"):
        NeuronGradient(source.module, "layer").attribute(source.inputs, selector)


# Errors of the model itself.


class Fails(nn.Module):
    """Raises at its n-th call."""

    def __init__(self, at_call: int) -> None:
        super().__init__()
        self.calls = [0, at_call]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        if self.calls[0] == self.calls[1]:
            raise KeyError("mine")
        return x


def _failing() -> Iterator[Any]:
    for case in LAYERED_SHORT:
        for behind in (False, True):
            stops = case.chain[0] == "LayerActivation" or (case.chain[0] in NEURON and "Conduct" not in case.chain[0])
            for at_call in (1,) if behind and stops else (1, 2):
                yield pytest.param(case, at_call, behind, id=f"{case.name}-{at_call}-{'after' if behind else 'before'}")


@pytest.mark.parametrize(("case", "at_call", "behind"), list(_failing()))
def test_the_models_own_errors_pass_through(case: Case, at_call: int, behind: bool) -> None:
    """Also amid a forward in which what came before the layer does not run."""
    body = list(subject("mlp").module)
    fails = Fails(at_call)
    parts = [*body[:3], fails, *body[3:]] if behind else [*body[:2], fails, *body[2:]]
    model, x = nn.Sequential(*parts).eval(), X.clone().requires_grad_()
    method = getattr(fusum.attr, case.chain[0])(model, body[2])
    keywords = {**case.keywords(), "inputs": x}
    expected = case.attribute(fusum.attr)
    raised: list[KeyError] = []
    with untouched(model, x), fusum.config(max_rows=2):
        for _ in range(4):
            try:
                torch.manual_seed(0)
                method.attribute(**keywords)
            except KeyError as error:
                raised.append(error)
    assert len(raised) == 1
    assert raised[0].args == ("mine",)
    if "GradientShap" not in case.name:
        assert_same(method.attribute(**keywords), expected)


def test_maps_that_cannot_be_laid_over_inputs() -> None:
    """As in captum: a warning, and nothing."""
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose result is the measure, is not installed")
    source = subject("skip")
    results = []
    for attr in (fusum.attr, captum_attr):
        method = attr.GuidedGradCam(source.module, source.module.body)
        with pytest.warns(UserWarning, match="interpolate|resized"):
            results.append(method.attribute(source.inputs, target=1))
    assert_same(*results)


@pytest.mark.parametrize("build", [LayerActivation, LayerGradientXActivation])
@pytest.mark.parametrize("forward", [None, 3, "model", noise(3, 3)], ids=["none", "number", "text", "tensor"])
def test_what_is_not_a_model(build: Any, forward: Any) -> None:
    assert_refused(lambda: build(forward, "2").attribute(X), "forward_func", [], ArgumentTypeError)


def test_a_guided_cam_is_of_one_layer() -> None:
    source = subject("skip")
    method = fusum.attr.GuidedGradCam(source.module, ["inner", "pool"])
    with pytest.raises(ArgumentError, match=r"^layer: "):
        method.attribute(**GUIDED_CAM.keywords())


def test_a_layer_of_other_calls_for_baselines_than_for_inputs() -> None:
    inner = nn.Linear(8, 8)
    forward = lambda x: (inner(inner(x)) if x.abs().sum() > 0 else inner(x)).sum(1)  # noqa: E731
    for name in ("LayerIntegratedGradients", "LayerDeepLift"):
        with untouched(inner, X), pytest.raises(ArgumentError, match=r"^(layer|forward_func): "):
            getattr(fusum.attr, name)(forward, inner).attribute(X)
