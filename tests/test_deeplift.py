"""DeepLift: every operator is complete, row by row, and equals its twin; the arguments; captum's numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusum
import fusum.attr
import twins
from cases import seed
from checkers import assert_complete, assert_identical, assert_no_graph, assert_same, untouched
from fusum import ops
from fusum.attr import DeepLift
from models import Mlp, Recorder, noise, subject
from operators import (
    ACTIVATIONS,
    FUNCTIONS,
    GENERIC,
    KINKED,
    OPERATORS,
    around,
    examples,
    generic_rule,
    later,
    positive,
)
from twins import Twin, Window

# RReLU draws its slopes in training; in eval it is a LeakyReLU. Of these, one element depends on others.
VECTORS = ("GLU", "Softmax", "Softmin", "LogSoftmax")
ELEMENTWISE = [name for name in ACTIVATIONS if name not in VECTORS]
TWINS: dict[str, Twin] = {
    **{name: twins.elementwise(FUNCTIONS[name]) for name in ("F.relu", "exp", "expm1", "square", "pow 3", "abs")},
    **{name: twins.elementwise(FUNCTIONS[name]) for name in ("clamp", "sin", "erf", "relu_", "number to the")},
    "Softmax": twins.softmax,
    "F.softmax": twins.softmax,
    "softmax of rows": twins.blocks(twins.softmax, 3),
    "LogSoftmax": twins.log_softmax,
    "log_softmax": twins.log_softmax,
    "logsumexp": twins.logsumexp,
    "logsumexp of all": twins.logsumexp,
    "F.layer_norm": lambda x, ref: twins.norm(x, ref, 1e-5, True),
    "LayerNorm plain": lambda x, ref: twins.norm(x, ref, 1e-5, True),
    "F.rms_norm": lambda x, ref: twins.norm(x, ref, np.finfo(np.float64).eps, False),
    "F.group_norm": twins.blocks(lambda x, ref: twins.norm(x, ref, 1e-5, True), 2),
    "InstanceNorm2d": twins.blocks(lambda x, ref: twins.norm(x, ref, 1e-5, True), 2),
    "gate": twins.gate,
    "GLU": twins.after(torch.sigmoid, twins.gate),
    "F.glu": twins.after(torch.sigmoid, twins.gate),
    "quotient": twins.after(positive, twins.quotient),
    "attention": lambda x, ref: twins.attention(x, ref, 3),
    "attention masked by a number": lambda x, ref: twins.attention(x, ref, 3, twins.array(~later())),
    "attention masked": lambda x, ref: twins.attention(x, ref, 3, twins.array(~later())),
    "max_pool1d": twins.blocks(Window((8,), 2, 2).max_pool, 2),
    "max_pool2d": twins.blocks(Window((4, 4), 2, 2).max_pool, 2),
    "max_pool3d": Window((4, 4, 2), 2, 2).max_pool,
    "max_pool1d overlapping": twins.blocks(Window((8,), 3, 1, 1).max_pool, 2),
    "max_pool2d overlapping": Window((5, 5), 3, 2, 1).max_pool,
    "max_pool2d dilated": Window((5, 5), 2, 1, 0, 2).max_pool,
    "max_pool3d overlapping": Window((3, 3, 3), 2, 1, 1).max_pool,
    "max of all": Window((12,), 12, 1).max_pool,
}


def change(model: nn.Module, x: Tensor, baselines: Tensor, target: int = 1) -> Tensor:
    with torch.no_grad():
        return model(x)[:, target] - model(baselines.expand_as(x))[:, target]


def points(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The model of an operator, examples, and a baseline for each."""
    return around(name), examples(), examples(seed=9)


# Every operator.


def test_every_activation_of_torch_is_in_the_table() -> None:
    assert set(torch.nn.modules.activation.__all__) - {"MultiheadAttention", "Softmax2d"} == set(ACTIVATIONS)


@generic_rule
@pytest.mark.parametrize("name", OPERATORS)
def test_scores_sum_to_the_change(name: str) -> None:
    model, x, baselines = points(name)
    for start in (baselines, baselines[:1]):
        with untouched(model, x, baselines):
            scores, delta = DeepLift(model).attribute(x, start, target=1, return_convergence_delta=True)
        assert_no_graph(scores)
        if name not in KINKED:
            assert_complete(scores, change(model, x, start), 1e-8)
        assert_same(delta, scores.sum(1) - change(model, x, start), rtol=0, atol=1e-12)


