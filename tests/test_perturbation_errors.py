"""Bad arguments of methods that change inputs raise named errors before the model runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fusum.attr
from cases import Case, on
from checkers import assert_identical, assert_refused, untouched
from fusum import ArgumentError, ArgumentTypeError, TargetError
from fusum.attr import FeaturePermutation, ShapleyValues, ShapleyValueSampling
from models import Recorder, noise, subject
from perturbation_cases import AGGREGATES, BASELINED, MASKED, METHODS, PERTURBED_SHORT, SAMPLING, case

X = noise(5, 8)
TWO = (noise(4, 6), noise(4, 2, 3))
MASK = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 3]])


def refuse(label: str, names: str, kind: type[Exception] = ArgumentError, **arguments: Any) -> Any:
    return pytest.param(names, kind, arguments, id=label)


def check(name: str, names: str, kind: type[Exception], arguments: dict[str, Any]) -> None:
    model = Recorder(subject("mlp").module)
    given = {**case(name, "mlp").keywords(), **arguments}
    held = [x for x in given["inputs"] if isinstance(x, Tensor)] if isinstance(given["inputs"], tuple) else [X]
    with untouched(model, *held):
        assert_refused(lambda: getattr(fusum.attr, name)(model).attribute(**given), names, model.rows, kind)


INPUTS = [
    refuse("empty", "inputs", inputs=X[:0]),
    refuse("no-dimensions", "inputs", inputs=torch.tensor(1.0)),
    refuse("list", "inputs", ArgumentTypeError, inputs=[X]),
    refuse("array", "inputs", ArgumentTypeError, inputs=X.numpy()),
    refuse("none", "inputs", ArgumentTypeError, inputs=None),
    refuse("no-inputs", "inputs", inputs=()),
    refuse("sparse", "inputs", ArgumentTypeError, inputs=X.to_sparse()),
]
SHARED = [
    refuse("evals-0", "perturbations_per_eval", perturbations_per_eval=0),
    refuse("evals-negative", "perturbations_per_eval", perturbations_per_eval=-3),
    refuse("evals-1.5", "perturbations_per_eval", ArgumentTypeError, perturbations_per_eval=1.5),
    refuse("evals-text", "perturbations_per_eval", ArgumentTypeError, perturbations_per_eval="2"),
    refuse("evals-none", "perturbations_per_eval", ArgumentTypeError, perturbations_per_eval=None),
    refuse("evals-true", "perturbations_per_eval", ArgumentTypeError, perturbations_per_eval=True),
    refuse("progress", "show_progress", ArgumentTypeError, show_progress=3),
    refuse("float-target", "target", ArgumentTypeError, target=1.0),
    refuse("short-list", "target", target=[0, 1]),
    refuse("short-tensor", "target", target=torch.ones(3, dtype=torch.int64)),
]
BASELINES = [
    refuse("features", "baselines", baselines=noise(5, 7)),
    refuse("rows", "baselines", baselines=noise(2, 8)),
    refuse("no-rows", "baselines", baselines=noise(0, 8)),
    refuse("rank", "baselines", baselines=noise(8)),
    refuse("text", "baselines", ArgumentTypeError, baselines="black"),
    refuse("array", "baselines", ArgumentTypeError, baselines=np.zeros((5, 8))),
    refuse("too-many", "baselines", baselines=(0, 0)),
    refuse("other-device", "baselines", baselines=torch.zeros(5, 8, device="meta")),
]
MASKS = [
    refuse("features", "feature_mask", feature_mask=MASK[:, :7]),
    refuse("rows", "feature_mask", feature_mask=MASK.expand(2, 8)),
    refuse("no-rows", "feature_mask", feature_mask=MASK[:0]),
    refuse("more-dimensions", "feature_mask", feature_mask=MASK[None]),
    refuse("negative", "feature_mask", feature_mask=MASK - 1),
    refuse("float", "feature_mask", ArgumentTypeError, feature_mask=MASK.float()),
    refuse("complex", "feature_mask", ArgumentTypeError, feature_mask=MASK.to(torch.complex64)),
    refuse("list", "feature_mask", ArgumentTypeError, feature_mask=[0] * 8),
    refuse("array", "feature_mask", ArgumentTypeError, feature_mask=MASK.numpy()),
    refuse("number", "feature_mask", ArgumentTypeError, feature_mask=0),
    refuse("two-for-one", "feature_mask", feature_mask=(MASK, MASK)),
    refuse("none-for-one", "feature_mask", feature_mask=()),
    refuse("one-for-two", "feature_mask", inputs=TWO, feature_mask=MASK[:, :6]),
    refuse("second-of-two", "feature_mask[1]", inputs=TWO, feature_mask=(MASK[:, :6], MASK[:, :6])),
    refuse("none-in-a-tuple", "feature_mask[0]", ArgumentTypeError, inputs=TWO, feature_mask=(None, MASK[:, :3])),
]
WINDOWS = [
    refuse("larger", "sliding_window_shapes", sliding_window_shapes=(9,)),
    refuse("zero", "sliding_window_shapes", sliding_window_shapes=(0,)),
    refuse("negative", "sliding_window_shapes", sliding_window_shapes=(-1,)),
    refuse("too-many-dimensions", "sliding_window_shapes", sliding_window_shapes=(2, 2)),
    refuse("too-few-dimensions", "sliding_window_shapes", sliding_window_shapes=()),
    refuse("float", "sliding_window_shapes", ArgumentTypeError, sliding_window_shapes=(2.0,)),
    refuse("bool", "sliding_window_shapes", ArgumentTypeError, sliding_window_shapes=(True,)),
    refuse("list", "sliding_window_shapes", ArgumentTypeError, sliding_window_shapes=[2]),
    refuse("number", "sliding_window_shapes", ArgumentTypeError, sliding_window_shapes=2),
    refuse("none", "sliding_window_shapes", ArgumentTypeError, sliding_window_shapes=None),
    refuse("two-for-one", "sliding_window_shapes", sliding_window_shapes=((2,), (2,))),
    refuse("one-for-two", "sliding_window_shapes", inputs=TWO, sliding_window_shapes=((2,),)),
    refuse("second-of-two", "sliding_window_shapes", inputs=TWO, sliding_window_shapes=((2,), (1, 4))),
]
STRIDES = [
    refuse("zero", "strides", strides=0),
    refuse("negative", "strides", strides=-1),
    refuse("beyond", "strides", strides=3),
    refuse("beyond-in-a-tuple", "strides", strides=(3,)),
    refuse("too-many-dimensions", "strides", strides=(1, 1)),
    refuse("float", "strides", ArgumentTypeError, strides=1.5),
    refuse("bool", "strides", ArgumentTypeError, strides=True),
    refuse("text", "strides", ArgumentTypeError, strides="1"),
    refuse("list", "strides", ArgumentTypeError, strides=[1]),
    refuse("one-for-two", "strides", inputs=TWO, sliding_window_shapes=((2,), (1, 1)), strides=(1,)),
    refuse("number-for-two", "strides", inputs=TWO, sliding_window_shapes=((2,), (1, 1)), strides=1),
    refuse("second-of-two", "strides", inputs=TWO, sliding_window_shapes=((2,), (1, 1)), strides=(1, (1, 2))),
]
SAMPLES = [
    refuse("zero", "n_samples", n_samples=0),
    refuse("negative", "n_samples", n_samples=-2),
    refuse("float", "n_samples", ArgumentTypeError, n_samples=1.5),
    refuse("none", "n_samples", ArgumentTypeError, n_samples=None),
    refuse("bool", "n_samples", ArgumentTypeError, n_samples=True),
    refuse("antithetic", "antithetic", ArgumentTypeError, antithetic=1),
]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("names", "kind", "arguments"), INPUTS)
def test_inputs(name: str, names: str, kind: type[Exception], arguments: dict[str, Any]) -> None:
    check(name, names, kind, arguments)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("names", "kind", "arguments"), SHARED)
def test_shared_arguments(name: str, names: str, kind: type[Exception], arguments: dict[str, Any]) -> None:
    check(name, names, kind, arguments)


@pytest.mark.parametrize("name", BASELINED)
@pytest.mark.parametrize(("names", "kind", "arguments"), BASELINES)
def test_baselines(name: str, names: str, kind: type[Exception], arguments: dict[str, Any]) -> None:
    check(name, names, kind, arguments)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(("names", "kind", "arguments"), MASKS)
def test_masks(name: str, names: str, kind: type[Exception], arguments: dict[str, Any]) -> None:
    check(name, names, kind, arguments)


@pytest.mark.parametrize(("names", "kind", "arguments"), [*WINDOWS, *STRIDES])
def test_windows(names: str, kind: type[Exception], arguments: dict[str, Any]) -> None:
    check("Occlusion", names, kind, arguments)


@pytest.mark.parametrize(("names", "kind", "arguments"), SAMPLES)
def test_samples(names: str, kind: type[Exception], arguments: dict[str, Any]) -> None:
    check("ShapleyValueSampling", names, kind, arguments)


@pytest.mark.parametrize("name", METHODS)
def test_unknown_arguments(name: str) -> None:
    """Also of those that captum's take and do not use."""
    model = Recorder(subject("mlp").module)
    with pytest.raises(TypeError, match="n_stepps"):
        case(name, "mlp").attribute(fusum.attr, model, n_stepps=3)
    assert not model.rows


