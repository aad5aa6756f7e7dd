"""Large linear layers are multiplied by the faster library, and nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from checkers import assert_same
from formats import FORMATS
from fusum import config, ops
from fusum.attr import (
    LRP,
    DeepLift,
    DeepLiftShap,
    FeatureAblation,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    LayerConductance,
    LayerIntegratedGradients,
    NeuronGradient,
)
from models import Subject, noise

FASTER = ops.compiled is not None and ops.compiled.multiplies_faster()
pytestmark = [
    pytest.mark.usefixtures("never_compiled"),
    pytest.mark.skipif(not FASTER, reason="no compiled kernels, or a processor on which MKL is as fast"),
]


class Net(nn.Module):
    """Layers of 128 x 256 numbers: of 64 rows or more, each is worth it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(32, 256), nn.Linear(256, 128, bias=False), nn.Linear(128, 256)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.second(torch.tanh(self.first(x)))))  # type: ignore[no-any-return]


X = noise(100, 32)
METHODS: dict[str, Callable[[Any, Tensor], Any]] = {
    "InputXGradient": lambda model, x: InputXGradient(model).attribute(x, target=1),
    "IntegratedGradients": lambda model, x: IntegratedGradients(model).attribute(x, target=1, n_steps=3),
    "DeepLift": lambda model, x: DeepLift(model).attribute(x, x.flip(0), target=1),
    "DeepLiftShap": lambda model, x: DeepLiftShap(model).attribute(x, x[:3], target=1),
    "GuidedBackprop": lambda model, x: GuidedBackprop(model).attribute(x, target=1),
    "LRP": lambda model, x: LRP(model).attribute(x, target=1),
    "FeatureAblation": lambda model, x: FeatureAblation(model).attribute(x, target=1),
    "LayerConductance": lambda model, x: LayerConductance(model, "second").attribute(x, target=1, n_steps=3),
    "LayerIntegratedGradients": lambda model, x: LayerIntegratedGradients(model, "first").attribute(
        x, target=1, n_steps=3
    ),
    "NeuronGradient": lambda model, x: NeuronGradient(model, "second").attribute(x, 3),
}


def plainly(of: Callable[..., Any], *args: Any) -> Any:
    with config(backend="reference"):
        return of(*args)


def names(y: Tensor) -> str:
    assert y.grad_fn is not None
    return y.grad_fn.name()


def close(found: Any, expected: Any) -> None:
    assert_same(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_the_same(method: str) -> None:
    of = METHODS[method]
    close(of(Net().eval(), X), plainly(of, Net().eval(), X))


@pytest.mark.parametrize("form", ["scripted", "traced", "frozen", "exported_dynamic"])
def test_formats(form: str) -> None:
    model = FORMATS[form](Subject(Net().eval(), (X,)))
    of = METHODS["IntegratedGradients"]
    close(of(model, X), of(Net().eval(), X))


def seen(rows: int, change: Callable[[Tensor], Tensor] = lambda x: x) -> str:
    """What a linear layer of a function goes back through, of so many rows."""
    net, found = Net(), list[str]()

    def model(x: Tensor) -> Tensor:
        hidden = F.linear(change(x), net.first.weight.to(change(x).dtype), None)
        found.append(names(hidden))
        return net.last(torch.relu(net.second(hidden.float()))).flatten(1)

    InputXGradient(model).attribute(noise(rows, 32), target=1)
    return found[0]


def test_large_products_go_another_way() -> None:
    other = seen(4096)
    assert other == seen(2048, lambda x: x[:, None]) == seen(2048, lambda x: x.t().contiguous().t())
    assert "Linear" in other
    assert other != seen(16) == "MmBackward0"
    assert other != seen(4096, lambda x: x.double())
    with torch.backends.mkldnn.flags(enabled=False):
        assert seen(4096) == "MmBackward0"
    with config(backend="reference"):
        assert seen(4096) == "MmBackward0"
    with config(memory="1GB"):
        assert seen(4096) == "MmBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert "Linear" not in seen(4096)


def test_a_model_that_takes_gradients_itself() -> None:
    net = Net()
    weight = torch.randn(256, 32).requires_grad_()

    def model(x: Tensor) -> Tensor:
        inner = x if x.requires_grad else x.clone().requires_grad_()
        wanted = (inner, net.first.weight, net.first.bias, weight)
        out = net(inner) ** 2 + F.linear(inner, weight) ** 2
        found = torch.autograd.grad(out.sum(), wanted, create_graph=True)
        return out + found[0].sum(1, keepdim=True) + sum(g.pow(2).mean() for g in found[1:])

    of = METHODS["InputXGradient"]
    close(of(model, X), plainly(of, model, X))


def test_a_model_that_transforms_functions() -> None:
    net = Net()

    def model(x: Tensor) -> Tensor:
        tangent = torch.func.jvp(net, (x,), (torch.ones_like(x),))[1]
        each = torch.func.vmap(net)(x[:, None].expand(-1, 4, -1)).mean(1)
        return tangent + each + torch.func.grad(lambda z: net(z).sum())(x).sum(1, keepdim=True)

    of = METHODS["InputXGradient"]
    close(of(model, X), plainly(of, model, X))


def test_a_model_of_checkpoints() -> None:
    net = Net()

    def model(x: Tensor) -> Tensor:
        hidden = checkpoint(lambda z: torch.tanh(net.first(z)), x, use_reentrant=False)
        return net.last(net.relu(net.second(hidden)))  # type: ignore[no-any-return]

    of = METHODS["InputXGradient"]
    close(of(model, X), plainly(of, net, X))


def test_weights_that_are_computed_and_explained() -> None:
    net = parametrizations.weight_norm(Net().first)

    def model(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(net(x), w.mean(0)[:, None].expand(64, 256), None)

    x, w = X, noise(100, 64)
    found = InputXGradient(model).attribute((x, w), target=1)
    expected = plainly(lambda: InputXGradient(model).attribute((x, w), target=1))
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)


def test_bad_shapes_are_torchs_to_name() -> None:
    def model(x: Tensor) -> Tensor:
        return F.linear(x, torch.ones(4096, 33))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        InputXGradient(model).attribute(noise(512, 32), target=1)
