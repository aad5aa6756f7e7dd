"""Bad input raises before the model has run, and the message begins with the name of the argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fusum
import fusum.attr
from cases import SHORT, Case, on
from checkers import assert_refused, untouched
from fusum import ArgumentError, ArgumentTypeError, TargetError
from fusum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from layer_cases import LAYERED_SHORT
from models import Recorder, noise, subject

X = noise(5, 8)
TWO = (noise(4, 6), noise(4, 2, 3))
IDS = torch.arange(40).view(5, 8)


def refuse(case: str, names: str, arguments: dict[str, Any], kind: type[Exception] = ArgumentError) -> Any:
    return pytest.param(names, arguments, kind, id=case)


INPUTS = [
    refuse("token-ids", "inputs", {"inputs": IDS}, ArgumentTypeError),
    refuse("bool", "inputs", {"inputs": X > 0}, ArgumentTypeError),
    refuse("complex", "inputs", {"inputs": X.to(torch.complex64)}, ArgumentTypeError),
    refuse("ids-in-a-tuple", "inputs[1]", {"inputs": (X, IDS)}, ArgumentTypeError),
    refuse("empty", "inputs", {"inputs": X[:0]}),
    refuse("empty-in-a-tuple", "inputs[0]", {"inputs": (X[:0], X[:0])}),
    refuse("no-dimensions", "inputs", {"inputs": torch.tensor(1.0)}),
    refuse("mismatched", "inputs[1]", {"inputs": (X, X[:3])}),
    refuse("list", "inputs", {"inputs": [X]}, ArgumentTypeError),
    refuse("array", "inputs", {"inputs": X.numpy()}, ArgumentTypeError),
    refuse("none", "inputs", {"inputs": None}, ArgumentTypeError),
    refuse("nothing-but-none", "inputs", {"inputs": (None, None)}),
    refuse("no-inputs", "inputs", {"inputs": ()}),
]
TARGETS = [
    refuse("float", "target", {"target": 1.0}, ArgumentTypeError),
    refuse("text", "target", {"target": "cat"}, ArgumentTypeError),
    refuse("bool", "target", {"target": True}, ArgumentTypeError),
    refuse("empty-tuple", "target", {"target": ()}, ArgumentTypeError),
    refuse("slice", "target", {"target": slice(0, 1)}, ArgumentTypeError),
    refuse("float-tensor", "target", {"target": torch.ones(5)}, ArgumentTypeError),
    refuse("bool-tensor", "target", {"target": torch.ones(5) > 0}, ArgumentTypeError),
    refuse("short-tensor", "target", {"target": torch.ones(3, dtype=torch.int64)}),
    refuse("matrix", "target", {"target": torch.ones(5, 1, dtype=torch.int64)}),
    refuse("empty-tensor", "target", {"target": torch.ones(0, dtype=torch.int64)}),
    refuse("short-list", "target", {"target": [0, 1]}),
    refuse("empty-list", "target", {"target": []}),
    refuse("list-of-text", "target[1]", {"target": [0, "a", 1, 1, 1]}, ArgumentTypeError),
    refuse("uneven-places", "target[4]", {"target": [(0,), (0,), (0,), (0,), (0, 1)]}),
]
BASELINES = [
    refuse("features", "baselines", {"baselines": noise(5, 7)}),
    refuse("rows", "baselines", {"baselines": noise(2, 8)}),
    refuse("no-rows", "baselines", {"baselines": noise(0, 8)}),
    refuse("rank", "baselines", {"baselines": noise(8)}),
    refuse("more-dimensions", "baselines", {"baselines": noise(1, 8, 2)}),
    refuse("text", "baselines", {"baselines": "black"}, ArgumentTypeError),
    refuse("list", "baselines", {"baselines": [0.0] * 8}, ArgumentTypeError),
    refuse("array", "baselines", {"baselines": np.zeros((5, 8))}, ArgumentTypeError),
    refuse("complex", "baselines", {"baselines": 1j}, ArgumentTypeError),
    refuse("too-many", "baselines", {"baselines": (0, 0)}),
    refuse("too-few", "baselines", {"inputs": TWO, "baselines": (0,)}),
    refuse("one-for-two", "baselines", {"inputs": TWO, "baselines": 0}),
    refuse("second-of-two", "baselines[1]", {"inputs": TWO, "baselines": (0, noise(4, 3, 2))}),
    refuse("none-in-a-tuple", "baselines[0]", {"inputs": TWO, "baselines": (None, 0)}, ArgumentTypeError),
    refuse("other-device", "baselines", {"baselines": torch.zeros(5, 8, device="meta")}),
]
LINES = [
    refuse("unknown-method", "method", {"method": "simpson"}),
    refuse("empty-method", "method", {"method": ""}),
    refuse("method-type", "method", {"method": 3}, ArgumentTypeError),
    refuse("no-method", "method", {"method": None}, ArgumentTypeError),
    refuse("one-point-trapezoid", "n_steps", {"method": "riemann_trapezoid", "n_steps": 1}),
    *(
        refuse(f"{name}-{value!r}", name, {name: value}, kind)
        for name, (value, kind) in product(
            ("n_steps", "internal_batch_size"),
            ((0, ArgumentError), (-1, ArgumentError), (2.5, ArgumentTypeError), ("5", ArgumentTypeError)),
        )
    ),
    refuse("n_steps-none", "n_steps", {"n_steps": None}, ArgumentTypeError),
    refuse("n_steps-true", "n_steps", {"n_steps": True}, ArgumentTypeError),
]
SHAP = [
    refuse("a-number", "baselines", {"baselines": 0.0}, ArgumentTypeError),
    refuse("none", "baselines", {"baselines": None}, ArgumentTypeError),
    refuse("empty-tuple", "baselines", {"baselines": ()}, ArgumentTypeError),
    refuse("function-of-a-number", "baselines", {"baselines": lambda: 0.0}, ArgumentTypeError),
    refuse("features", "baselines", {"baselines": noise(9, 7)}),
    refuse("empty", "baselines", {"baselines": noise(0, 8)}),
    refuse("too-many", "baselines", {"baselines": (noise(9, 8), noise(9, 8))}),
    refuse("n_samples-0", "n_samples", {"n_samples": 0}),
    refuse("n_samples-1.5", "n_samples", {"n_samples": 1.5}, ArgumentTypeError),
    refuse("negative-stdev", "stdevs", {"stdevs": -1.0}),
    refuse("nan-stdev", "stdevs", {"stdevs": float("nan")}),
    refuse("text-stdev", "stdevs", {"stdevs": "1"}, ArgumentTypeError),
    refuse("two-stdevs", "stdevs", {"stdevs": (0.1, 0.1)}),
    refuse("list-of-stdevs", "stdevs", {"stdevs": [0.1]}, ArgumentTypeError),
]
TUNNEL = [
    refuse("unknown-type", "nt_type", {"nt_type": "smooth"}),
    refuse("no-type", "nt_type", {"nt_type": None}),
    refuse("nt_samples-0", "nt_samples", {"nt_samples": 0}),
    refuse("nt_samples-text", "nt_samples", {"nt_samples": "5"}, ArgumentTypeError),
    refuse("batch-0", "nt_samples_batch_size", {"nt_samples_batch_size": 0}),
    refuse("batch-1.5", "nt_samples_batch_size", {"nt_samples_batch_size": 1.5}, ArgumentTypeError),
    refuse("negative-stdev", "stdevs", {"stdevs": -0.1}),
    refuse("negative-of-two", "stdevs", {"inputs": TWO, "stdevs": (0.1, -0.1)}),
    refuse("one-stdev-for-two", "stdevs", {"inputs": TWO, "stdevs": (0.1,)}),
]


def check(build: Callable[[nn.Module], Any], names: str, arguments: dict[str, Any], kind: type[Exception]) -> None:
    model = Recorder(subject("mlp").module)
    arguments = {"inputs": X, "target": 1, **arguments}
    held = [x for x in arguments["inputs"] if isinstance(x, Tensor)] if isinstance(arguments["inputs"], tuple) else [X]
    with untouched(model, *held):
        assert_refused(lambda: build(model).attribute(arguments.pop("inputs"), **arguments), names, model.rows, kind)


WITH_SHAP: dict[str, Any] = {"baselines": noise(9, 8)}
BUILDERS = {
    "Saliency": (Saliency, {}),
    "InputXGradient": (InputXGradient, {}),
    "IntegratedGradients": (IntegratedGradients, {}),
    "GradientShap": (GradientShap, WITH_SHAP),
    "NoiseTunnel-Saliency": (lambda model: NoiseTunnel(Saliency(model)), {}),
    "NoiseTunnel-IntegratedGradients": (lambda model: NoiseTunnel(IntegratedGradients(model)), {}),
}


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(("names", "arguments", "kind"), [*INPUTS, *TARGETS])
def test_inputs_and_targets(builder: str, names: str, arguments: dict[str, Any], kind: type[Exception]) -> None:
    build, own = BUILDERS[builder]
    check(build, names, {**own, **arguments}, kind)


@pytest.mark.parametrize("builder", [name for name in BUILDERS if "I" in name and "X" not in name])
@pytest.mark.parametrize(("names", "arguments", "kind"), [*BASELINES, *LINES])
def test_lines(builder: str, names: str, arguments: dict[str, Any], kind: type[Exception]) -> None:
    check(BUILDERS[builder][0], names, arguments, kind)


@pytest.mark.parametrize(("names", "arguments", "kind"), SHAP)
def test_gradient_shap(names: str, arguments: dict[str, Any], kind: type[Exception]) -> None:
    check(GradientShap, names, {**WITH_SHAP, **arguments}, kind)


@pytest.mark.parametrize("inner", [Saliency, IntegratedGradients])
@pytest.mark.parametrize(("names", "arguments", "kind"), TUNNEL)
def test_noise_tunnel(inner: Any, names: str, arguments: dict[str, Any], kind: type[Exception]) -> None:
    check(lambda model: NoiseTunnel(inner(model)), names, arguments, kind)


@pytest.mark.parametrize("target", [3, -4, 99, [0, 1, 2, 3, 0], torch.tensor([0, 0, -4, 0, 0]), (0, 0), None])
@pytest.mark.parametrize("case", on(SHORT))
def test_a_target_outside_the_output(case: Case, target: Any) -> None:
    """Known only once the model has answered: one call is made, and no more."""
    model = Recorder(subject("mlp").module)
    with pytest.raises(TargetError, match=r"^target: got .*expected") as caught:
        case.attribute(fusum.attr, model, target=target)
    # captum's own check, torch's index, torch's gather.
    assert all(isinstance(caught.value, kind) for kind in (AssertionError, IndexError, RuntimeError))
    assert len(model.rows) == 1


@pytest.mark.parametrize("target", [[0, 1, 2, 1, 0], torch.tensor([0, 1, 2, 1, 0]), [(1,)] * 5])
@pytest.mark.parametrize("name", ["Saliency", "LRP", "FeatureAblation"])
def test_a_target_for_each_example_of_an_output_of_one_row(name: str, target: Any) -> None:
    whole = nn.Sequential(nn.Linear(8, 3), Whole())
    with pytest.raises(TargetError, match=r"^target: got .*shape \(1, 3\); expected one"):
        getattr(fusum.attr, name)(whole).attribute(X, target=target)
    getattr(fusum.attr, name)(whole).attribute(X, target=1)


class Whole(nn.Module):
    """One row for a whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True)


