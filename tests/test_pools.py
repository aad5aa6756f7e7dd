"""Max-pools without branches find what torch's find, and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkers import assert_identical, assert_same
from fusum import config, ops
from fusum.attr import DeepLift, GuidedBackprop, IntegratedGradients, Occlusion
from models import noise

pytestmark = pytest.mark.skipif(not ops.kernels_loaded(), reason=f"no compiled kernels: {ops.why_not()}")
SHAPES = [(3, 5, 9, 11), (1, 16, 8, 8), (2, 33, 13, 6), (7, 1, 1, 20), (1, 64, 40, 40)]
WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": 1, "ceil_mode": True},
    {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)},
    {"kernel_size": 2, "stride": 3, "ceil_mode": True},
    {"kernel_size": (3, 2), "dilation": (2, 3), "padding": (1, 1), "stride": 2},
    {"kernel_size": 1, "stride": 4},
    {"kernel_size": 5, "stride": 3, "padding": 2, "ceil_mode": True},
]


def values(shape: tuple[int, ...]) -> Tensor:
    """Numbers of which many are alike, some none and some endless."""
    x = (noise(*shape) * 2).round()
    x[x == 3] = float("nan")
    x[x == -3] = -float("inf")
    x[0, 0] = -float("inf")
    return x


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_places(shape: tuple[int, ...], windows: dict[str, Any], ours: Callable[..., Any]) -> None:
    pool = torch.nn.functional.max_pool2d
    x = values(shape)
    try:
        expected = pool(x, **windows, return_indices=True)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            ours(pool, x, **windows, return_indices=True)
        return
    assert_identical(ours(pool, x, **windows, return_indices=True), expected)
    with_graph = ours(pool, x.requires_grad_(), **windows)
    assert with_graph.grad_fn.name() != "MaxPool2DWithIndicesBackward0"
    other = pool(x, **windows)
    root = noise(*other.shape)
    for keep in (False, True):
        found = torch.autograd.grad(with_graph, x, root, retain_graph=True, create_graph=keep)
        assert_identical(found, torch.autograd.grad(other, x, root, retain_graph=True))


def test_what_is_not_a_plain_image_is_left_to_torch(ours: Callable[..., Any]) -> None:
    x = noise(2, 3, 8, 8).requires_grad_()
    pool = torch.nn.functional.max_pool2d
    for other in (x.double(), x.to(memory_format=torch.channels_last), x[:, :, ::2], x[0], x.bfloat16()):
        assert ours(pool, other, 2).grad_fn.name() in ("MaxPool2DWithIndicesBackward0", "SqueezeBackward1")
    for wrong in ({"kernel_size": 2, "padding": 2}, {"kernel_size": 9}, {"kernel_size": 2, "stride": 0}):
        with pytest.raises(RuntimeError):
            ours(pool, x, **wrong)
    inputs = torch.func.vmap(lambda z: pool(z, 2))
    assert_identical(ours(inputs, x[:, None].detach()), inputs(x[:, None].detach()))
    gradient = torch.func.grad(lambda z: pool(z, 2).sum())
    assert_identical(ours(gradient, x.detach()), gradient(x.detach()))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)
        self.pool, self.relu = nn.MaxPool2d(3, 2, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.relu(self.conv(x))).mean((2, 3)))  # type: ignore[no-any-return]


METHODS: dict[str, Callable[[Any, Tensor], Any]] = {
    "IntegratedGradients": lambda model, x: IntegratedGradients(model).attribute(x, target=1, n_steps=5),
    "GuidedBackprop": lambda model, x: GuidedBackprop(model).attribute(x, target=1),
    "DeepLift": lambda model, x: DeepLift(model).attribute(x, target=1),
    "Occlusion": lambda model, x: Occlusion(model).attribute(x, (1, 4, 4), target=1),
}


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_the_same(method: str, never_compiled: None) -> None:
    model, x = Net().eval(), noise(200, 1, 8, 8)
    found = METHODS[method](model, x)
    with config(backend="reference"):
        expected = METHODS[method](model, x)
    assert_same(found, expected, rtol=1e-4, atol=1e-6)
