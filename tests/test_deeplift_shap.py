"""DeepLiftShap: the mean of DeepLift over its baselines, with no more forwards than it has rows; captum's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum
import fusum.attr
from cases import seed
from checkers import assert_no_graph, assert_refused, assert_same, flat, untouched
from fusum.attr import DeepLift, DeepLiftShap
from models import Cnn, Mlp, Recorder, noise, subject
from operators import OPERATORS, around, examples, generic_rule

EVERY = ("Tanh", "GELU", "Softmax", "LayerNorm", "attention", "gate", "quotient", "max_pool2d overlapping", "reused")
MORE = (
    "LSTM",
    "MultiheadAttention",
    "TransformerEncoderLayer",
    "GLU",
    "logsumexp",
    "in-place addition",
    "InstanceNorm2d",
)


def mean_of_deep_lift(model: nn.Module, x: Tensor, baselines: Tensor, **arguments: Any) -> Tensor:
    """baselines: [N, ...], or [B, N, ...] for each example its own."""
    each = baselines if baselines.dim() > x.dim() else baselines.expand(len(x), *baselines.shape)
    scores = [DeepLift(model).attribute(x, start.contiguous(), **arguments) for start in each.unbind(1)]
    return torch.stack(scores).mean(0)


@pytest.mark.parametrize("name", [*EVERY, *MORE])
@pytest.mark.parametrize("count", [2, 4, 7], ids=lambda n: f"{n}-baselines")
def test_the_mean_of_deep_lift(name: str, count: int) -> None:
    """Also where there are as many baselines as examples: four."""
    model, x, baselines = around(name), examples(), examples(count, seed=5)
    with untouched(model, x, baselines):
        scores, delta = DeepLiftShap(model).attribute(x, baselines, target=1, return_convergence_delta=True)
    assert_no_graph(scores)
    assert_same(scores, mean_of_deep_lift(model, x, baselines, target=1), rtol=1e-9, atol=1e-11)
    assert delta.shape == (4 * count,)
    assert delta.abs().max() < 1e-8


@generic_rule
@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator(name: str) -> None:
    model, x, baselines = around(name), examples(), examples(3, seed=5)
    scores = DeepLiftShap(model).attribute(x, baselines, target=1)
    assert_same(scores, mean_of_deep_lift(model, x, baselines, target=1), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [*EVERY, *MORE])
@pytest.mark.parametrize("count", [2, 4, 6], ids=lambda n: f"{n}-baselines")
def test_baselines_of_each_example(name: str, count: int) -> None:
    model, x, baselines = around(name), examples(), examples(4 * count, seed=5).view(4, count, -1)
    scores, delta = DeepLiftShap(model).attribute(x, baselines, target=1, return_convergence_delta=True)
    assert_same(scores, mean_of_deep_lift(model, x, baselines, target=1), rtol=1e-9, atol=1e-11)
    assert delta.shape == (4 * count,)
    assert delta.abs().max() < 1e-8


@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_alone_has_the_scores_it_has_in_a_batch(rows: int) -> None:
    model, x, baselines = subject("cnn").module.double(), noise(rows, 1, 8, 8).double(), noise(3, 1, 8, 8).double() / 2
    try:
        together = DeepLiftShap(model).attribute(x, baselines, target=1)
        for row in range(rows):
            alone = DeepLiftShap(model).attribute(x[row : row + 1], baselines, target=1)
            assert_same(alone, together[row : row + 1], rtol=1e-9, atol=1e-11)
    finally:
        model.float()


def test_without_the_factor_of_inputs() -> None:
    model, x, baselines = around("Tanh"), examples(), examples(3, seed=5)
    found = DeepLiftShap(model, multiply_by_inputs=False).attribute(x, baselines, target=0)
    starts = [b.expand_as(x) for b in baselines]
    each = [DeepLift(model, multiply_by_inputs=False).attribute(x, start, target=0) for start in starts]
    assert_same(found, torch.stack(each).mean(0), rtol=1e-9, atol=1e-11)


# captum.


class Shifted(nn.Module):
    """Two inputs, an argument with rows and one without, activations that are separate modules."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp(6, 3)

    def forward(self, a: Tensor, b: Tensor, shift: Tensor, factor: float) -> Tensor:
        return self.body(a + b.flatten(1) + shift) * factor


def one_input(model: nn.Module, x: Tensor, baselines: Any) -> tuple[nn.Module, dict[str, Any]]:
    return model.double().eval(), {"inputs": x.double(), "baselines": baselines, "target": 1}


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3, 2), nn.ELU(), nn.Flatten(), nn.Linear(8, 3))


def two_inputs() -> tuple[nn.Module, dict[str, Any]]:
    inputs = (noise(4, 6).double(), noise(4, 2, 3, seed=1).double())
    baselines = (noise(3, 6, seed=2).double(), noise(3, 2, 3, seed=3).double())
    extra = (noise(4, 6, seed=4).double(), 1.5)
    arguments = {"baselines": baselines, "target": [0, 2, 1, 1], "additional_forward_args": extra}
    return Shifted().double().eval(), {"inputs": inputs, **arguments}