# Methods that look once at a whole batch may explain its rows together.
ONCE = ("Saliency", "InputXGradient", "GuidedBackprop", "Deconvolution", "LRP")


def _outputs() -> Iterator[Any]:
    yield pytest.param(lambda x: x.sum(), id="one-number")
    yield pytest.param(lambda x: x.sum(0, keepdim=True), id="one-row")
    yield pytest.param(lambda x: x[:-1], id="a-row-short")
    yield pytest.param(lambda x: "text", id="text")
    yield pytest.param(lambda x: None, id="none")
    yield pytest.param(lambda x: {}, id="empty-dict")
    yield pytest.param(lambda x: (None, 1), id="no-tensor")
    yield pytest.param(lambda x: x.detach(), id="detached")
    yield pytest.param(lambda x: torch.ones(len(x), 8, requires_grad=True), id="constant")


@pytest.mark.parametrize("forward", list(_outputs()))
@pytest.mark.parametrize("case", on([case for case in SHORT if case.chain[0] not in ONCE]))
def test_outputs_that_cannot_be_explained(case: Case, forward: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ArgumentError, match=r"^forward_func: .*expected"):
        case.attribute(fusum.attr, forward)


@pytest.mark.parametrize("forward", [lambda x: x.detach(), lambda x: torch.ones(len(x), 8, requires_grad=True)])
def test_an_output_without_gradient_is_an_error_of_the_kind_that_autograd_raises(forward: Any) -> None:
    for method in (Saliency, IntegratedGradients):
        with pytest.raises(RuntimeError, match=r"^forward_func: its output .*expected it to"):
            method(forward).attribute(X, target=0)


