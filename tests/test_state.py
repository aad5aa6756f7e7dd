"""Modes, flags, dtypes and threads: nothing is left behind, and nothing of a caller's state disturbs a result."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum
import fusum.attr
from cases import CASES, SHORT, Case, on, seed
from checkers import assert_identical, assert_no_graph, assert_same, flat, untouched
from formats import converted
from fusum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from fusum.settings import current
from layer_cases import BASELINED, GUIDED_CAM, LAYERED_SHORT, ODD, SOMEWHERE
from models import Recorder, noise, subject

EVERY = [*SHORT, *LAYERED_SHORT]


@pytest.mark.parametrize("case", on([*CASES, *SOMEWHERE, *ODD, GUIDED_CAM]))
def test_nothing_is_left_behind(case: Case) -> None:
    tensors = tuple(x for x in case.subject.tensors if x is not None)
    extra = tuple(a for a in case.subject.extra if isinstance(a, Tensor))
    with untouched(case.subject.module, *tensors, *extra):
        result = case.attribute(fusum.attr)
    assert_no_graph(result)


@pytest.mark.parametrize("case", on(EVERY))
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("form", ["eager", "traced"])
def test_modes(case: Case, mode: Any, form: str) -> None:
    forward, expected = converted("mlp", form), case.attribute(fusum.attr)
    with mode():
        made_inside = noise(5, 8)
        given_inside = {"baselines": noise(7, 8, seed=31)} if case.chain[-1] == "GradientShap" else {}
        for inputs in (subject("mlp").inputs, made_inside):
            with untouched(subject("mlp").module, inputs):
                found = case.attribute(fusum.attr, forward, inputs=inputs, **given_inside)
            assert_no_graph(found)
            assert_same(found, expected)


@pytest.mark.parametrize("case", on(EVERY))
def test_results_of_inference_mode_can_be_used_outside(case: Case) -> None:
    with torch.inference_mode():
        scores = flat(case.attribute(fusum.attr))[0]
    weight = torch.ones(8, requires_grad=True)
    (scores * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("case", on(EVERY))
def test_baselines_and_targets_made_in_inference_mode(case: Case) -> None:
    with torch.inference_mode():
        target = torch.tensor([0, 1, 2, 0, 1])
        baselines = noise(5, 8, seed=3)
    keywords: dict[str, Any] = {"target": target} if case.has_target else {}
    if case.chain[-1].endswith(("IntegratedGradients", "GradientShap")):
        keywords["baselines"] = baselines
    normal = {name: value.clone() for name, value in keywords.items()}
    assert_same(case.attribute(fusum.attr, **keywords), case.attribute(fusum.attr, **normal))


@pytest.mark.parametrize("case", on(EVERY))
def test_inputs_that_require_gradients(case: Case) -> None:
    x = noise(5, 8).requires_grad_()
    leaf = noise(5, 8).requires_grad_()
    inner = leaf * 1.0
    x.grad = torch.full_like(x, 7)
    with untouched(subject("mlp").module, x, leaf):
        for inputs in (x, inner):
            found = case.attribute(fusum.attr, inputs=inputs)
            assert_no_graph(found)
            assert_identical(found, case.attribute(fusum.attr, inputs=inputs.detach()))
    assert_identical(x.grad, torch.full_like(x, 7))
    assert inner.grad_fn is not None


@pytest.mark.parametrize("case", on(EVERY))
def test_scores_do_not_share_memory_with_inputs(case: Case) -> None:
    x = noise(5, 8)
    before = x.clone()
    for scores in flat(case.attribute(fusum.attr, inputs=x)):
        assert scores is not None
        scores.add_(1)
    assert_identical(x, before)


def test_weights_get_no_gradients() -> None:
    model = deepcopy(subject("mlp").module)
    IntegratedGradients(model).attribute(noise(5, 8), target=1)
    assert all(p.grad is None for p in model.parameters())


class InPlace(nn.Module):
    """Changes what it is given: the caller's tensors must not be it."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        y.mul_(3.0).relu_()
        return y.sum(1)


@pytest.mark.parametrize("case", on(SHORT))
def test_a_model_that_works_in_place(case: Case) -> None:
    plain = case.attribute(fusum.attr, lambda x: (3 * x).relu().sum(1), target=None)
    assert_same(case.attribute(fusum.attr, InPlace(), target=None), plain)


# What an attribution may be off by, relative to the largest score: the model itself computes in this precision.
HALF = {torch.bfloat16: 0.05, torch.float16: 0.01}


def dtype_of_scores(case: Case, inputs: torch.dtype) -> torch.dtype:
    """That of the inputs, but for sums along a path: of half types they are float32, as captum's mostly are."""
    return torch.float32 if inputs in HALF and case.chain[-1] in ("IntegratedGradients", *BASELINED) else inputs


