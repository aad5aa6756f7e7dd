"""Models and method objects at the edges: what a user may write that is legal and unusual."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fusum
import fusum.attr
from checkers import assert_rows_within, assert_same
from fusum import profile
from fusum.patch import patch, unpatch, watch
from models import noise, subject


def mlp() -> nn.Module:
    return subject("mlp").module


def test_ends_reach_the_model_as_plain_dense_tensors() -> None:
    """A model may use view, so a baseline that is shared by all examples must not come with stride 0."""
    weight = noise(4)

    def function(x: Tensor) -> Tensor:
        return (x.view(-1, 4) @ weight).view(len(x), -1).sum(1)

    x, one = noise(3, 5, 4), noise(1, 5, 4, seed=2)
    _, delta = fusum.attr.IntegratedGradients(function).attribute(x, one, return_convergence_delta=True)
    torch.testing.assert_close(delta, torch.zeros(3), rtol=0, atol=1e-5)
    _, delta = fusum.attr.GradientShap(function).attribute(x, one, return_convergence_delta=True)
    torch.testing.assert_close(delta, torch.zeros(15), rtol=0, atol=1e-5)


def test_a_model_that_writes_to_its_input_changes_no_later_baseline() -> None:
    def writes(x: Tensor) -> Tensor:
        x.data.add_(7)
        return x * 2

    fusum.attr.IntegratedGradients(writes).attribute(torch.ones(1, 1), return_convergence_delta=True)
    scores = fusum.attr.IntegratedGradients(lambda x: 3 * x).attribute(torch.ones(1, 1))
    torch.testing.assert_close(scores, torch.full((1, 1), 3.0))


def test_none_inputs_pass_through_nested_tunnels_and_deltas() -> None:
    def two(a: Tensor, b: Tensor | None = None) -> Any:
        return mlp()(a)

    x = noise(5, 8)
    nested = fusum.attr.NoiseTunnel(fusum.attr.NoiseTunnel(fusum.attr.Saliency(two)))
    scores, nothing = nested.attribute((x, None), target=0)
    assert nothing is None
    assert scores.shape == x.shape
    method = fusum.attr.IntegratedGradients(two)
    (scores, _), delta = method.attribute((x, None), target=0, return_convergence_delta=True)
    assert_same(method.compute_convergence_delta((scores, None), (0, 0), (x, None), target=0), delta)


def test_compute_convergence_delta_keeps_the_cap_and_survives_out_of_memory() -> None:
    rows: list[int] = []

    def limited(x: Tensor) -> Any:
        rows.append(len(x))
        if len(x) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return mlp()(x)

    x = noise(20, 8)
    expected = fusum.attr.IntegratedGradients(mlp()).compute_convergence_delta(x, 0, x, target=0)
    method = fusum.attr.IntegratedGradients(limited)
    assert_same(method.compute_convergence_delta(x, 0, x, target=0), expected)
    rows.clear()
    with fusum.config(max_rows=3):
        assert_same(method.compute_convergence_delta(x, 0, x, target=0), expected)
    assert_rows_within(rows, 3)


def test_compute_convergence_delta_without_a_target_takes_the_sum_of_the_outputs() -> None:
    x, start = noise(5, 8), noise(1, 8, seed=2)
    model = mlp()
    for method in (fusum.attr.IntegratedGradients(model), fusum.attr.DeepLift(model)):
        expected = x.sum(1) - (model(x) - model(start)).detach().sum(1)
        assert_same(method.compute_convergence_delta(x, start, x), expected)
        with pytest.raises(fusum.TargetError):
            method.attribute(x, start, return_convergence_delta=True)


def test_compute_convergence_delta_names_attributions() -> None:
    method, x = fusum.attr.IntegratedGradients(mlp()), noise(5, 8)
    for wrong in ((x, x), x[:2], "scores"):
        with pytest.raises(fusum.ArgumentError, match="attributions"):
            method.compute_convergence_delta(wrong, 0, x, target=0)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"target": np.array([0, 1, 2, 0, 1])}, "target"),
        ({"target": [np.array([0, 1])] * 5}, "target"),
        ({"inputs": noise(5, 8).to_sparse()}, "inputs"),
    ],
)
def test_unusual_arguments_are_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(fusum.ArgumentError, match=name):
        fusum.attr.Saliency(mlp()).attribute(**{"inputs": noise(5, 8), "target": 0, **changes})


def test_complex_outputs_are_refused() -> None:
    with pytest.raises(fusum.ArgumentError, match="complex"):
        fusum.attr.Saliency(lambda x: mlp()(x).to(torch.complex64)).attribute(noise(5, 8), target=0)


def test_config_refuses_endless_memory() -> None:
    with pytest.raises(fusum.ArgumentError, match="memory"):
        fusum.config(memory="infMB")


def test_a_subclass_may_use_the_names_that_captum_leaves_free() -> None:
    class Own(fusum.attr.GradientAttribution):
        def __init__(self, forward: Callable[..., Any]) -> None:
            super().__init__(forward)
            self.rule = "epsilon"

    assert Own(mlp()).rule == "epsilon"


def test_a_tunnel_calls_an_attribute_that_a_user_has_replaced() -> None:
    x = noise(5, 8)
    plain = fusum.attr.NoiseTunnel(fusum.attr.Saliency(mlp())).attribute(x, target=0, stdevs=0.0)

    def thrice(attribute: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(attribute)
        def tripled(*args: Any, **kwargs: Any) -> Any:
            return 3 * attribute(*args, **kwargs)

        del tripled.__wrapped__  # as in captum, a tunnel calls __wrapped__ where there is one
        return tripled

    on_instance = fusum.attr.Saliency(mlp())
    on_instance.attribute = thrice(on_instance.attribute)
    assert_same(fusum.attr.NoiseTunnel(on_instance).attribute(x, target=0, stdevs=0.0), 3 * plain)

    class Decorated(fusum.attr.Saliency):
        attribute = thrice(fusum.attr.Saliency.attribute)

    assert_same(fusum.attr.NoiseTunnel(Decorated(mlp())).attribute(x, target=0, stdevs=0.0), 3 * plain)


def test_the_default_gradient_func_takes_script_functions() -> None:
    @torch.jit.script
    def double(x: Tensor) -> Tensor:
        return 2 * x.sum(1)

    x = noise(5, 8).requires_grad_()
    (gradient,) = fusum.attr.Saliency(double).gradient_func(double, x)
    torch.testing.assert_close(gradient, torch.full((5, 8), 2.0))


def test_the_profile_counts_captums_own_classes_too() -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    patch()
    watch()
    profile.start()
    try:
        with pytest.raises(AssertionError):  # it has no text, but it counts
            captum_attr.LLMAttribution(captum_attr.FeatureAblation(mlp()), None).attribute(None)
        captum_attr.Saliency(mlp()).attribute(noise(2, 8), target=0)
    finally:
        counted = profile.stop()
        unpatch()
    assert counted["LLMAttribution"].fused == 0
    assert sum(counted["LLMAttribution"].reasons.values()) == 1
    assert "Saliency" in counted
    profile.start()
    captum_attr.FeatureAblation(mlp()).attribute(noise(2, 8), target=0)
    assert profile.stop() == {}
