"""Perceptrons go forward and back in one operator: where that is known to be what the model does, and only there."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fusum
import fusum.attr
from checkers import assert_no_graph, assert_same
from formats import FORMATS, Around
from fusum import ops
from fusum.attr import DeepLift, GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from models import Subject

DTYPE = torch.float64
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
Made = Callable[[], nn.Module]


class Coded(nn.Module):
    """A perceptron in Python code, which only a graph shows to be one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.sigmoid(self.first(x)))  # type: ignore[no-any-return]


def deep() -> nn.Module:
    """All that a perceptron may hold."""
    first = nn.Sequential(nn.Flatten(), nn.Linear(6, 9), nn.Dropout(), nn.ReLU(inplace=True), nn.Identity())
    rest = (nn.Linear(9, 8, bias=False), nn.Tanh(), nn.Linear(8, 7), nn.SiLU(), nn.Linear(7, 6), nn.Linear(6, 5))
    return nn.Sequential(first, *rest, nn.GELU(), nn.Linear(5, 3), nn.Sigmoid())


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def made(model: Made) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model().to(DTYPE).eval()


@pytest.fixture
def calls(counted: Callable[[str], list[int]]) -> list[int]:
    """Rows of each call of the op."""
    return counted("perceptron")


def seeded(of: Callable[..., Any], *arguments: Any) -> Any:
    torch.manual_seed(2)
    np.random.seed(2)
    return of(*arguments)


METHODS: dict[str, Callable[[Any, Tensor, Any], Any]] = {
    "IntegratedGradients": lambda model, x, target: IntegratedGradients(model).attribute(
        x, x.flip(0), target=target, n_steps=7, return_convergence_delta=True
    ),
    "small chunks": lambda model, x, target: IntegratedGradients(model).attribute(
        x, target=target, n_steps=7, internal_batch_size=3
    ),
    "Saliency": lambda model, x, target: Saliency(model).attribute(x, target=target),
    "InputXGradient": lambda model, x, target: InputXGradient(model).attribute(x, target=target),
    "GradientShap": lambda model, x, target: GradientShap(model).attribute(
        x, x[:2], n_samples=4, target=target, return_convergence_delta=True
    ),
    "NoiseTunnel": lambda model, x, target: NoiseTunnel(Saliency(model)).attribute(
        x, nt_samples=3, nt_type="vargrad", target=target
    ),
    "DeepLift": lambda model, x, target: DeepLift(model).attribute(
        x, x.flip(0), target=target, return_convergence_delta=True
    ),
    "DeepLift, one baseline": lambda model, x, target: DeepLift(model).attribute(
        x, x[:1] / 2, target=target, return_convergence_delta=True
    ),
}
TARGETS = {"one": 1, "from behind": -1, "a list": [0, 2, 1, 1, 0], "a tensor": torch.tensor([2, 2, 0, 1, 0])}
KNOWN = ["eager", "scripted", "traced", "loaded", "frozen", "exported_dynamic", "exported_static_program"]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", [deep, plain])
def test_scores_are_those_of_the_model(model: Made, method: str, target: str, backend: str, calls: list[int]) -> None:
    module, of = made(model), METHODS[method]
    expected = seeded(of, Around(module), X, TARGETS[target])
    assert not calls
    with fusum.config(backend=backend):  # type: ignore[arg-type]
        found = seeded(of, module, X, TARGETS[target])
    assert calls
    assert_same(found, expected, rtol=1e-9, atol=1e-11)
    assert_no_graph(found)


@pytest.mark.parametrize("form", KNOWN)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", [deep, Coded])
def test_formats(model: Made, method: str, form: str, calls: list[int]) -> None:
    module, of = made(model), METHODS[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = FORMATS[form](Subject(module, (X,)))
    expected = seeded(of, Around(module), X, 1)
    assert_same(seeded(of, file, X, 1), expected, rtol=1e-9, atol=1e-11)
    assert bool(calls) == (model is deep or form != "eager")


def test_rows_may_have_any_shape_where_the_model_flattens_them(calls: list[int]) -> None:
    module = made(deep)
    images = X.view(5, 1, 2, 3)
    found = DeepLift(module).attribute(images, target=0)
    assert calls == [5]
    assert_same(found, DeepLift(Around(module)).attribute(images, target=0), rtol=1e-9, atol=1e-11)


class Other(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Through(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def hooked(register: str) -> nn.Module:
    module = plain()
    getattr(module[1], register)(lambda *_: None)  # type: ignore[index]
    return module


def replaced() -> nn.Module:
    module = plain()
    module[0].forward = lambda x: nn.functional.linear(x, module[0].weight)  # type: ignore[index]
    return module


class Subclass(nn.Sequential):
    pass


OTHERS: dict[str, Made] = {
    "a forward hook": lambda: hooked("register_forward_hook"),
    "a hook before the forward": lambda: hooked("register_forward_pre_hook"),
    "a backward hook": lambda: hooked("register_full_backward_hook"),
    "another forward": replaced,
    "a layer of a subclass": lambda: nn.Sequential(Other(6, 3)),
    "a sequence of a subclass": lambda: Subclass(nn.Linear(6, 3)),
    "a parametrization": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 3))),
    "an unknown layer": lambda: nn.Sequential(nn.Linear(6, 3), nn.Softplus()),
    "two activations in a row": lambda: nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Tanh()),
    "an activation first": lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 3)),
    "another form of GELU": lambda: nn.Sequential(nn.Linear(6, 3), nn.GELU("tanh")),
    "no layer": lambda: nn.Sequential(nn.Identity()),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("method", ["InputXGradient", "DeepLift"])