@pytest.mark.parametrize("name", ["FeatureAblation", "FeaturePermutation"])
def test_an_argument_of_an_older_captum_that_changes_nothing(name: str) -> None:
    row = case(name, "mlp")
    assert_identical(row.attribute(fusum.attr, enable_cross_tensor_attribution=True), row.attribute(fusum.attr))


def test_baselines_of_a_permutation_are_left_out_as_in_captum() -> None:
    row = case("FeaturePermutation", "mlp")
    assert_identical(row.attribute(fusum.attr, baselines=noise(3, 3)), row.attribute(fusum.attr))


# Features that are too many to take all coalitions of.


def test_too_many_features_for_exact_values() -> None:
    model = Recorder(lambda x: x.sum(1))
    explainer = ShapleyValues(model)
    assert_refused(lambda: explainer.attribute(noise(2, 31)), "feature_mask: got 31 features", model.rows)
    few = torch.arange(31)[None] // 10
    assert explainer.attribute(noise(2, 31), feature_mask=few).shape == (2, 31)


def test_many_features_warn_of_their_cost() -> None:
    x = torch.zeros(1, 16)  # as the baseline: nothing is evaluated
    with pytest.warns(UserWarning, match=r"16 features are 2\^16 evaluations; ShapleyValueSampling"):
        ShapleyValues(lambda x: x.sum(1)).attribute(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ShapleyValues(lambda x: x.sum(1)).attribute(x[:, :15])
        ShapleyValueSampling(lambda x: x.sum(1)).attribute(x)


# What is known with the first output only.


@pytest.mark.parametrize("target", [3, -4, [0, 1, 2, 3, 0], torch.tensor([0, 0, -4, 0, 0]), (0, 0)])
@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
def test_a_target_outside_the_output(row: Case, target: Any) -> None:
    model = Recorder(subject("mlp").module)
    with pytest.raises(TargetError, match=r"^target: got .*expected"):
        row.attribute(fusum.attr, model, target=target)
    assert len(model.rows) == 1


@pytest.mark.parametrize("model", AGGREGATES)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "ShapleyValues"])
def test_outputs_that_do_not_grow_with_the_batch(name: str, model: str) -> None:
    """Of several coalitions in one forward nothing can be told where the output has no row for each."""
    row = case(name, model)
    with pytest.raises(ArgumentError, match=r"^perturbations_per_eval: got .*expected 1"):
        row.attribute(fusum.attr, perturbations_per_eval=2)