@generic_rule
@pytest.mark.parametrize("name", OPERATORS)
def test_a_row_alone_has_the_scores_it_has_in_a_batch(name: str) -> None:
    model, x, baselines = points(name)
    together = DeepLift(model).attribute(x, baselines, target=0)
    for row in range(len(x)):
        alone = DeepLift(model).attribute(x[row : row + 1], baselines[row : row + 1], target=0)
        assert_same(alone, together[row : row + 1], rtol=1e-9, atol=1e-11)


@generic_rule
@pytest.mark.parametrize("name", OPERATORS)
def test_at_its_baseline_an_example_has_the_gradient(name: str) -> None:
    """Every rule's multiplier goes to the derivative as the two points meet."""
    model, x, _ = points(name)
    free = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(free)[:, 1].sum(), free)
    found = DeepLift(model, multiply_by_inputs=False).attribute(x, x, target=1)
    assert_same(found, gradient, rtol=1e-7, atol=1e-9)
    assert_identical(DeepLift(model).attribute(x, x, target=1), torch.zeros_like(x))


@generic_rule
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", OPERATORS)
def test_a_traced_model_has_the_same_scores(name: str) -> None:
    model, x, baselines = points(name)
    traced = torch.jit.trace(model, examples(seed=2), check_trace=False)
    found = DeepLift(traced).attribute(x, baselines, target=1)
    assert_same(found, DeepLift(model).attribute(x, baselines, target=1), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in GENERIC])
def test_operators_with_a_rule_of_their_own_do_not_warn(name: str) -> None:
    model, x, baselines = points(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "DeepLift has no rule")
        DeepLift(model).attribute(x, baselines, target=0)