@pytest.mark.parametrize("case", on(SHORT))
def test_one_number_a_batch(case: Case) -> None:
    with pytest.raises(ArgumentError, match=r"^forward_func: returned shape \(\) "):
        case.attribute(fusum.attr, lambda x: x.sum(), target=None)


@pytest.mark.parametrize("case", on(SHORT))
@pytest.mark.parametrize("forward", [None, 3, "model", noise(3, 3)], ids=["none", "number", "text", "tensor"])
def test_what_is_not_a_model(case: Case, forward: Any) -> None:
    def explain() -> None:
        explainer = getattr(fusum.attr, case.chain[-1])(forward)
        explainer = NoiseTunnel(explainer) if len(case.chain) > 1 else explainer
        explainer.attribute(**case.keywords())

    assert_refused(explain, "forward_func", [], ArgumentTypeError)


def test_what_is_not_a_method() -> None:
    for wrong in (None, subject("mlp").module, lambda x: x):
        with pytest.raises(ArgumentTypeError, match=r"^attribution_method: got "):
            NoiseTunnel(wrong)  # type: ignore[arg-type]


def test_unknown_arguments_are_type_errors() -> None:
    model = Recorder(subject("mlp").module)
    for explainer in (Saliency(model), IntegratedGradients(model), NoiseTunnel(Saliency(model))):
        with pytest.raises(TypeError, match="n_stepps"):
            explainer.attribute(X, target=1, n_stepps=3)
    assert not model.rows


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"max_rows": 0}, "max_rows"),
        ({"max_rows": 1.5}, "max_rows"),
        ({"memory": -1}, "memory"),
        ({"memory": "much"}, "memory"),
        ({"memory": "xMB"}, "memory"),
        ({"memory": "-5MB"}, "memory"),
        ({"backend": "cuda"}, "backend"),
        ({"backend": None}, "backend"),
        ({"strict": 1}, "strict"),
        ({"rows": 5}, "config"),
        ({"max_rows": 7, "memory": "0KB"}, "memory"),
    ],
)
def test_settings(options: dict[str, Any], names: str) -> None:
    with untouched(subject("mlp").module):
        assert_refused(lambda: fusum.config(**options), names, [])