PEERS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "mlp": lambda: one_input(Mlp(), noise(5, 8), noise(3, 8, seed=1).double()),
    "as many baselines as examples": lambda: one_input(Mlp(), noise(5, 8), noise(5, 8, seed=1).double()),
    "tanh": lambda: one_input(Mlp(activation=nn.Tanh), noise(5, 8), noise(9, 8, seed=1).double()),
    "cnn": lambda: one_input(conv_net(), noise(3, 1, 8, 8), noise(4, 1, 8, 8, seed=1).double()),
    "baselines of nothing": lambda: one_input(Mlp(), noise(5, 8), lambda: noise(4, 8, seed=1).double()),
    "baselines of inputs": lambda: one_input(Mlp(), noise(5, 8), lambda x: x[:3] * 0.5 + 0.1),
    "two inputs": two_inputs,
}
CUSTOM: dict[str, Any] = {
    "none": None,
    "multipliers": lambda m: tuple(x.abs() for x in m),
    "inputs": lambda m, x: tuple(a * b for a, b in zip(m, x, strict=True)),
    "baselines": lambda m, x, b: tuple(p * (q - r).square() for p, q, r in zip(m, x, b, strict=True)),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("custom", CUSTOM)
@pytest.mark.parametrize("name", PEERS)
def test_captums_numbers(name: str, custom: str) -> None:
    """The scores, and the delta [B * N] of the pairs in captum's order, which a custom function makes differ from 0."""
    captum = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    seed()
    model, arguments = PEERS[name]()
    arguments = {**arguments, "return_convergence_delta": True, "custom_attribution_func": CUSTOM[custom]}
    ours, theirs = (attr.DeepLiftShap(model).attribute(**arguments) for attr in (fusum.attr, captum))
    assert_same(ours, theirs, rtol=1e-6, atol=1e-6)
    assert (flat(theirs)[-1].abs().max() > 1e-2) == (custom != "none")


def test_baselines_of_each_example_in_a_tuple() -> None:
    seed()
    model, arguments = two_inputs()
    pairs = tuple(torch.stack([b + i for i in range(4)]) for b in arguments.pop("baselines"))
    together = DeepLiftShap(model).attribute(**arguments, baselines=pairs)
    for row in range(4):
        (a, b), (shift, factor) = arguments["inputs"], arguments["additional_forward_args"]
        alone = DeepLiftShap(model).attribute(
            (a[row : row + 1], b[row : row + 1]),
            tuple(p[row] for p in pairs) if row % 2 else tuple(p[row : row + 1] for p in pairs),
            target=arguments["target"][row],
            additional_forward_args=(shift[row : row + 1], factor),
        )
        assert_same(tuple(s[row : row + 1] for s in together), alone, rtol=1e-9, atol=1e-11)


# Work.


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("model", [Mlp, Cnn], ids=["mlp", "cnn"])
def test_the_model_sees_each_example_and_each_baseline_once(model: type[nn.Module], delta: bool) -> None:
    shape = (1, 8, 8) if model is Cnn else (8,)
    seed()
    recorder = Recorder(model().eval())
    baselines = noise(6, *shape, seed=1)
    DeepLiftShap(recorder).attribute(noise(5, *shape), baselines, target=1, return_convergence_delta=delta)
    assert sum(recorder.rows) == 5 + 6


@pytest.mark.parametrize("settings", [{"max_rows": 1}, {"max_rows": 4}, {"memory": "20KB"}])
@pytest.mark.parametrize("name", ["Tanh", "max_pool2d", "attention"])
def test_results_do_not_depend_on_the_cut(name: str, settings: dict[str, Any]) -> None:
    model, x, baselines = around(name), examples(), examples(7, seed=5)
    expected = DeepLiftShap(model).attribute(x, baselines, target=1, return_convergence_delta=True)
    with fusum.config(**settings):
        found = DeepLiftShap(model).attribute(x, baselines, target=1, return_convergence_delta=True)
    assert_same(found, expected, rtol=1e-9, atol=1e-11)


# Bad input.

BAD: dict[str, Any] = {
    "missing": None,
    "a number": 0.5,
    "one row": noise(1, 8),
    "of another shape": noise(4, 7),
    "of another rank": noise(4, 3, 8, 2),
    "for another number of examples": noise(4, 3, 8),
    "a tuple too long": (noise(4, 8), noise(4, 8)),
    "a function that returns a number": lambda: 0.5,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_baselines(name: str) -> None:
    model = Recorder(subject("mlp").module)
    assert_refused(lambda: DeepLiftShap(model).attribute(noise(5, 8), BAD[name], target=1), "baselines", model.rows)


def test_baselines_must_be_given() -> None:
    with pytest.raises(TypeError, match="baselines"):
        DeepLiftShap(subject("mlp").module).attribute(noise(5, 8), target=1)


def test_inputs_of_different_lengths() -> None:
    model = Recorder(subject("two_inputs").module)
    inputs, baselines = (noise(4, 6), noise(3, 2, 3)), (noise(2, 6), noise(2, 2, 3))
    assert_refused(lambda: DeepLiftShap(model).attribute(inputs, baselines, target=1), "inputs", model.rows)


def test_baselines_of_different_lengths() -> None:
    model = Recorder(subject("two_inputs").module)
    baselines = (noise(2, 6), noise(3, 2, 3))
    call = lambda: DeepLiftShap(model).attribute(subject("two_inputs").inputs, baselines, target=1)  # noqa: E731
    assert_refused(call, "baselines", model.rows)
