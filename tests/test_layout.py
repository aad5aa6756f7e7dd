"""Images lie channels_last inside models where that is faster, and nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from checkers import assert_same
from fusum import config, ops
from fusum.attr import (
    LRP,
    DeepLift,
    DeepLiftShap,
    FeatureAblation,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    LayerActivation,
    LayerConductance,
    LayerGradCam,
    NeuronGradient,
    Occlusion,
)
from fusum.engine import cpu
from layout_nets import TAILS, Net
from models import noise

pytestmark = pytest.mark.skipif(not ops.kernels_loaded(), reason=f"no compiled kernels: {ops.why_not()}")
# Calls a function with images as they are.
Off = Callable[[Callable[[], Any]], Any]
KEY = "TESTING_ONLY_GenericWrapper"


HAS_COMPILED = cpu._has_compiled


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, never_compiled: None) -> None:
    """Images of a few pixels are laid out, too."""
    monkeypatch.setattr(cpu, "_SIDES", 1)


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> Off:

    def call(work: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(cpu, "_is_large", lambda x: False)
            return work()

    return call


def is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def batch(rows: int = 8) -> Tensor:
    return noise(rows, 3, 6, 6)


METHODS: dict[str, Callable[[Any, Tensor], Any]] = {
    "InputXGradient": lambda model, x: InputXGradient(model).attribute(x, target=1),
    "IntegratedGradients": lambda model, x: IntegratedGradients(model).attribute(x, target=1, n_steps=3),
    "FeatureAblation": lambda model, x: FeatureAblation(model).attribute(
        x, target=0, feature_mask=torch.arange(6).repeat(6).view(1, 1, 6, 6), perturbations_per_eval=3
    ),
    "LayerActivation": lambda model, x: LayerActivation(model, model.conv).attribute(x),
    "LayerGradCam": lambda model, x: LayerGradCam(model, model.conv).attribute(x, target=1),
    "NeuronGradient": lambda model, x: NeuronGradient(model, model.conv).attribute(x, (1, 2, 3)),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("method", METHODS)
def test_the_same_as_where_images_lie_plainly(method: str, tail: str, off: Off) -> None:
    model, x = Net(TAILS[tail]), batch()

    def scores() -> Any:
        torch.manual_seed(3)
        try:
            return METHODS[method](model, x)
        except ValueError as error:  # a layer that may not be replaced: no other way either
            return str(error)

    expected = off(scores)
    found = scores()
    if isinstance(expected, str):
        assert found == expected
        return
    assert_same(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert found.is_contiguous()


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(3))
    model = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(8, 3))
    nn.init.uniform_(first[1].running_mean)
    return model.eval()


FORMATS: dict[str, Callable[[nn.Module], Any]] = {
    "eager": lambda model: model,
    "scripted": torch.jit.script,
    "frozen": lambda model: torch.jit.freeze(torch.jit.script(model)),
    "traced": lambda model: torch.jit.trace(model, batch(2)),
    "exported": lambda model: torch.export.export(
        model, (batch(4),), dynamic_shapes=({0: torch.export.Dim("rows", min=1, max=512)},)
    ),
    "a function": lambda model: lambda x: model(x),
}
RULES: dict[str, Callable[[Any, Tensor], Any]] = {
    "DeepLift": lambda model, x: DeepLift(model).attribute(x, 0.5 * x.flip(0), target=1),
    "LRP": lambda model, x: LRP(model).attribute(x, target=1),
    "GuidedBackprop": lambda model, x: GuidedBackprop(model).attribute(x, target=1),
    "IntegratedGradients": lambda model, x: IntegratedGradients(model).attribute(x, target=1, n_steps=3),
    "Occlusion": lambda model, x: Occlusion(model).attribute(
        x, (3, 2, 2), target=1, strides=2, perturbations_per_eval=9
    ),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("method", RULES)
def test_every_rule_and_format(method: str, form: str, off: Off) -> None:
    model, x = FORMATS[form](convolutional()), batch(9)
    expected = off(lambda: RULES[method](model, x))
    found = RULES[method](model, x)
    assert_same(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert found.is_contiguous()


def test_what_is_compiled_sees_what_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = torch.linspace(-1, 1, 8 * 6 * 6)
    compiled = torch.compile(lambda y: y.view(len(y), -1) * ramp, backend="eager")
    monkeypatch.setattr(cpu, "_has_compiled", HAS_COMPILED)
    model = convolutional()[0]
    function = lambda x: compiled(model(x)).sum(1)  # noqa: E731
    expected = InputXGradient(lambda x: (model(x).flatten(1) * ramp).sum(1)).attribute(batch(9))
    assert_same(InputXGradient(function).attribute(batch(9)), expected)


class Seen(nn.Module):
    """Keeps what it sees of a tensor that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layouts: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.layouts.append(is_last(x))
        return x


def seen(model: nn.Module) -> tuple[nn.Module, list[bool]]:
    """A model in which a first convolution's output is looked at."""
    look = Seen()
    return nn.Sequential(model[0], look, *list(model)[1:]).eval(), look.layouts