@pytest.mark.parametrize("name", GENERIC)
def test_the_generic_rule_warns_once_and_names_the_operator(name: str) -> None:
    model, x, baselines = points(name)
    twice = nn.Sequential(model, nn.Linear(2, 5).double(), model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DeepLift(twice).attribute(x, baselines, target=0)
    (message,) = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    assert OPERATORS[name].generic in message


@pytest.mark.skipif(not ops.kernels_loaded(), reason=f"strict refuses all calls: {ops.why_not()}")
@pytest.mark.parametrize("name", GENERIC)
def test_strict_refuses_the_generic_rule(name: str) -> None:
    model, x, baselines = points(name)
    with fusum.config(strict=True, backend="auto"), pytest.raises(fusum.StrictError, match=OPERATORS[name].generic):
        DeepLift(model).attribute(x, baselines, target=0)


# Twins.


@pytest.mark.parametrize("name", [*ELEMENTWISE, *TWINS])
def test_the_twin_of_an_operator(name: str) -> None:
    model, x, baselines = points(name)
    twin = TWINS.get(name) or twins.elementwise(model.body)
    whole = [twins.around(model, twin, *map(twins.array, pair)) for pair in zip(x, baselines, strict=True)]
    expected = torch.from_numpy(np.stack(whole))
    assert_complete(expected[:, 1] * (x - baselines), change(model, x, baselines), 1e-10)
    for target in (0, 1):
        scores = DeepLift(model).attribute(x, baselines, target=target)
        assert_same(scores, expected[:, target] * (x - baselines), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_twin_of_an_mlp(name: str) -> None:
    seed()
    activation = deepcopy(ACTIVATIONS[name]()) if name != "PReLU" else nn.PReLU()
    model = Mlp(8, 3, lambda: activation).double().eval()
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    x, baselines = 2 * noise(4, 8).double(), noise(4, 8, seed=1).double()
    scores = DeepLift(model, multiply_by_inputs=False).attribute(x, baselines, target=2)
    for row, (one, ref) in enumerate(zip(x, baselines, strict=True)):
        whole = twins.mlp(layers, activation, twins.array(one), twins.array(ref))
        assert_same(scores[row], torch.from_numpy(whole[2]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shift", [0, 30, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_scores_do_not_outgrow_logits_that_rise_together(name: str, dtype: torch.dtype, shift: float) -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return getattr(x, name)(1).view(len(x), -1)

    baselines = noise(4, 6, seed=1).to(dtype)
    scores, delta = DeepLift(Head()).attribute(
        2 * noise(4, 6).to(dtype) + shift, baselines, target=0, return_convergence_delta=True
    )
    assert scores.abs().max() <= 5 + shift
    assert delta.abs().max() <= 100 * torch.finfo(dtype).eps * (1 + shift)


def test_ties_in_a_window_go_to_the_first() -> None:
    pool = nn.Sequential(nn.MaxPool1d(3), nn.Flatten())
    x = torch.tensor([[[2.0, 2.0, 1.0]], [[0.0, 1.0, 1.0]]])
    baselines = torch.tensor([[[1.0, 0.0, 1.0]], [[3.0, 3.0, 2.0]]])
    scores = DeepLift(pool).attribute(x, baselines, target=0)
    assert_identical(scores, torch.tensor([[[1.0, 0.0, 0.0]], [[-2.0, 0.0, 0.0]]]))


# Arguments.


@pytest.mark.parametrize("baselines", [None, 0, 0.7, noise(1, 8, seed=5), noise(5, 8, seed=5)])
@pytest.mark.parametrize("target", [1, [0, 1, 2, 1, 0], torch.tensor([2, 1, 0, 0, 1])])
def test_forms_of_baselines_and_targets(baselines: Any, target: Any) -> None:
    model, x = subject("mlp").module, noise(5, 8)
    start = baselines if isinstance(baselines, Tensor) else torch.full_like(x, baselines or 0)
    expected = DeepLift(model).attribute(x, start.expand(5, 8).contiguous(), target=target)
    found, delta = DeepLift(model).attribute(x, baselines, target, return_convergence_delta=True)
    assert_same(found, expected)
    assert delta.shape == (5,)
    assert delta.abs().max() < 1e-5
    places = [target] * 5 if isinstance(target, int) else [int(t) for t in target]
    with torch.no_grad():
        outs = model(x) - model(start.expand(5, 8))
    assert_complete(found, outs[torch.arange(5), places], 1e-5)


def test_two_inputs() -> None:
    case = subject("two_inputs")
    baselines = (0.5, noise(4, 2, 3, seed=4))
    scores, delta = DeepLift(case.module).attribute(
        case.inputs, baselines, target=1, additional_forward_args=case.extra, return_convergence_delta=True
    )
    assert isinstance(scores, tuple)
    with torch.no_grad():
        start = (torch.full_like(case.inputs[0], 0.5), baselines[1])
        expected = (case.module(*case.inputs, *case.extra) - case.module(*start, *case.extra))[:, 1]
    assert_complete(scores, expected, 1e-5)
    assert delta.abs().max() < 1e-5


def test_a_tuple_of_one_stays_a_tuple() -> None:
    model, x = subject("mlp").module, noise(5, 8)
    (found,) = DeepLift(model).attribute((x,), (noise(5, 8, seed=2),), target=0)
    assert_same(found, DeepLift(model).attribute(x, noise(5, 8, seed=2), target=0))


def test_without_the_factor_of_inputs() -> None:
    model, x, baselines = points("Sigmoid")
    multipliers, delta = DeepLift(model, multiply_by_inputs=False).attribute(
        x, baselines, target=1, return_convergence_delta=True
    )
    assert_same(multipliers * (x - baselines), DeepLift(model).attribute(x, baselines, target=1))
    assert_same(delta, multipliers.sum(1) - change(model, x, baselines), rtol=1e-9, atol=1e-9)
    assert not DeepLift(model, False).multiplies_by_inputs
    assert DeepLift(model).multiplies_by_inputs


CUSTOM: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "multipliers": lambda m: tuple(x.abs() for x in m),
    "inputs": lambda m, x: tuple(a * b for a, b in zip(m, x, strict=True)),
    "baselines": lambda m, x, b: tuple(p * (q - r).square() for p, q, r in zip(m, x, b, strict=True)),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_attribution_func(name: str) -> None:
    model, x, baselines = points("Tanh")
    plain = DeepLift(model, multiply_by_inputs=False).attribute(x, baselines[:1], target=1)
    expected = {"multipliers": plain.abs(), "inputs": plain * x, "baselines": plain * (x - baselines[:1]) ** 2}[name]
    found, delta = DeepLift(model).attribute(
        x, baselines[:1], 1, custom_attribution_func=CUSTOM[name], return_convergence_delta=True
    )
    assert_same(found, expected)
    assert_same(delta, expected.sum(1) - change(model, x, baselines[:1]))


@pytest.mark.parametrize("rows", [1, 5])
def test_the_model_sees_each_example_and_each_baseline_once(rows: int) -> None:
    model = Recorder(subject("mlp").module)
    DeepLift(model).attribute(noise(5, 8), noise(rows, 8, seed=1), target=1, return_convergence_delta=True)
    assert sum(model.rows) == 5 + rows


# captum.


def separate(activation: Callable[[], nn.Module]) -> dict[str, tuple[nn.Module, Tensor]]:
    """Models of activations that are separate modules, each with inputs, in float64."""
    seed()
    conv = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), activation(), nn.Conv2d(4, 3, 3, stride=2), activation(), nn.AvgPool2d(2)
    )
    cnn = nn.Sequential(conv, nn.Flatten(), nn.Linear(3, 8), activation(), nn.Linear(8, 3))
    return {
        "mlp": (Mlp(8, 3, activation).double(), 2 * noise(5, 8).double()),
        "cnn": (cnn.double(), 2 * noise(3, 2, 6, 6).double()),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["ReLU", "ELU", "Sigmoid", "Tanh", "LeakyReLU", "Softplus"])
@pytest.mark.parametrize(("net", "dtype"), [("mlp", torch.float64), ("mlp", torch.float32), ("cnn", torch.float32)])
def test_captums_numbers(kind: str, net: str, dtype: torch.dtype) -> None:
    captum = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    model, x = separate(getattr(nn, kind))[net]
    model, x = model.to(dtype).eval(), x.to(dtype)
    for baselines in (None, 0.4, noise(*x.shape, seed=3).to(dtype), noise(1, *x.shape[1:], seed=3).to(dtype)):
        for multiply in (True, False):
            both = [
                attr.DeepLift(model, multiply_by_inputs=multiply).attribute(
                    x, baselines, target=2, return_convergence_delta=True
                )
                for attr in (fusum.attr, captum)
            ]
            assert_same(*both, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CUSTOM)
def test_captums_numbers_with_all_arguments(name: str) -> None:
    captum = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    seed()
    body = Mlp(6, 3).double().eval()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, a: Tensor, b: Tensor, shift: Tensor, factor: float) -> Tensor:
            return self.body(a + b.flatten(1) + shift) * factor

    x = (noise(4, 6).double(), noise(4, 2, 3, seed=1).double())
    arguments = {
        "baselines": (0.3, noise(4, 2, 3, seed=2).double()),
        "target": [0, 2, 1, 1],
        "additional_forward_args": (noise(4, 6, seed=3).double(), 1.5),
        "return_convergence_delta": True,
        "custom_attribution_func": CUSTOM[name],
    }
    assert_same(*(attr.DeepLift(Net()).attribute(x, **arguments) for attr in (fusum.attr, captum)), 1e-6, 1e-6)


# Precision.

HALF = {torch.bfloat16: 0.05, torch.float16: 0.01}


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["ReLU", "GELU", "Softmax", "LayerNorm", "attention", "max_pool2d", "gate", "exp"])
def test_nothing_has_changed_where_an_example_equals_its_baseline(name: str, dtype: torch.dtype) -> None:
    model, x = deepcopy(around(name)).to(dtype), examples().to(dtype)
    assert_identical(DeepLift(model).attribute(x, x, target=1), torch.zeros_like(x))
    near = torch.nextafter(x.float(), torch.tensor(9.0)).to(dtype)
    partly = torch.where(torch.arange(len(x))[:, None] < 2, x, near + 1)
    scores = DeepLift(model).attribute(partly, x, target=1)
    assert scores.isfinite().all()
    assert_identical(scores[:2], torch.zeros_like(x[:2]))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["ReLU", "Tanh", "GELU", "max_pool2d", "BatchNorm2d"])
def test_half_precision_is_near_float32(name: str, dtype: torch.dtype) -> None:
    x, baselines = examples().to(dtype), examples(seed=9).to(dtype)
    rounded = deepcopy(around(name)).to(dtype)
    found = DeepLift(rounded).attribute(x, baselines, target=1)
    full = DeepLift(deepcopy(rounded).float()).attribute(x.float(), baselines.float(), target=1)
    assert found.dtype == dtype
    assert (found.float() - full).abs().max() <= HALF[dtype] * full.abs().max()


def test_a_large_difference_and_a_tiny_one() -> None:
    """A change of the size of rounding must not be divided by itself: the derivative holds there."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh())
    nn.init.ones_(model[0].weight)
    x = torch.tensor([[0.5], [0.5]])
    near = torch.nextafter(x, torch.tensor(1.0))
    multiplier = DeepLift(model, multiply_by_inputs=False).attribute(near, x, target=0)
    assert_same(multiplier, 1 - F.tanh(x) ** 2, rtol=1e-5, atol=0)
