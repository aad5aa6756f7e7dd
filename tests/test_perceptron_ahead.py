"""What a sequence runs before a layer that is looked at goes in one operator, where nobody goes back or looks there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkers import assert_same
from formats import Around
from fusum.attr import (
    InternalInfluence,
    LayerActivation,
    LayerConductance,
    LayerDeepLift,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    NeuronConductance,
    NeuronGradient,
)

DTYPE = torch.float64
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=DTYPE)


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 8, bias=False))
        return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)).to(DTYPE)


@pytest.fixture
def calls(counted: Callable[[str], list[int]]) -> list[int]:
    """Rows of each call of the op."""
    return counted("perceptron_outputs")


Method = Callable[[Any, Any, Tensor], Any]
LAYERS: dict[str, Method] = {
    "LayerActivation": lambda model, layer, x: LayerActivation(model, layer).attribute(x),
    "its input": lambda model, layer, x: LayerActivation(model, layer).attribute(x, attribute_to_layer_input=True),
    "LayerConductance": lambda model, layer, x: LayerConductance(model, layer).attribute(
        x, x.flip(0), target=1, n_steps=7, return_convergence_delta=True
    ),
    "of its input": lambda model, layer, x: LayerConductance(model, layer).attribute(
        x, target=[0, 1, 2, 1, 0], n_steps=4, attribute_to_layer_input=True
    ),
    "InternalInfluence": lambda model, layer, x: InternalInfluence(model, layer).attribute(x, target=2, n_steps=5),
    "LayerGradientXActivation": lambda model, layer, x: LayerGradientXActivation(model, layer).attribute(x, target=1),
    "LayerIntegratedGradients": lambda model, layer, x: LayerIntegratedGradients(model, layer).attribute(
        x, x / 2, target=1, n_steps=5, return_convergence_delta=True
    ),
}
THROUGH: dict[str, Method] = {
    "NeuronGradient": lambda model, layer, x: NeuronGradient(model, layer).attribute(x, 2),
    "NeuronConductance": lambda model, layer, x: NeuronConductance(model, layer).attribute(x, 2, target=1, n_steps=4),
    "LayerDeepLift": lambda model, layer, x: LayerDeepLift(model, layer).attribute(x, target=1),
}


@pytest.mark.parametrize("index", [1, 2, 3, 4])
@pytest.mark.parametrize("method", LAYERS)
def test_layers_are_those_of_the_model(method: str, index: int, calls: list[int]) -> None:
    module, of = model(), LAYERS[method]
    expected = of(Around(module), module[index], X)
    assert not calls
    found = of(module, module[index], X)
    assert calls
    assert_same(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", THROUGH)
def test_what_is_gone_back_through_runs_as_it_is(method: str, calls: list[int]) -> None:
    module, of = model(), THROUGH[method]
    assert_same(of(module, module[2], X), of(Around(module), module[2], X), rtol=1e-9, atol=1e-11)
    assert not calls


def hooked(module: nn.Sequential) -> nn.Module:
    module[1].register_forward_hook(lambda m, args, out: out * 2)
    return module[2]


def used_twice(module: nn.Sequential) -> nn.Module:
    module[0].append(module[1])
    return module[1]


def random_before(module: nn.Sequential) -> nn.Module:
    module[1] = nn.Dropout(0.5).train()
    return module[2]


def overridden(module: nn.Sequential) -> nn.Module:
    module.forward = lambda x: nn.Sequential.forward(module, x + 1)  # type: ignore[method-assign]
    return module[2]


def inner(module: nn.Sequential) -> nn.Module:
    return module[0][2]  # type: ignore[index, return-value]


@pytest.mark.parametrize("change", [hooked, used_twice, random_before, overridden, inner])
def test_where_it_would_make_a_difference_modules_run(change: Callable[..., nn.Module], calls: list[int]) -> None:
    module = model()
    layer, of = change(module), LAYERS["LayerConductance"]
    torch.manual_seed(0)
    expected = of(Around(module), layer, X)
    torch.manual_seed(0)
    assert_same(of(module, layer, X), expected, rtol=1e-9, atol=1e-11)
    assert not calls


def test_several_layers(calls: list[int]) -> None:
    module = model()
    layers = [module[4], module[2]]
    expected = LayerActivation(Around(module), layers).attribute(X)
    found = LayerActivation(module, layers).attribute(X)
    assert calls
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, rtol=1e-9, atol=1e-11)