@pytest.mark.parametrize("method", RULES)
def test_images_do_lie_channels_last(method: str) -> None:
    model, layouts = seen(convolutional())
    RULES[method](model, batch(9))
    assert any(layouts)


def test_what_would_not_gain_lies_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layouts = seen(convolutional())
    InputXGradient(model).attribute(batch(4), target=1)
    with config(backend="reference"):
        InputXGradient(model).attribute(batch(16), target=1)
    DeepLiftShap(model).attribute(batch(9), noise(5, 3, 6, 6, seed=4), target=1)
    monkeypatch.setattr(cpu, "_SIDES", 49)
    InputXGradient(model).attribute(batch(16), target=1)
    assert len(layouts) == 5
    assert not any(layouts)


@pytest.mark.parametrize("layer", ["hooked", "last in memory", "weights last in memory", "half", "autocast"])
def test_nothing_is_changed_where_somebody_looks_or_has_chosen(layer: str) -> None:
    model, layouts = seen(convolutional())
    x, expected = batch(9), False
    if layer == "hooked":
        shapes: list[tuple[int, ...]] = []
        model[3].register_forward_hook(lambda module, args, out: shapes.append(out.stride()))
    elif layer == "last in memory":
        x, expected = x.contiguous(memory_format=torch.channels_last), True
    elif layer == "weights last in memory":
        model, expected = model.to(memory_format=torch.channels_last), True
    elif layer == "half":
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=layer == "autocast"):
        InputXGradient(model).attribute(x, target=1)
    assert layouts == [expected]


class Renormed(nn.Conv2d):
    """Keeps its weights small as EEGNet does."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
        return super().forward(x)


@pytest.mark.parametrize("change", ["parametrised", "renormed", "pruned"])
def test_weights_that_are_made_at_each_forward(change: str, off: Off) -> None:
    def scores() -> Any:
        model = convolutional()
        if change == "renormed":
            model[4] = Renormed(8, 8, 3, padding=1)
        elif change == "parametrised":
            parametrizations.weight_norm(model[4])
        else:
            prune.l1_unstructured(model[4], "weight", 0.5)
        return IntegratedGradients(model).attribute(batch(9), target=1, n_steps=4, internal_batch_size=9)

    assert_same(scores(), off(scores), rtol=1e-4, atol=1e-6)


def test_weights_that_are_written_to_between_forwards(off: Off) -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolutional()

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x)
            with torch.no_grad():
                self.inner[4].weight.mul_(1.5)
            return out

    mask = torch.arange(6).repeat(6).view(1, 1, 6, 6)

    def scores() -> Any:
        return FeatureAblation(Grows()).attribute(batch(9), target=1, feature_mask=mask)

    assert_same(scores(), off(scores), rtol=1e-4, atol=1e-6)


def test_what_a_model_lays_channels_last_itself_is_its_own() -> None:
    conv, laid = nn.Conv2d(3, 8, 3), []

    def model(x: Tensor) -> Tensor:
        out = conv(x.to(memory_format=torch.channels_last))
        laid.append(ops.compiled.goes_back_our_way())
        return out.mean((2, 3))  # type: ignore[no-any-return]

    InputXGradient(model).attribute(batch(9), target=1)
    assert not any(laid)
    assert laid


def test_an_attribution_inside_a_model(off: Off) -> None:
    inner, outer = convolutional(), convolutional()

    def model(x: Tensor) -> Tensor:
        weights = InputXGradient(inner).attribute(x.detach(), target=1)
        hidden = outer[0](x)
        return outer[1:](hidden.view(len(x), -1).view(hidden.shape) * weights.view(len(x), -1)[:, :1, None, None])

    def scores() -> Any:
        return InputXGradient(model).attribute(batch(9), target=1)

    assert_same(scores(), off(scores), rtol=1e-4, atol=1e-6)


def test_after_a_call_or_an_exception_it_is_off() -> None:
    model, x = convolutional(), batch(9)
    InputXGradient(model).attribute(x, target=1)
    key = torch._C._dispatch_key_parse(KEY)
    assert not torch._C._dispatch_tls_is_dispatch_key_included(key)
    with pytest.raises(KeyError):
        InputXGradient(nn.Sequential(model[0], Raises())).attribute(x, target=1)
    assert not torch._C._dispatch_tls_is_dispatch_key_included(key)
    assert not is_last(model[0](x))


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError(is_last(x))


def test_neuron_functions_get_images_as_they_lie() -> None:
    model, x = convolutional(), batch(9)
    layouts: list[bool] = []

    def neuron(values: Tensor) -> Tensor:
        layouts.append(is_last(values))
        return values.view(len(values), -1)[:, 5]

    NeuronGradient(model, model[0]).attribute(x, neuron)
    assert not any(layouts)
    assert LayerConductance(model, model[0]).attribute(x, target=1, n_steps=3).is_contiguous()
