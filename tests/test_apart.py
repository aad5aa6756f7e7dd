"""A batch that the model would be given as it is, is not cut where its rows depend on each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusum.attr import LayerGradientXActivation, Saliency
from fusum.settings import config

ROWS = 96  # of images that are more than a call gives a model at once


class Pairs(nn.Module):
    """How like each image is to every other of the batch, as contrastive models return it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.rest = nn.Sequential(nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 16))

    def forward(self, x: Tensor) -> Tensor:
        found = self.rest(self.first(x))
        found = nn.functional.normalize(found)
        return found @ found.t()


class Centred(Pairs):
    """Of the shape that models usually return, but less the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.rest(self.first(x))
        return 1e4 * (found - found.mean(0)) ** 2


class Draws(Pairs):
    """It draws at every forward, also in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x + torch.randn_like(x)))


def images() -> Tensor:
    noise = torch.randn(ROWS, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return noise + torch.linspace(-2, 2, ROWS).view(ROWS, 1, 1, 1)  # so that no part has the mean of all


def gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x)[:, 3].sum(), x)
    return found


def as_function(model: nn.Module) -> Any:
    return lambda x: model(x)


@pytest.mark.parametrize("form", [nn.Module.eval, as_function, torch.jit.script], ids=["module", "function", "script"])
@pytest.mark.parametrize("kind", [Pairs, Centred])
def test_rows_that_depend_on_each_other(kind: type[nn.Module], form: Callable[[nn.Module], Any]) -> None:
    model, x = kind().eval(), images()
    expected = gradient(model, x)
    method = Saliency(form(model))
    for _ in range(3):  # the first call measures the model, which may change how the next ones are cut
        found = method.attribute(x, target=3, abs=False)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_of_layers() -> None:
    model, x = Centred().eval(), images()
    held = model.first(x).detach()
    expected = held * gradient(lambda h: 1e4 * (model.rest(h) - model.rest(h).mean(0)) ** 2, held)
    for _ in range(2):
        found = LayerGradientXActivation(model, model.first).attribute(x, target=3)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_trying_draws_nothing() -> None:
    model, x = Draws().eval(), images()
    torch.manual_seed(5)
    expected = gradient(model, x)
    after = torch.get_rng_state()
    for _ in range(2):
        torch.manual_seed(5)
        found = Saliency(model).attribute(x, target=3, abs=False)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(torch.get_rng_state(), after)


def test_others_are_cut() -> None:
    seen: list[int] = []

    class Plain(Pairs):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return self.rest(self.first(x))

    model, x = Plain().eval(), images()
    expected = gradient(model, x)
    seen.clear()
    for _ in range(3):
        torch.testing.assert_close(Saliency(model).attribute(x, target=3, abs=False), expected, rtol=1e-4, atol=1e-6)
    assert max(seen[-2:]) < ROWS
    assert seen.count(1) == 1, "a module is tried once"


@pytest.mark.parametrize("kind", [Pairs, Centred])
def test_in_half_precision(kind: type[nn.Module]) -> None:
    model, x = kind().eval(), images()
    plain = nn.Sequential(model.first, model.rest)
    with torch.autocast("cpu", torch.bfloat16):
        for method, cut in ((Saliency(model), False), (Saliency(plain), True)):
            rows: list[int] = []
            handle = model.first.register_forward_hook(lambda _, args, out, rows=rows: rows.append(len(args[0])))
            for _ in range(3):
                method.attribute(x, target=3)
            handle.remove()
            assert (rows[-1] < ROWS) == cut


def test_a_batch_cut_by_hand_is_cut() -> None:
    model, x = Centred().eval(), images()
    with config(max_rows=16):
        found = Saliency(model).attribute(x, target=3, abs=False)
    parts = torch.cat([gradient(model, part) for part in x.split(16)])
    torch.testing.assert_close(found, parts, rtol=1e-4, atol=1e-6)