@pytest.mark.parametrize("wrong", [noise(4, 8), torch.tensor(1.0)], ids=["rows", "no-dimensions"])
def test_attributions_that_do_not_fit(wrong: Tensor) -> None:
    model = Recorder(subject("mlp").module)
    explainer = IntegratedGradients(model)
    assert_refused(lambda: explainer.compute_convergence_delta(wrong, 0, X, target=1), "attributions", model.rows)


class Broken(nn.Module):
    """A model whose own error, at its n-th call, must come through as it is."""

    def __init__(self, error: BaseException, at_call: int) -> None:
        super().__init__()
        self.body, self.error, self.left = subject("mlp").module, error, at_call
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        object.__setattr__(self, "left", self.left - 1)
        if self.left == 0:
            raise self.error
        return self.body(x)


ERRORS = [ValueError("mine"), RuntimeError("mine"), AssertionError("mine"), KeyboardInterrupt(), IndexError("mine")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at_call", [1, 2])
@pytest.mark.parametrize("case", on(SHORT))
def test_the_models_own_errors_pass_through(case: Case, at_call: int, error: BaseException) -> None:
    model, x = Broken(error, at_call), X.clone().requires_grad_()
    x.grad = torch.ones_like(x)
    with untouched(model, x), pytest.raises(type(error)) as caught, fusum.config(max_rows=2):
        case.attribute(fusum.attr, model, inputs=x)
    assert caught.value is error


# The way back from a layer does not come by its inputs.
NEURONS = [case for case in LAYERED_SHORT if case.chain[0].startswith("Neuron")]


class FailsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise ValueError("no way back")


@pytest.mark.parametrize("case", on([*SHORT, *NEURONS]))
def test_an_error_on_the_way_back_passes_through(case: Case) -> None:
    x = X.clone()
    with untouched(subject("mlp").module, x), pytest.raises(ValueError, match="no way back") as caught:
        case.attribute(fusum.attr, lambda x: subject("mlp").module(FailsBackwards.apply(x)), inputs=x)
    assert not isinstance(caught.value, ArgumentError)
