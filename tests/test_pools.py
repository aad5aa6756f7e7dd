"""Large max pools on a CPU run in another layout, and nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checkers import assert_same
from fusum.attr import IntegratedGradients
from fusum.engine import pools
from models import noise


class Pooled(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(3, **settings)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.conv(x))
        return torch.tanh(y).view(len(x), -1).pow(2).sum(1)  # view: the layout is as without us


@pytest.mark.parametrize("form", [lambda model: model, torch.jit.script])
@pytest.mark.parametrize("settings", [{"stride": 2, "padding": 1}, {"ceil_mode": True}, {"dilation": 2, "stride": 1}])
def test_large_pools_in_their_fast_layout(
    settings: dict[str, Any], form: Callable[[nn.Module], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = noise(2, 3, 65, 65)
    model = form(Pooled(**settings))
    ig = IntegratedGradients(model)
    with monkeypatch.context() as patched:
        patched.setattr(pools, "_is_slow", lambda pooled: False)
        ig.attribute(x, n_steps=12)  # measures the model, and chunks are other ones from then on
        usual = ig.attribute(x, n_steps=12)
    ig.attribute(x, n_steps=12)  # finds the pool
    entered: list[pools.ChannelsLast] = []
    enter = pools.ChannelsLast.__enter__
    monkeypatch.setattr(pools.ChannelsLast, "__enter__", lambda mode: (entered.append(mode), enter(mode))[1])
    assert_same(ig.attribute(x, n_steps=12), usual, rtol=0, atol=0)
    assert entered
    entered.clear()
    ig.attribute(x[:, :, :9, :9].clone(), n_steps=12)
    assert not entered, "small pools gain nothing"


@pytest.mark.parametrize("missing", [False, True])
def test_a_pool_in_its_fast_layout_is_the_same_to_the_bit(missing: bool) -> None:
    x = noise(4, 32, 96, 96).mul(3).round()  # with ties
    if missing:
        x[noise(4, 32, 96, 96, seed=1) > 2] = torch.nan
    expected = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    with pools.ChannelsLast():
        found = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert_same(found, expected, rtol=0, atol=0)
    assert [y.stride() for y in found] == [y.stride() for y in expected]