@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
@pytest.mark.parametrize("forward", [lambda x: "text", lambda x: None, lambda x: {}, lambda x: (None, 1)])
def test_outputs_that_are_none(row: Case, forward: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ArgumentError, match=r"^forward_func: returned .*expected"):
        row.attribute(fusum.attr, forward, target=None)


@pytest.mark.parametrize("name", ["FeatureAblation", *SAMPLING])
@pytest.mark.parametrize("model", ["sum_of_batch", "row_of_batch"])
def test_masks_of_examples_for_one_number_a_batch(name: str, model: str) -> None:
    """A score of the batch belongs to no example."""
    mask = torch.randint(0, 3, (4, 6), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ArgumentError, match=r"^feature_mask: got 4 rows .*expected one row"):
        case(name, model, feature_mask=mask).attribute(fusum.attr)


@pytest.mark.parametrize("forward", [None, 3, "model", noise(3, 3)], ids=["none", "number", "text", "tensor"])
@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
def test_what_is_not_a_model(row: Case, forward: Any) -> None:
    explain = lambda: getattr(fusum.attr, row.chain[0])(forward).attribute(**row.keywords())  # noqa: E731
    assert_refused(explain, "forward_func", [], ArgumentTypeError)


# Shuffling.


@pytest.mark.parametrize("function", [None, 3, "shuffle", noise(2, 2)], ids=["none", "number", "text", "tensor"])
def test_what_does_not_shuffle(function: Any) -> None:
    model = Recorder(subject("mlp").module)
    assert_refused(lambda: FeaturePermutation(model, function), "perm_func", model.rows, ArgumentTypeError)


@pytest.mark.parametrize(
    "function",
    [lambda x, mask: None, lambda x, mask: 3.0, lambda x, mask: x[:2], lambda x, mask: x[:, :2], lambda x, mask: [x]],
    ids=["none", "number", "rows", "features", "list"],
)
def test_what_a_function_shuffles_must_be_rows(function: Any) -> None:
    explainer = FeaturePermutation(subject("mlp").module, function)
    with pytest.raises(ArgumentError, match=r"^perm_func: .*expected .*\(5, 8\)"):
        explainer.attribute(X, target=1)


def test_the_functions_own_errors_pass_through() -> None:
    def function(x: Tensor, mask: Tensor) -> Tensor:
        raise ValueError("mine")

    with untouched(subject("mlp").module, X), pytest.raises(ValueError, match=r"^mine$"):
        FeaturePermutation(subject("mlp").module, function).attribute(X, target=1)


@pytest.mark.parametrize("function", [None, lambda x, mask: x.flip(0)], ids=["default", "own"])
def test_one_example_cannot_be_shuffled(function: Any) -> None:
    """Zeros, as in captum, but not in silence."""
    options = {} if function is None else {"perm_func": function}
    with pytest.warns(UserWarning, match=r"^inputs: got .*fewer than 2 rows"):
        scores = FeaturePermutation(subject("mlp").module, **options).attribute(X[:1], target=1)
    assert_identical(scores, torch.zeros(1, 8))


def test_two_examples_can_be() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (FeaturePermutation(subject("mlp").module).attribute(X[:2], target=1) != 0).any()
