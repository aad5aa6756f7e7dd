"""GuidedBackprop and Deconvolution: captum's numbers, the formula by hand, and the same in every form of the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusum.attr
from cases import seed
from checkers import assert_no_graph, assert_same, untouched
from fusum.attr import Deconvolution, GuidedBackprop, Saliency
from models import Cnn, Mlp, Recorder, noise, subject
from twins import array, dense

BOTH = pytest.mark.parametrize("name", ["GuidedBackprop", "Deconvolution"])


class Mixed(nn.Sequential):
    """Operators with and without a rule in one model."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 2), nn.Tanh(), nn.MaxPool2d(2), nn.ReLU()
        )
        self.append(nn.Flatten())
        self.append(nn.Linear(12, 3))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Mlp(6)

    def forward(self, a: Tensor, b: Tensor, shift: Tensor, factor: float) -> Tensor:
        return self.body(a * b.flatten(1) + shift) * factor


def pair() -> dict[str, Any]:
    inputs, extra = (noise(4, 6), noise(4, 2, 3, seed=1)), (noise(4, 6, seed=2), 1.5)
    return {"inputs": inputs, "target": [0, 2, 1, 1], "additional_forward_args": extra}


PEERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "mlp": (Mlp, {"inputs": noise(5, 8), "target": [0, 1, 2, 1, 0]}),
    "tuple of one": (Mlp, {"inputs": (noise(5, 8),), "target": 1}),
    "cnn": (Cnn, {"inputs": noise(3, 1, 8, 8), "target": 2}),
    "mixed": (Mixed, {"inputs": noise(3, 1, 8, 8), "target": 2}),
    "no relu": (lambda: Mlp(activation=nn.Tanh), {"inputs": noise(5, 8), "target": 1}),
    "one number": (lambda: Mlp(outputs=1), {"inputs": noise(5, 8)}),
    "two inputs": (Pair, pair()),
}


@BOTH
@pytest.mark.parametrize("model", PEERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captums_numbers(name: str, model: str) -> None:
    captum = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    make, arguments = PEERS[model]
    seed()
    module = make().eval()
    with untouched(module):
        found = getattr(fusum.attr, name)(module).attribute(**arguments)
    assert_no_graph(found)
    assert_same(found, getattr(captum, name)(module).attribute(**arguments), rtol=1e-6, atol=1e-6)


@BOTH
def test_the_formula_by_hand(name: str) -> None:
    """Guided: what is positive on the way back, where the ReLU was open. Deconvolution: what is positive, anywhere."""
    seed()
    model, x = Mlp().double(), noise(5, 8).double()
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    scores = getattr(fusum.attr, name)(model).attribute(x, target=1)
    for row, one in enumerate(x):
        open_gates, z = [], array(one)
        for layer in layers[:-1]:
            weight, bias = dense(layer)
            z = (weight @ z + bias).clip(min=0)
            open_gates.append(z > 0)
        back = dense(layers[-1])[0][1]
        for layer, gate in zip(layers[-2::-1], open_gates[::-1], strict=True):
            back = back.clip(min=0) * (gate if name == "GuidedBackprop" else 1)
            back = back @ dense(layer)[0]
        assert_same(scores[row], torch.from_numpy(np.asarray(back)), rtol=1e-9, atol=1e-12)


class Written(nn.Module):
    """One model with its ReLUs written in some way; weights as in Mlp."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.relu = subject("mlp").module, relu

    def forward(self, x: Tensor) -> Tensor:
        first, _, second, _, last = self.body
        return last(self.relu(second(self.relu(first(x)))))


class Functional(nn.Module):
    """Functional ReLUs, one of them in place, that can be scripted."""

    def __init__(self) -> None:
        super().__init__()
        body = subject("mlp").module
        self.first, self.second, self.last = body[0], body[2], body[4]

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        return self.last(self.second(hidden).relu_())


def quietly(convert: Callable[[], Any]) -> Any:
    """torch warns that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert()


FORMS: dict[str, Callable[[], Any]] = {
    "F.relu": lambda: Written(F.relu),
    "torch.relu": lambda: Written(torch.relu),
    "Tensor.relu": lambda: Written(lambda x: x.relu()),
    "relu_": lambda: Written(lambda x: x.relu_()),
    "in place": lambda: Written(nn.ReLU(inplace=True)),
    "reused": lambda: Written(nn.ReLU()),
    "functional": Functional,
    "scripted": lambda: torch.jit.script(Functional().eval()),
    "scripted modules": lambda: torch.jit.script(subject("mlp").module),
    "traced": lambda: torch.jit.trace(Functional().eval(), noise(5, 8)),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(Functional().eval())),
    "exported": lambda: torch.export.export(
        Functional().eval(), (noise(5, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).module(),
    "fx": lambda: torch.fx.symbolic_trace(Functional().eval()),
    "data parallel": lambda: nn.DataParallel(Functional().eval()),
}


@BOTH
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(name: str, form: str) -> None:
    x, method = noise(5, 8), getattr(fusum.attr, name)
    expected = method(subject("mlp").module).attribute(x, target=1)
    model = quietly(FORMS[form])
    for _ in range(3):  # the JIT's executor changes its ways after the first runs
        assert_same(method(model).attribute(x, target=1), expected, rtol=1e-6, atol=1e-6)
    plain = Saliency(model).attribute(x, target=1, abs=False)
    assert_same(plain, Saliency(subject("mlp").module).attribute(x, target=1, abs=False))
    assert (expected - plain).abs().max() > 1e-3


@BOTH
def test_it_does_not_warn(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(fusum.attr, name)(subject("mlp").module).attribute(noise(5, 8), target=1)


@BOTH
def test_the_model_sees_each_example_once(name: str) -> None:
    model = Recorder(subject("cnn").module)
    getattr(fusum.attr, name)(model).attribute(noise(5, 1, 8, 8), target=1)
    assert sum(model.rows) == 5


def test_the_two_differ() -> None:
    x = noise(5, 8)
    guided, deconvolution = (m(subject("mlp").module).attribute(x, target=1) for m in (GuidedBackprop, Deconvolution))
    assert (guided - deconvolution).abs().max() > 1e-3
