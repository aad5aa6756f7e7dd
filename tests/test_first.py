"""A line's gradients are summed behind an input's first convolution where that is exact, and nowhere else."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusum
from checkers import assert_same
from fusum.attr import GuidedBackprop, IntegratedGradients, NoiseTunnel, Saliency
from fusum.engine import first
from fusum.engine.first import FirstConvolution
from models import Recorder, noise

EXACT = {torch.float32: {"rtol": 1e-6, "atol": 1e-6}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}
WHOLE = 10**9  # a cap that nobody reaches, but rows that are set by hand leave the sum where the inputs are


@pytest.fixture(autouse=True)
def _no_model_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first, "_LEAST", 1)


@contextmanager
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Examples of the sums that went back through a first convolution."""
    seen: list[int] = []
    back = FirstConvolution.back

    def counted(layer: FirstConvolution, gradient: Tensor, like: Tensor) -> Tensor:
        seen.append(len(like))
        return back(layer, gradient, like)

    with monkeypatch.context() as patched:
        patched.setattr(FirstConvolution, "back", counted)
        yield seen


class Net(nn.Module):
    """A stem, then what makes the gradients differ from point to point."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.stem(x)).flatten(2).pow(2)
        return torch.stack((y.mean((1, 2)), y.amax(2).sum(1)), 1)


def net(stem: nn.Module, dtype: torch.dtype = torch.float32) -> Net:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in stem.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return Net(stem).to(dtype).eval()


def both(model: Any, inputs: Any, **arguments: Any) -> tuple[Any, Any]:
    """The scores of a call and of the same call with rows set by hand."""
    given = {"target": 1, "n_steps": 7, "return_convergence_delta": True, **arguments}
    ig = IntegratedGradients(model)
    return ig.attribute(inputs, **given), ig.attribute(inputs, internal_batch_size=WHOLE, **given)


STEMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(3, 5, 4), (3, 20)),
    "conv2d": (lambda: nn.Conv2d(3, 5, 3), (3, 9, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 5, 4, 6)),
    "no bias": (lambda: nn.Conv2d(3, 5, 3, bias=False), (3, 9, 8)),
    "stride and padding": (lambda: nn.Conv2d(3, 5, 5, stride=(2, 3), padding=(2, 1)), (3, 11, 10)),
    "dilation": (lambda: nn.Conv2d(3, 5, 3, dilation=2), (3, 9, 8)),
    "groups": (lambda: nn.Conv2d(4, 8, 3, groups=2), (4, 9, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), (4, 9, 8)),
    "patches": (lambda: nn.Conv2d(3, 16, 4, stride=4), (3, 8, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 5, 3, stride=2, output_padding=1), (3, 5, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 9)),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True)), (3, 9, 8)),
    "channels last": (lambda: nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last), (3, 9, 8)),
}
OTHER_READERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "padded by reflection": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (3, 9, 8)),
    "padded circularly": (lambda: nn.Conv1d(3, 5, 3, padding=1, padding_mode="circular"), (3, 9)),
    "pooled": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 5, 3)), (3, 9, 8)),
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "recurrent": (lambda: Function(lambda lstm, x: lstm(x)[0], nn.LSTM(6, 5, batch_first=True)), (4, 6)),
    "normalised": (lambda: Function(lambda conv, x: conv((x - 0.4) / 0.2), nn.Conv2d(3, 5, 3)), (3, 9, 8)),
    "read twice by one": (lambda: Function(lambda conv, x: conv(x) * conv(x), nn.Conv2d(3, 5, 3)), (3, 9, 8)),
    "read again later": (lambda: Function(lambda conv, x: conv(x) + x.exp(), nn.Conv2d(3, 3, 3, padding=1)), (3, 9, 8)),
    "its own weights": (lambda: Function(lambda _, x: F.conv2d(x, x[:1].tanh()), nn.Identity()), (3, 9, 8)),
}


class Function(nn.Module):
    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor], module: nn.Module) -> None:
        super().__init__()
        self.call, self.module = call, module

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.module, x)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("stem", STEMS)
def test_the_same_scores(stem: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = STEMS[stem]
    x = noise(3, *shape).to(dtype)
    with taken(monkeypatch) as seen:
        found, expected = both(net(make(), dtype), x, baselines=noise(3, *shape, seed=1).to(dtype))
    assert seen == [3]
    assert_same(found, expected, **EXACT[dtype])


@pytest.mark.parametrize("stem", OTHER_READERS)
def test_other_readers_are_gone_back_through_at_every_point(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = OTHER_READERS[stem]
    rows = 1 if stem == "its own weights" else 3
    with taken(monkeypatch) as seen:
        found, expected = both(net(make(), torch.float64), noise(rows, *shape).double())
    assert seen == []
    assert_same(found, expected, **EXACT[torch.float64])


class TwoInputs(nn.Module):
    """An image that a convolution reads, features that none does, and perhaps a second image."""

    def __init__(self, siamese: bool = False) -> None:
        super().__init__()
        self.image = net(nn.Conv2d(3, 5, 3), torch.float64)
        self.siamese = siamese

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        y = self.image(image)
        return y * (self.image(other) if self.siamese else other.sum((1, 2), keepdim=True).sigmoid().flatten(1))


@pytest.mark.parametrize("siamese", [False, True])
def test_two_inputs(siamese: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    other = noise(2, 3, 9, 8, seed=1) if siamese else noise(2, 6, 4, seed=1)
    with taken(monkeypatch) as seen:
        found, expected = both(TwoInputs(siamese), (noise(2, 3, 9, 8).double(), other.double()))
    assert seen == [2] * (1 + siamese)
    assert_same(found, expected, **EXACT[torch.float64])


def test_an_input_that_is_the_weights_of_another() -> None:
    def model(x: Tensor, weights: Tensor) -> Tensor:
        return torch.tanh(F.conv2d(x, weights[:2])).flatten(1).pow(2).sum(1)

    inputs = noise(2, 3, 6, 6).double(), noise(2, 3, 2, 2, seed=1).double()
    found, expected = both(model, inputs, target=None, return_convergence_delta=False)
    assert_same(found, expected, **EXACT[torch.float64])


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


def test_a_function_that_passes_nothing_back() -> None:
    image = net(nn.Conv2d(3, 5, 3))

    def model(x: Tensor, y: Tensor) -> Tensor:
        return Nothing.apply(image(x)) + y.pow(2).sum(1, keepdim=True)

    found, expected = both(model, (noise(2, 3, 9, 8), noise(2, 4)), return_convergence_delta=False)
    assert_same(found, expected)
    assert found[0].abs().max() == 0


def scripted(model: nn.Module, x: Tensor) -> Any:
    return torch.jit.script(model)


def traced(model: nn.Module, x: Tensor) -> Any:
    return torch.jit.trace(model, x)


def exported(model: nn.Module, x: Tensor) -> Any:
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=1)},))


@pytest.mark.parametrize("form", [scripted, traced, exported])
def test_every_format(form: Callable[[nn.Module, Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(3, 3, 9, 8).double()
    with taken(monkeypatch) as seen:
        found, expected = both(form(net(nn.Conv2d(3, 5, 3), torch.float64), x), x)
    assert seen == [3]
    assert_same(found, expected, **EXACT[torch.float64])


@pytest.mark.parametrize("memory", ["1KB", "60KB"])
@pytest.mark.parametrize("method", ["gausslegendre", "riemann_trapezoid"])
def test_many_blocks_and_chunks(memory: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorder(net(nn.Conv2d(3, 5, 3), torch.float64))
    x = noise(6, 3, 9, 8).double()
    with fusum.config(memory=memory), taken(monkeypatch) as seen:
        found = IntegratedGradients(model).attribute(x, target=1, n_steps=12, method=method)
    assert len(model.rows) > 1
    assert sum(seen) == 6
    assert_same(found, both(model, x, n_steps=12, method=method)[1][0], **EXACT[torch.float64])


def test_out_of_memory_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = net(nn.Conv2d(3, 5, 3), torch.float64)
    model = Recorder(whole, 2)
    x = noise(3, 3, 9, 8).double()
    with taken(monkeypatch) as seen:
        found = IntegratedGradients(model).attribute(x, target=1, n_steps=7)
    assert sum(seen) == 3
    assert max(model.rows) > 2
    assert_same(found, both(whole, x)[1][0], **EXACT[torch.float64])


@pytest.mark.parametrize("capped", ["internal_batch_size", "max_rows"])
def test_rows_set_by_hand_keep_the_sum_small(capped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = 6 if capped == "internal_batch_size" else None
    with taken(monkeypatch) as seen, fusum.config(max_rows=6 if capped == "max_rows" else None):
        IntegratedGradients(net(nn.Conv2d(3, 5, 3))).attribute(noise(3, 3, 9, 8), target=1, internal_batch_size=own)
    assert seen == []


def test_small_calls_do_not_look_for_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first, "_LEAST", 3 * 9 * 8 * 30)
    ig = IntegratedGradients(net(nn.Conv2d(3, 5, 3)))
    with taken(monkeypatch) as seen:
        ig.attribute(noise(1, 3, 9, 8), target=1, n_steps=29)
        assert seen == []
        ig.attribute(noise(2, 3, 9, 8), target=1, n_steps=15)
        assert seen == [2]


def test_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    tunnel, x = NoiseTunnel(IntegratedGradients(net(nn.Conv2d(3, 5, 3), torch.float64))), noise(2, 3, 9, 8).double()
    given = {"target": 1, "n_steps": 5, "nt_samples": 4, "nt_type": "smoothgrad_sq", "return_convergence_delta": True}
    results = []
    for rows in (None, WHOLE):
        torch.manual_seed(3)
        with taken(monkeypatch) as seen:
            results.append(tunnel.attribute(x, internal_batch_size=rows, **given))
        assert seen == ([] if rows else [8])
    assert_same(*results, **EXACT[torch.float64])


def test_bfloat16_is_summed_in_float32() -> None:
    """Closer to the truth than gradients that are rounded at every point."""
    model, x = net(nn.Conv2d(3, 5, 3), torch.bfloat16), noise(2, 3, 9, 8).bfloat16()
    found, plain = both(model, x, target=0, n_steps=30, return_convergence_delta=False)
    exact = both(model.double(), x.double(), target=0, n_steps=30, return_convergence_delta=False)[1]
    assert found.dtype == plain.dtype
    assert (found - exact).norm() < 1.1 * (plain - exact).norm() < 0.05 * exact.norm()


def test_methods_that_are_no_sums_along_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())), noise(2, 3, 9, 8)
    with taken(monkeypatch) as seen:
        Saliency(model).attribute(x, target=1)
        GuidedBackprop(model).attribute(x, target=1)
        IntegratedGradients(model).attribute(x, target=1, n_steps=1)
    assert seen == []


@pytest.mark.parametrize("change", ["weights in place", "weights anew", "stride"])
def test_a_layer_that_changes_from_chunk_to_chunk(change: str) -> None:
    """Its weights of one chunk are not used for another."""

    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(noise(5, 3, 3, 3).double())
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if change == "weights in place":
                with torch.no_grad():
                    self.weight.mul_(0.9)
            weight = self.weight * 0.9**self.calls if change == "weights anew" else self.weight
            stride = 1 + self.calls % 2 if change == "stride" else 1
            return torch.tanh(F.conv2d(x, weight, stride=stride)).flatten(1).pow(2).mean(1)

    x = noise(1, 3, 9, 9).double()
    found, expected = Changing(), Changing()
    with fusum.config(memory="1KB"):
        scores = IntegratedGradients(found).attribute(x, n_steps=6)
    assert found.calls == 6
    assert_same(scores, IntegratedGradients(expected).attribute(x, n_steps=6, internal_batch_size=1), 1e-12, 1e-12)


def half(gradient: Tensor) -> Tensor:
    return gradient.clamp(max=0.01)


@pytest.mark.parametrize("place", ["input", "output", "full", "old"])
@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_hooks_see_and_change_every_gradient(place: str) -> None:
    conv = nn.Conv2d(3, 5, 3)
    whole = net(conv, torch.float64)

    def model(x: Tensor) -> Tensor:
        if place == "input" and x.requires_grad:
            x.register_hook(half)
        y = conv(x)
        if place == "output" and y.requires_grad:
            y.register_hook(half)
        return torch.tanh(y).flatten(1).pow(2).sum(1)

    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            return model(x)

    x = noise(2, 3, 9, 8).double()
    unhooked = both(whole, x)[0]
    if place == "full":
        conv.register_full_backward_hook(lambda m, into, out: (half(into[0]),))
    elif place == "old":
        conv.register_backward_hook(lambda m, into, out: (half(into[0]), *into[1:]))
    found, expected = both(Hooked(), x, target=None)
    assert_same(found, expected, **EXACT[torch.float64])
    assert not torch.allclose(found[0], unhooked[0])


def test_no_graph_outlives_its_chunk() -> None:
    """Of each chunk nothing stays but the sum: the points of an earlier one are gone when the next are made."""
    points: list[weakref.ref[Tensor]] = []
    alive = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net(nn.Conv2d(3, 5, 3))

        def forward(self, x: Tensor) -> Tensor:
            points.append(weakref.ref(x))
            alive.append(sum(point() is not None for point in points))
            return self.inner(x)[:, 0]

    with fusum.config(memory="1KB"):
        IntegratedGradients(Watched()).attribute(noise(1, 3, 9, 8), n_steps=6)
    assert alive == [1] * 6
