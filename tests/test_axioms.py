"""Properties that the methods claim, against closed forms and sums by hand."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum.attr
from cases import CASES, KINDS, METHODS, SHORT, Case, having, on, seed
from checkers import assert_complete, assert_identical, assert_nan_exactly_at, assert_same, flat
from fusum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from models import noise, subject

W = torch.tensor([0.5, -2.0, 0.0, 3.0, 1.0, -1.0, 4.0, 0.25], dtype=torch.float64)


def weighted(x: Tensor) -> Tensor:
    return x @ W.to(x.dtype)


def double(name: str) -> tuple[nn.Module, Tensor]:
    return deepcopy(subject(name).module).double(), subject(name).inputs.double()


@pytest.mark.parametrize("model", ["smooth", "tokens"])
@pytest.mark.parametrize("method", METHODS)
def test_integrated_gradients_are_complete(model: str, method: str) -> None:
    module, x = double(model)
    baselines = 0.5 * noise(*x.shape, seed=7).double()
    steps, atol = {"gausslegendre": (60, 1e-9), "riemann_middle": (400, 1e-3)}.get(method, (400, 2e-2))
    atol = max(atol, 1e-3) if model == "tokens" else atol  # its ReLU has kinks
    scores, delta = IntegratedGradients(module).attribute(
        x, baselines, target=1, n_steps=steps, method=method, return_convergence_delta=True
    )
    with torch.no_grad():
        change = (module(x) - module(baselines))[:, 1]
    assert_complete(scores, change, atol)
    assert_same(delta, scores.flatten(1).sum(1) - change, rtol=0, atol=1e-12)


def test_a_smooth_model_in_float64_is_complete_to_double_precision() -> None:
    module, x = double("smooth")
    _, delta = IntegratedGradients(module).attribute(x, target=1, n_steps=100, return_convergence_delta=True)
    assert delta.dtype == torch.float64
    assert delta.abs().max() < 1e-12


@pytest.mark.parametrize("case", on([c for c in CASES if c.chain == ("IntegratedGradients",)]))
def test_delta_is_the_sum_of_scores_minus_the_change(case: Case) -> None:
    keywords = case.keywords()
    target, baselines = keywords["target"], keywords.get("baselines")
    scores, delta = case.attribute(fusum.attr, return_convergence_delta=True)
    inputs = case.subject.tensors
    starts = baselines if isinstance(baselines, tuple) else (baselines if baselines is not None else 0.0,) * len(inputs)
    filled = tuple(
        b.expand(x.shape) if isinstance(b, Tensor) else torch.full_like(x, b)
        for b, x in zip(starts, inputs, strict=True)
    )
    with torch.no_grad():
        ends = (picked(case, at, target) for at in (inputs, filled))
        change = next(ends) - next(ends)
    sums = sum(s.flatten(1).sum(1) if s.dim() > 1 else s for s in flat(scores))
    assert_same(delta, sums - change, rtol=1e-5, atol=1e-5)


def picked(case: Case, inputs: tuple[Tensor, ...], target: Any) -> Tensor:
    out = (case.subject.peer or case.subject.module)(*inputs, *case.subject.extra)
    if target is None:
        return out.reshape(len(out))
    if isinstance(target, (int, tuple)):
        target = [target] * len(out)
    elif isinstance(target, Tensor):
        target = target.tolist() if target.numel() > 1 else [int(target)] * len(out)
    return torch.stack([row[t] for row, t in zip(out, target, strict=True)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("baseline", [0, -1.5, noise(1, 8), noise(5, 8)], ids=["0", "-1.5", "one-row", "row-each"])
def test_line_of_a_linear_model(method: str, steps: int, baseline: Any) -> None:
    x = subject("mlp").inputs.double()
    b = baseline.double() if isinstance(baseline, Tensor) else baseline
    scores, delta = IntegratedGradients(weighted).attribute(
        x, b, n_steps=steps, method=method, return_convergence_delta=True
    )
    assert_same(scores, W * (x - b), rtol=1e-12, atol=1e-12)
    assert_same(delta, torch.zeros(5).double(), rtol=0, atol=1e-12)
    local = IntegratedGradients(weighted, multiply_by_inputs=False).attribute(x, b, n_steps=steps, method=method)
    assert_same(local, W.expand(5, 8), rtol=1e-12, atol=1e-12)


def test_gauss_legendre_is_exact_for_polynomials() -> None:
    """The gradient of x^(2n) has degree 2n - 1 along the line, which n nodes integrate exactly."""
    x, n = noise(6, 3).double(), 4
    scores = IntegratedGradients(lambda x: (x ** (2 * n)).sum(1)).attribute(x, n_steps=n)
    assert_same(scores, x ** (2 * n), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "nodes", "weights"),
    [
        ("riemann_left", [0, 1 / 3, 2 / 3], [1 / 3] * 3),
        ("riemann_right", [1 / 3, 2 / 3, 1], [1 / 3] * 3),
        ("riemann_middle", [1 / 6, 1 / 2, 5 / 6], [1 / 3] * 3),
        ("riemann_trapezoid", [0, 1 / 2, 1], [1 / 4, 1 / 2, 1 / 4]),
        ("gausslegendre", [0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5], [5 / 18, 8 / 18, 5 / 18]),
    ],
)
def test_nodes_and_weights_by_hand(method: str, nodes: list[float], weights: list[float]) -> None:
    x, b = noise(4, 2).double(), noise(4, 2, seed=1).double()
    scores = IntegratedGradients(lambda x: x.exp().sum(1)).attribute(x, b, n_steps=3, method=method)
    by_hand = sum(w * (b + a * (x - b)).exp() for a, w in zip(nodes, weights, strict=True)) * (x - b)
    assert_same(scores, by_hand, rtol=1e-12, atol=1e-12)


def test_gradient_shap_of_a_linear_model() -> None:
    x, baseline = subject("mlp").inputs.double(), noise(1, 8, seed=2).double()
    scores, delta = GradientShap(weighted).attribute(x, baseline, n_samples=6, return_convergence_delta=True)
    assert_same(scores, W * (x - baseline), rtol=1e-12, atol=1e-12)
    assert_same(delta, torch.zeros(30).double(), rtol=0, atol=1e-12)
    local = GradientShap(weighted, multiply_by_inputs=False).attribute(x, baseline, stdevs=0.5)
    assert_same(local, W.expand(5, 8), rtol=1e-12, atol=1e-12)


def test_gradient_shap_approaches_the_mean_over_its_baselines() -> None:
    x, baselines = subject("mlp").inputs.double(), noise(3, 8, seed=2).double()
    seed()
    scores = GradientShap(weighted).attribute(x, baselines, n_samples=20000)
    assert_same(scores, W * (x - baselines.mean(0)), rtol=0, atol=0.1)


def test_once_of_a_linear_model() -> None:
    x = subject("mlp").inputs.double()
    assert_identical(Saliency(weighted).attribute(x), W.abs().expand(5, 8))
    assert_identical(Saliency(weighted).attribute(x, abs=False), W.expand(5, 8))
    assert_identical(InputXGradient(weighted).attribute(x), x * W)


@pytest.mark.parametrize(("kind", "value"), [("smoothgrad", W), ("smoothgrad_sq", W**2), ("vargrad", 0 * W)])
def test_tunnel_of_a_linear_model(kind: str, value: Tensor) -> None:
    x = subject("mlp").inputs.double()
    scores = NoiseTunnel(Saliency(weighted)).attribute(x, nt_type=kind, nt_samples=4, abs=False)
    assert_same(scores, value.expand(5, 8), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, 1, 3])
def test_moments_of_a_tunnel_by_hand(kind: str, size: int | None) -> None:
    """The gradient of x^2 / 2 is x itself, so the scores are moments of the noisy copies."""
    x, samples = noise(3, 2).double(), 7
    seed()
    parts = [size or samples] * (samples // (size or samples)) + [samples % (size or samples)]
    draws = [torch.normal(0, torch.full((3 * n, 2), 0.5)).view(3, n, 2) for n in parts if n]
    copies = x[:, None] + torch.cat(draws, 1)
    mean, square = copies.mean(1), (copies**2).mean(1)
    expected = {"smoothgrad": mean, "smoothgrad_sq": square, "vargrad": square - mean**2}[kind]
    seed()
    scores = NoiseTunnel(Saliency(lambda x: (x**2).sum(1) / 2)).attribute(
        x, nt_type=kind, nt_samples=samples, nt_samples_batch_size=size, stdevs=0.5, abs=False
    )
    assert_same(scores, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", on([case for case in CASES if case.model == "ignores"]))
def test_an_unused_input_gets_zeros(case: Case) -> None:
    result = case.attribute(fusum.attr)
    used, unused = result[0] if case.arguments.get("return_convergence_delta") else result
    assert used.abs().sum() > 0
    assert_identical(unused, torch.zeros_like(case.subject.inputs[1]))


@pytest.mark.parametrize("case", on(SHORT))
def test_a_none_input_stays_none(case: Case) -> None:
    model = subject("optional")
    changes = {"baselines": model.distribution} if case.chain[-1] in ("GradientShap", "DeepLiftShap") else {}
    result = case.attribute(fusum.attr, model.module, inputs=model.inputs, **changes)
    alone = {"baselines": changes["baselines"][0]} if changes else {}
    single = case.attribute(fusum.attr, lambda a: model.module(a, None), inputs=model.inputs[0], **alone)
    if case.arguments.get("return_convergence_delta"):
        (result, delta), (single, single_delta) = result, single
        assert_same(delta, single_delta)
    assert result[1] is None
    assert_same(result[0], single)


LOCAL = [
    replace(case, name=f"{case.name}-local", options={"multiply_by_inputs": False})
    for case in SHORT
    if case.chain[-1] in ("IntegratedGradients", "GradientShap")
]


def relu(x: Tensor) -> Tensor:
    """NaN passes, as ReLU itself lets it; its gradient does not."""
    return torch.relu(x).sum(1)


@pytest.mark.parametrize("forward", [weighted, relu, subject("mlp").module], ids=["linear", "relu", "mlp"])
@pytest.mark.parametrize("case", on([*SHORT, *LOCAL]))
def test_nan_gives_nan(case: Case, forward: Any) -> None:
    x = subject("mlp").inputs.clone()
    x[1, 3] = torch.nan
    x[4, 0] = torch.nan
    target = 1 if isinstance(forward, nn.Module) else None
    result = case.attribute(fusum.attr, forward, inputs=x, target=target)
    assert_nan_exactly_at(flat(result)[0], x)


@pytest.mark.parametrize("case", on(having("IntegratedGradients")[:1] + SHORT[3:4]))
def test_delta_of_a_nan_row_is_nan(case: Case) -> None:
    x = subject("mlp").inputs.clone()
    x[1, 3] = torch.nan
    _, delta = case.attribute(fusum.attr, inputs=x)
    per_row = delta.view(5, -1).isnan()
    assert per_row[1].all()
    assert per_row.sum() == per_row[1].sum()


def test_swapping_symmetric_features_swaps_their_scores() -> None:
    x = noise(4, 2).double()
    scores = IntegratedGradients(lambda x: torch.sigmoid(x.sum(1))).attribute(x)
    swapped = IntegratedGradients(lambda x: torch.sigmoid(x.sum(1))).attribute(x.flip(1))
    assert_same(swapped, scores.flip(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", on(SHORT[:3]))
def test_examples_do_not_depend_on_each_other(case: Case) -> None:
    whole = flat(case.attribute(fusum.attr))
    for row in range(5):
        alone = flat(case.attribute(fusum.attr, inputs=subject("mlp").inputs[row : row + 1]))
        for all_rows, one in zip(whole, alone, strict=True):
            assert_same(all_rows[row : row + 1], one)