@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("case", on([case for case in EVERY if not case.chain[-1].endswith("GradientShap")]))
def test_half_precision(case: Case, dtype: torch.dtype) -> None:
    """The scores are near those of the same rounded inputs in float32; without noise, so that no draw differs."""
    x = noise(5, 8).to(dtype)
    quiet: dict[str, Any] = {"stdevs": 0.0} if len(case.chain) > 1 else {}
    quiet = {**quiet, "nt_type": "smoothgrad"} if quiet else quiet
    if "n_steps" in case.arguments:
        quiet["n_steps"] = 500  # a point may lie on the other side of a ReLU, and none may weigh much
    found = flat(case.attribute(fusum.attr, deepcopy(subject("mlp").module).to(dtype), inputs=x, **quiet))[0]
    full = flat(case.attribute(fusum.attr, inputs=x.float(), **quiet))[0]
    assert found.dtype == dtype_of_scores(case, dtype)
    assert (found.float() - full).abs().max() <= HALF[dtype] * full.abs().max()


@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
def test_gradient_shap_in_half_precision(dtype: torch.dtype) -> None:
    """Many samples: single draws are made in the dtype of the inputs, their mean is not far from float32's."""
    x, baselines = noise(3, 8).to(dtype), noise(9, 8, seed=3).to(dtype)
    means = []
    for cast in (dtype, torch.float32):
        seed()
        explainer = GradientShap(deepcopy(subject("smooth").module).to(cast))
        means.append(explainer.attribute(x.to(cast), baselines.to(cast), n_samples=500, target=1).float())
    assert (means[0] - means[1]).abs().max() <= HALF[dtype] * means[1].abs().max()


@pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    """Ten thousand steps of one size: in half precision the running sum would stall far below the whole."""
    x = torch.ones(2, 3, dtype=dtype)
    scores = IntegratedGradients(lambda x: 2 * x.sum(1)).attribute(x, n_steps=10000, method="riemann_middle")
    assert_same(scores, torch.full((2, 3), 2.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
@pytest.mark.parametrize("case", on(EVERY))
def test_dtypes_of_results(case: Case, dtype: torch.dtype) -> None:
    forward = deepcopy(subject("mlp").module).to(dtype)
    result = flat(case.attribute(fusum.attr, forward, inputs=noise(5, 8).to(dtype)))
    assert {x.dtype for x in result} == {dtype_of_scores(case, dtype)}
    assert all(x.isfinite().all() for x in result)


@pytest.mark.parametrize("case", on(EVERY))
def test_layouts_of_inputs(case: Case) -> None:
    x = noise(5, 8)
    expected = case.attribute(fusum.attr, inputs=x)
    strided = torch.stack([x, x], -1)[..., 0]
    transposed = x.t().contiguous().t()
    for inputs in (strided, transposed):
        assert_same(case.attribute(fusum.attr, inputs=inputs), expected)
    expanded = x[:1].expand(5, 8)
    assert_same(case.attribute(fusum.attr, inputs=expanded), case.attribute(fusum.attr, inputs=expanded.contiguous()))


@pytest.mark.parametrize("case", on([case for case in CASES if case.model == "cnn"]))
def test_channels_last(case: Case) -> None:
    x = case.subject.inputs.repeat(1, 1, 1, 1).to(memory_format=torch.channels_last)
    assert_same(case.attribute(fusum.attr, inputs=x), case.attribute(fusum.attr))


@pytest.mark.parametrize("form", ["eager", "traced", "exported_dynamic"])
def test_threads_share_a_model(form: str) -> None:
    """Four threads, 50 calls each, of methods that draw nothing: every result is the one a single thread gets."""
    forward, x = converted("mlp", form), noise(5, 8)
    methods = (Saliency(forward), InputXGradient(forward), IntegratedGradients(forward))
    expected = [method.attribute(x, target=1) for method in methods]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(_fifty, methods, x, thread) for thread in range(4)]
        for job in jobs:
            for which, found in job.result():
                assert_same(found, expected[which])


def _fifty(methods: tuple[Any, ...], x: Tensor, thread: int) -> list[tuple[int, Tensor]]:
    found = []
    for call in range(50):
        which = (thread + call) % len(methods)
        with fusum.config(max_rows=1 + call) if thread % 2 else nullcontext():
            found.append((which, methods[which].attribute(x, target=1)))
    return found


def test_settings_belong_to_a_thread() -> None:
    seen: list[Any] = []
    before = current()
    with fusum.config(max_rows=3, backend="reference"):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
        assert (current().max_rows, current().backend) == (3, "reference")
    assert seen == [before]


def test_settings_nest_and_return() -> None:
    outer = current()
    with fusum.config(max_rows=5), fusum.config(memory="1MB"):
        assert (current().max_rows, current().memory) == (5, 2**20)
        with fusum.config(max_rows=None):
            assert (current().max_rows, current().memory) == (None, 2**20)
        assert current().max_rows == 5
    with pytest.raises(ValueError, match="mine"), fusum.config(max_rows=5):
        raise ValueError("mine")
    assert current() == outer


def test_settings_as_a_call_hold_from_then_on() -> None:
    outer = current()
    try:
        fusum.config(max_rows=2)
        model = Recorder(subject("mlp").module)
        Saliency(model).attribute(noise(5, 8), target=1)
        assert max(model.rows) == 2
    finally:
        fusum.config(max_rows=outer.max_rows)
    assert current() == outer


@pytest.mark.parametrize("case", on(EVERY))
def test_both_backends_agree(case: Case) -> None:
    with fusum.config(backend="reference"):
        reference = case.attribute(fusum.attr)
    assert_same(case.attribute(fusum.attr), reference)


def test_strict_raises_where_a_call_would_leave_the_fused_path() -> None:
    x = noise(5, 8)
    replaced = Saliency(subject("mlp").module)
    replaced.gradient_func = lambda forward_fn, inputs, target_ind=None, additional_forward_args=None: inputs
    with fusum.config(strict=True):
        with pytest.raises(fusum.StrictError, match="gradient_func was replaced"):
            replaced.attribute(x, target=1)
        with fusum.config(backend="reference"), pytest.raises(fusum.StrictError, match="reference"):
            Saliency(subject("mlp").module).attribute(x, target=1)
    replaced.attribute(x, target=1)


def test_a_method_inside_the_model_of_another() -> None:
    """The explained function may itself explain: neither disturbs the other."""
    x, inner = noise(5, 8), Saliency(subject("mlp").module)

    def forward(x: Tensor) -> Tensor:
        return (x * inner.attribute(x, target=1)).sum(1)

    scores = InputXGradient(forward).attribute(x)
    assert_same(scores, x * inner.attribute(x, target=1))


def test_an_explainer_can_be_used_again_and_changed() -> None:
    x, explainer = noise(5, 8), GradientShap(subject("mlp").module)
    first = explainer.attribute(x, x, target=1, n_samples=1)
    explainer.forward_func = lambda x: 2 * subject("mlp").module(x)
    torch.manual_seed(0)
    assert explainer.attribute(x, x, target=1, n_samples=1).shape == first.shape
    doubled = NoiseTunnel(Saliency(explainer.forward_func)).attribute(x, target=1, stdevs=0.0)
    assert_same(doubled, 2 * Saliency(subject("mlp").module).attribute(x, target=1))


@pytest.mark.parametrize("form", ["function", "bound method"])
@pytest.mark.parametrize("case", on([SHORT[0], SHORT[3]]))
def test_a_function_around_a_model_in_training(case: Case, form: str) -> None:
    """Batch norm couples rows while it trains, so the delta needs the ends of whole batches."""
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, momentum=0.0), nn.Linear(6, 3)).train()
    forward = model.forward if form == "bound method" else lambda x: model(x)
    x = noise(5, 8)
    own = {"baselines": noise(5, 8, seed=1), "stdevs": 0.0} if "Shap" in case.name else {"baselines": 0.5}
    expected = case.attribute(fusum.attr, model, inputs=x, **own)
    assert_same(case.attribute(fusum.attr, forward, inputs=x, **own), expected)


@pytest.mark.parametrize("case", on(EVERY))
def test_explainers_can_be_copied_and_pickled(case: Case) -> None:
    explainer, expected = case.explainer(fusum.attr), case.attribute(fusum.attr)
    for twin in (deepcopy(explainer), pickle.loads(pickle.dumps(explainer))):
        seed()
        assert_same(twin.attribute(**case.keywords()), expected)


class Doubled(IntegratedGradients):
    """A user's own method on top of one of ours."""

    def attribute(self, inputs: Tensor, **kwargs: Any) -> Any:
        return 2 * super().attribute(inputs, **kwargs)


def test_subclasses_inside_and_outside_a_tunnel() -> None:
    x, model = noise(5, 8), subject("mlp").module
    assert_same(Doubled(model).attribute(x, target=1), 2 * IntegratedGradients(model).attribute(x, target=1))
    seed()
    found = NoiseTunnel(Doubled(model)).attribute(x, target=1, nt_samples=3)
    seed()
    assert_same(found, 2 * NoiseTunnel(IntegratedGradients(model)).attribute(x, target=1, nt_samples=3))


@pytest.mark.parametrize("case", on(EVERY))
def test_torchs_default_dtype_changes_nothing_for_float32_inputs(case: Case) -> None:
    try:
        torch.set_default_dtype(torch.float64)
        result = flat(case.attribute(fusum.attr))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {x.dtype for x in result} == {torch.float32}
    assert all(x.isfinite().all() for x in result)
