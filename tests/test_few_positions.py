"""Convolutions of few positions by many weights are products of matrices, and nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checkers import assert_same
from fusum import config, ops
from fusum.attr import DeepLift, GuidedBackprop, LayerGradCam, Saliency
from models import noise

FASTER = ops.compiled is not None and ops.compiled.multiplies_faster()
pytestmark = pytest.mark.skipif(not FASTER, reason="no compiled kernels, or a processor on which MKL is as fast")
SETTINGS: list[dict[str, Any]] = [
    {"padding": 1},
    {"stride": 2, "padding": 1},
    {"padding": (2, 1), "dilation": 2, "stride": (1, 2)},
    {"padding": "same"},
]


def close(found: Any, expected: Any) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()))


def is_ours(y: Tensor) -> bool:
    assert y.grad_fn is not None
    return "Convolve" in y.grad_fn.name()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_outputs_and_gradients(settings: dict[str, Any], bias: bool, ours: Callable[..., Any]) -> None:
    tensors = [noise(1, 512, 4, 5), noise(256, 512, 3, 3), *([noise(256)] if bias else [])]
    expected = F.conv2d(*tensors, **settings)
    close([ours(F.conv2d, *tensors, **settings)], [expected])
    for t in tensors:
        t.requires_grad_()
    y, other = ours(F.conv2d, *tensors, **settings), F.conv2d(*tensors, **settings)
    assert is_ours(y)
    assert y.is_contiguous()
    root = noise(*y.shape)
    for wanted in (tensors[:1], tensors, tensors[-1:]):
        close(
            torch.autograd.grad(y, wanted, root, retain_graph=True),
            torch.autograd.grad(other, wanted, root, retain_graph=True),
        )
    twice = [torch.autograd.grad(out**2, tensors[0], root, create_graph=True)[0].pow(2).sum() for out in (y, other)]
    close(*[torch.autograd.grad(t, tensors) for t in twice])


def test_others_are_left_to_torch(ours: Callable[..., Any]) -> None:
    x, weight = noise(1, 512, 4, 4).requires_grad_(), noise(256, 512, 3, 3)
    assert is_ours(ours(F.conv2d, x, weight))
    others = [
        (noise(1, 512, 20, 20).requires_grad_(), weight, {}),
        (noise(2, 512, 4, 4).requires_grad_(), weight, {}),
        (x, weight[:200], {}),
        (x, noise(512, 256, 3, 3), {"groups": 2}),
        (x.to(memory_format=torch.channels_last), weight, {}),
        (x.double(), weight.double(), {}),
    ]
    for image, weights, settings in others:
        assert not is_ours(ours(F.conv2d, image, weights, **settings))
    assert not is_ours(ours(F.conv_transpose2d, x, noise(512, 256, 3, 3)))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not is_ours(ours(F.conv2d, x, weight))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        ours(F.conv2d, x, noise(256, 512, 5, 5))
    gradient = torch.func.grad(lambda z: F.conv2d(z, weight).sum())
    close([ours(gradient, x.detach())], [gradient(x.detach())])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 512, 24, stride=24)
        self.second, self.relu, self.last = nn.Conv2d(512, 256, 3, padding=1), nn.ReLU(), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.second(self.relu(self.first(x)))).mean((2, 3)))  # type: ignore[no-any-return]


METHODS: dict[str, Callable[[Any, Tensor], Any]] = {
    "Saliency": lambda model, x: Saliency(model).attribute(x, target=1),
    "GuidedBackprop": lambda model, x: GuidedBackprop(model).attribute(x, target=1),
    "DeepLift": lambda model, x: DeepLift(model).attribute(x, target=1),
    "LayerGradCam": lambda model, x: LayerGradCam(model, model.first).attribute(x, target=1),
}


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_the_same(method: str, never_compiled: None) -> None:
    model, x = Net().eval(), noise(1, 3, 96, 96)
    found = METHODS[method](model, x)
    with config(backend="reference"):
        expected = METHODS[method](model, x)
    close([found], [expected])
