"""Rules on models that write over values, loop over rows, or compute out of their reach."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum
from checkers import assert_same
from fusum import ops
from fusum.attr import LRP, DeepLift, DeepLiftShap, GuidedBackprop
from models import noise


class Body(nn.Module):
    """Two layers around something that a test chooses."""

    def __init__(self, middle: Any, features: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.middle = nn.Linear(4, 6), nn.Linear(features, 2), middle
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


X, BASELINES = noise(3, 4).double(), noise(3, 4, seed=1).double()


def writes_after_relu(h: Tensor) -> Tensor:
    y = h.relu()
    h += y
    return h


def writes_after_sigmoid(h: Tensor) -> Tensor:
    y = h.sigmoid()
    h.mul_(2)
    return y + h


def loops_over_rows(h: Tensor) -> Tensor:
    return torch.stack([row.relu() for row in h])


def splits_rows(h: Tensor) -> Tensor:
    return torch.cat([part.tanh() for part in h.split(1)])


def views_in_place(h: Tensor) -> Tensor:
    return h.clone().unsqueeze_(1).relu().transpose_(1, 2).squeeze_(2)


SERVED = [writes_after_relu, writes_after_sigmoid, loops_over_rows, splits_rows, views_in_place]


@pytest.mark.parametrize("middle", SERVED)
@pytest.mark.parametrize("baselines", [None, BASELINES[:1], BASELINES], ids=["zero", "one-row", "row-each"])
def test_deep_lift_is_complete(middle: Any, baselines: Tensor | None) -> None:
    _, delta = DeepLift(Body(middle)).attribute(X, baselines, target=1, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12


@pytest.mark.parametrize("middle", SERVED)
@pytest.mark.parametrize("count", [2, 3])
def test_deep_lift_shap_is_the_mean(middle: Any, count: int) -> None:
    model, baselines = Body(middle), noise(count, 4, seed=2).double()
    means = torch.stack([DeepLift(model).attribute(X, b[None], target=1) for b in baselines]).mean(0)
    assert_same(DeepLiftShap(model).attribute(X, baselines, target=1), means, rtol=1e-10, atol=1e-12)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


def cubes(h: Tensor) -> Tensor:
    apply: Any = Cube.apply
    return apply(h)


def in_a_thread(h: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(h.relu()))
    thread.start()
    thread.join()
    return found[0]


def in_vmap(h: Tensor) -> Tensor:
    return torch.func.vmap(torch.relu)(h)


UNREACHED = [
    (DeepLift, cubes, "Cube"),
    (LRP, cubes, "Cube"),
    (DeepLift, in_a_thread, "Relu"),
    (GuidedBackprop, in_a_thread, "Relu"),
    (DeepLift, in_vmap, "Relu"),
    (GuidedBackprop, in_vmap, "Relu"),
]


@pytest.mark.parametrize(("method", "middle", "name"), UNREACHED)
def test_what_is_out_of_reach_is_named(method: Any, middle: Any, name: str) -> None:
    with pytest.warns(UserWarning, match=f"{name} ran in a thread"):
        method(Body(middle)).attribute(X, target=1)


@pytest.mark.skipif(not ops.kernels_loaded(), reason=f"strict refuses all calls: {ops.why_not()}")
@pytest.mark.parametrize(("method", "middle", "name"), UNREACHED)
def test_strict_refuses_what_is_out_of_reach(method: Any, middle: Any, name: str) -> None:
    with fusum.config(strict=True, backend="auto"), pytest.raises(fusum.StrictError, match=name):
        method(Body(middle)).attribute(X, target=1)


@pytest.mark.parametrize("method", [DeepLift, GuidedBackprop, LRP])
def test_nothing_is_named_within_reach(method: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        method(Body(torch.relu)).attribute(X, target=1)


def test_frozen_attention() -> None:
    """Shared baselines cannot be paired there: TorchScript's interpreter must not be left by an exception."""
    attention = nn.MultiheadAttention(6, 2, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.last = attention, nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.attention(x, x, x)[0].mean(1))

    torch.manual_seed(0)
    model, x = Net().eval(), noise(3, 5, 6)
    frozen = torch.jit.freeze(torch.jit.script(model))
    assert_same(DeepLift(frozen).attribute(x, target=1), DeepLift(model).attribute(x, target=1))
    for net in (model, frozen):
        with pytest.raises(TypeError, match=r"bmm|baddbmm|matmul|scaled_dot"):
            LRP(net).attribute(x, target=1)


def test_lstm_inside_autocast() -> None:
    lstm, last, x = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2), noise(3, 6, 4)

    def model(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return last(lstm(x)[0][:, -1]).float()

    try:
        with torch.no_grad():
            change = model(x) - model(0 * x)
    except RuntimeError as error:
        pytest.skip(f"this processor runs no LSTM in bfloat16: {error}")
    scores, delta = DeepLift(model).attribute(x, target=1, return_convergence_delta=True)
    assert delta.abs().max() < 0.02
    assert_same(scores.flatten(1).sum(1), change[:, 1], rtol=0, atol=0.02)