def test_other_models_are_evaluated_as_they_are(other: str, method: str, calls: list[int]) -> None:
    module, of = made(OTHERS[other]), METHODS[method]
    assert_same(of(module, X, 1), of(Around(module), X, 1), rtol=1e-9, atol=1e-11)
    assert not calls


@pytest.mark.parametrize("mode", [Through, Seen, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_what_looks_on_sees_the_model_run(mode: Any, calls: list[int]) -> None:
    with mode():
        Saliency(made(plain)).attribute(X, target=1)
    assert not calls


def test_hooks_of_all_modules_are_called(calls: list[int]) -> None:
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        Saliency(made(plain)).attribute(X, target=1)
    finally:
        handle.remove()
    assert len(seen) == 4
    assert not calls


def test_dropout_in_training_draws(calls: list[int]) -> None:
    module = made(deep).train()
    assert not torch.equal(*[Saliency(module).attribute(X, target=1) for _ in range(2)])
    assert not torch.equal(*[Saliency(torch.jit.script(module)).attribute(X, target=1) for _ in range(2)])
    assert not calls


@pytest.mark.parametrize("form", ["eager", "scripted", "traced"])
def test_weights_of_now_count(form: str, calls: list[int]) -> None:
    module = made(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = FORMATS[form](Subject(module, (X,)))
    before = Saliency(file).attribute(X, target=1)
    for parameter in file.parameters():
        parameter.data.mul_(2)
    assert_same(Saliency(file).attribute(X, target=1), 4 * before, rtol=1e-9, atol=1e-11)
    assert len(calls) == 2


def test_bad_input_is_answered_as_by_any_model() -> None:
    module = made(plain)
    for x, target in ((X, None), (X, 3), (X, -4), (X, (0, 0)), (X, [0, 1, 2, 3, 0])):
        with pytest.raises(fusum.ArgumentError, match=r"^target: got .*; expected"):
            Saliency(module).attribute(x, target=target)
    with pytest.raises(RuntimeError, match="shapes"):
        Saliency(module).attribute(X[:, :4], target=0)
    with pytest.raises(RuntimeError, match="dtype"):
        Saliency(module).attribute(X.float(), target=0)


def test_nothing_keeps_a_model_alive() -> None:
    for form in ("eager", "scripted", "exported_dynamic"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = FORMATS[form](Subject(made(plain), (X,)))
        Saliency(file).attribute(X, target=0)
        gone = weakref.ref(file)
        del file
        gc.collect()
        assert gone() is None, form


FORWARD_ONLY: dict[str, Callable[[Any], Any]] = {
    "FeatureAblation": lambda model: fusum.attr.FeatureAblation(model).attribute(X, target=[0, 2, 1, 1, 0]),
    "all outputs": lambda model: fusum.attr.FeatureAblation(model).attribute(X),
    "one at a time": lambda model: fusum.attr.Occlusion(model).attribute(X[:1], (2,), target=-1),
    "ShapleyValues": lambda model: fusum.attr.ShapleyValues(model).attribute(X, X.flip(0), target=1),
    "ShapleyValueSampling": lambda model: fusum.attr.ShapleyValueSampling(model).attribute(X, target=1, n_samples=4),
    "FeaturePermutation": lambda model: fusum.attr.FeaturePermutation(model).attribute(X, target=1),
    "KernelShap": lambda model: fusum.attr.KernelShap(model).attribute(X, target=1, n_samples=20),
    "Lime": lambda model: fusum.attr.Lime(model).attribute(X, target=1, n_samples=20),
}


@pytest.mark.parametrize("form", ["eager", "loaded", "exported_static_program"])
@pytest.mark.parametrize("method", FORWARD_ONLY)
def test_methods_without_gradients(method: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, of = made(deep), FORWARD_ONLY[method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = FORMATS[form](Subject(module, (X,)))
    expected = seeded(of, Around(module))
    rows, op = list[int](), ops.perceptron_outputs
    monkeypatch.setattr(ops, "perceptron_outputs", lambda x, *rest: (rows.append(len(x)), op(x, *rest))[1])
    assert_same(seeded(of, file), expected, rtol=1e-9, atol=1e-11)
    assert rows
