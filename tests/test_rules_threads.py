"""Rules belong to one thread and one forward: threads, nested attributions and errors do not see each other's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkers import assert_identical, assert_same, untouched
from formats import converted
from fusum.attr import LRP, Deconvolution, DeepLift, DeepLiftShap, GuidedBackprop, Saliency
from models import noise, subject

Call = Callable[[Any, Tensor], Tensor]


def plain(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


CALLS: dict[str, Call] = {
    "DeepLift": lambda model, x: DeepLift(model).attribute(x, x.flip(0) * 0.3, target=1),
    "DeepLiftShap": lambda model, x: DeepLiftShap(model).attribute(x, x.flip(0)[:3] * 0.3, target=1),
    "GuidedBackprop": lambda model, x: GuidedBackprop(model).attribute(x, target=1),
    "Deconvolution": lambda model, x: Deconvolution(model).attribute(x, target=1),
    "LRP": lambda model, x: LRP(model).attribute(x, target=1),
    "forward": plain,
    "Saliency": lambda model, x: Saliency(model).attribute(x, target=1, abs=False),
}
RULED = [name for name in CALLS if name not in ("forward", "Saliency")]


@pytest.mark.parametrize(
    ("model", "form"), [("mlp", "eager"), ("cnn", "eager"), ("mlp", "scripted"), ("mlp", "traced")]
)
def test_threads_share_a_model(model: str, form: str) -> None:
    """Four threads, 200 calls each, every call with the inputs of its thread."""
    shared, shape = converted(model, form), subject(model).inputs.shape[1:]
    inputs = [noise(4 + thread, *shape, seed=thread) for thread in range(4)]
    names = list(CALLS)
    expected = [[CALLS[name](shared, x) for name in names] for x in inputs]
    for name, (ours, *others) in zip(names, zip(*expected, strict=True), strict=True):
        if model == "cnn" or name != "Deconvolution":  # which of an MLP is the same for all inputs
            assert not any(torch.equal(ours[:4], other[:4]) for other in others)

    def work(thread: int) -> list[tuple[int, Tensor]]:
        order = [(call * (thread + 1) + call // 7) % len(names) for call in range(200)]
        return [(which, CALLS[names[which]](shared, inputs[thread])) for which in order]

    with untouched(subject(model).module), ThreadPoolExecutor(4) as pool:
        for thread, found in enumerate(pool.map(work, range(4))):
            assert len({which for which, _ in found}) == len(names)
            for which, result in found:
                assert_same(result, expected[thread][which], rtol=1e-5, atol=1e-6)


class Meeting(nn.Module):
    """Calls meet() in the middle of its forward."""

    def __init__(self, meet: Callable[[], Any]) -> None:
        super().__init__()
        self.body, self.meet = subject("mlp").module, meet

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.body
        hidden = first(x)
        self.meet()
        for layer in others:
            hidden = layer(hidden)
        return hidden


@pytest.mark.parametrize("name", RULED)
def test_a_rule_is_not_seen_by_another_thread(name: str) -> None:
    """The other thread takes a plain gradient through the same modules while the rule is on in this one."""
    x, model, found = noise(5, 8), subject("mlp").module, []

    def meet() -> None:
        other = threading.Thread(target=lambda: found.append(CALLS["Saliency"](model, x)))
        other.start()
        other.join()

    assert_same(CALLS[name](Meeting(meet), x), CALLS[name](model, x))
    assert found
    for gradient in found:
        assert_same(gradient, CALLS["Saliency"](model, x))


@pytest.mark.parametrize("inner", CALLS)
@pytest.mark.parametrize("outer", [*RULED, "Saliency"])
def test_an_attribution_inside_an_attribution(outer: str, inner: str) -> None:
    x, model, found = noise(5, 8), subject("mlp").module, []
    meeting = Meeting(lambda: found.append(CALLS[inner](model, x)))
    assert_same(CALLS[outer](meeting, x), CALLS[outer](model, x))
    assert found
    for result in found:
        assert_same(result, CALLS[inner](model, x))


class Times(nn.Module):
    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


@pytest.mark.parametrize("inner", RULED)
@pytest.mark.parametrize("outer", RULED)
def test_an_explained_model_may_weigh_by_an_attribution(outer: str, inner: str) -> None:
    fixed, model = noise(5, 8, seed=3), subject("mlp").module
    weights = CALLS[inner](model, fixed)[:1]

    class Weighed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x * CALLS[inner](model, fixed)[:1])

    assert_same(CALLS[outer](Weighed(), noise(5, 8)), CALLS[outer](nn.Sequential(Times(weights), model), noise(5, 8)))


def dispatch_state() -> tuple[Any, ...]:
    local = (torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set())
    return *map(repr, local), torch._C._get_graph_executor_optimize(), torch.is_grad_enabled()


class Own(Exception):
    """An error of the user's model."""


@pytest.mark.parametrize("name", RULED)
@pytest.mark.parametrize("call", [1, 2])
def test_an_error_of_the_model_leaves_the_thread_clean(name: str, call: int) -> None:
    x, model, error, calls = noise(5, 8), subject("mlp").module, Own("mine"), []
    expected, before = {each: CALLS[each](model, x) for each in CALLS}, dispatch_state()

    def fail() -> None:
        calls.append(1)
        if len(calls) == call:
            raise error

    if call == 1 or "DeepLift" in name:  # the others run the model once
        with untouched(model), pytest.raises(Own) as caught:
            CALLS[name](Meeting(fail), x)
        assert caught.value is error
    assert dispatch_state() == before
    for each, result in expected.items():
        assert_identical(CALLS[each](model, x), result)


@pytest.mark.parametrize("name", RULED)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes(name: str, mode: Any) -> None:
    model, x = subject("mlp").module, noise(5, 8)
    expected, before = CALLS[name](model, x), dispatch_state()
    with mode(), untouched(model, x):
        assert_same(CALLS[name](model, x), expected)
        assert_same(CALLS[name](model, noise(5, 8)), expected)
    assert dispatch_state() == before


@pytest.mark.parametrize("name", RULED)
def test_autocast(name: str) -> None:
    """The same operators in bfloat16: near the numbers of float32."""
    model, x = subject("mlp").module, noise(5, 8)
    expected = CALLS[name](model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = CALLS[name](model, x)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()
