"""Memory is bounded, results do not depend on how the work is cut, and no row is evaluated twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum
import fusum.attr
from cases import CASES, METHODS, SHORT, Case, having, on
from checkers import assert_identical, assert_rows_within, assert_same
from fusum.attr import GradientShap, InputXGradient, IntegratedGradients, Saliency
from fusum.engine.support import without_kernels
from models import Recorder, noise, subject

# Lines on whose ends outputs are kept for the delta.
ENDED = ("IG-riemann_left", "IG-riemann_right", "IG-riemann_trapezoid")

# The model's own matrix products round differently for other batch sizes, so results agree to rounding, not to the bit.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("case", on(CASES))
def test_every_case_in_small_chunks(case: Case) -> None:
    """max_rows is a hard cap for every method, and changes no result."""
    model = Recorder(case.subject.module)
    with fusum.config(max_rows=3):
        found = case.attribute(fusum.attr, model)
    assert_rows_within(model.rows, 3)
    assert_same(found, case.attribute(fusum.attr), **ROUNDING)


@pytest.mark.parametrize("case", on(SHORT))
@pytest.mark.parametrize("rows", [1, 2, 7, 10**9])
def test_any_cap_gives_the_same(case: Case, rows: int) -> None:
    with fusum.config(max_rows=rows):
        found = case.attribute(fusum.attr)
    assert_same(found, case.attribute(fusum.attr), **ROUNDING)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10**9])
@pytest.mark.parametrize("model", ["mlp", "two_inputs", "cnn"])
def test_internal_batch_size_changes_nothing(model: str, size: int, method: str) -> None:
    case = Case("", ("IntegratedGradients",), model, {"method": method, "n_steps": 5, "return_convergence_delta": True})
    assert_same(case.attribute(fusum.attr, internal_batch_size=size), case.attribute(fusum.attr), **ROUNDING)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_model_without_rounding_of_its_own(size: int) -> None:
    """The kernels add up in the order of the points, so a cut changes no bit; the reference ops add to rounding."""

    def elementwise(x: Tensor) -> Tensor:
        return x[:, 0] * x[:, 1] + x[:, 2] * x[:, 2]

    x, b = noise(6, 3), noise(6, 3, seed=1)
    whole = IntegratedGradients(elementwise).attribute(x, b, return_convergence_delta=True)
    cut = IntegratedGradients(elementwise).attribute(x, b, internal_batch_size=size, return_convergence_delta=True)
    if without_kernels() is None:
        assert_identical(cut, whole)
    else:
        assert_same(cut, whole, **ROUNDING)


@pytest.mark.parametrize("case", on(SHORT))
@pytest.mark.parametrize("memory", ["100KB", 2000, "1GB"])
def test_memory_changes_nothing(case: Case, memory: Any) -> None:
    with fusum.config(memory=memory):
        found = case.attribute(fusum.attr)
    assert_same(found, case.attribute(fusum.attr), **ROUNDING)


def test_less_memory_means_fewer_rows() -> None:
    most = []
    for memory in ("20KB", "200KB", "1GB"):
        model = Recorder(subject("mlp").module)
        with fusum.config(memory=memory):
            for _ in range(2):  # the first call measures the model
                IntegratedGradients(model).attribute(noise(40, 8), target=1)
                seen = max(model.rows)
                model.rows.clear()
        most.append(seen)
    assert most[0] < most[1] < most[2] == 2000


@pytest.mark.parametrize("case", on(SHORT))
def test_threads_change_nothing(case: Case) -> None:
    expected = case.attribute(fusum.attr)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_same(case.attribute(fusum.attr), expected, **ROUNDING)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cap", [1, 2, 3, 7, 12])
def test_internal_batch_size_is_a_hard_cap(cap: int, method: str) -> None:
    model = Recorder(subject("mlp").module)
    IntegratedGradients(model).attribute(
        noise(8, 8), target=1, n_steps=6, method=method, internal_batch_size=cap, return_convergence_delta=True
    )
    assert_rows_within(model.rows, cap)


def test_the_smaller_of_two_caps_holds() -> None:
    for own, general in ((3, 50), (50, 3)):
        model = Recorder(subject("mlp").module)
        with fusum.config(max_rows=general):
            IntegratedGradients(model).attribute(noise(8, 8), target=1, internal_batch_size=own)
        assert_rows_within(model.rows, 3)


@pytest.mark.parametrize("case", on([*SHORT, *(case for case in CASES if case.name in ENDED)]))
@pytest.mark.parametrize("capacity", [1, 2, 4])
def test_out_of_memory_is_met_with_smaller_chunks(case: Case, capacity: int) -> None:
    model = Recorder(subject("mlp").module, capacity)
    assert_same(case.attribute(fusum.attr, model), case.attribute(fusum.attr), **ROUNDING)
    assert max(model.rows) > capacity, "the model never ran out of memory"


def test_what_ran_out_of_memory_is_remembered() -> None:
    model, x = Recorder(subject("mlp").module, 40), noise(60, 8)
    IntegratedGradients(model).attribute(x, target=1)
    model.rows.clear()
    IntegratedGradients(model).attribute(x, target=1)
    assert_rows_within(model.rows, 40)


@pytest.mark.parametrize("case", on(SHORT))
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("too much"), MemoryError("too much")])
def test_out_of_memory_at_one_row_passes_through(case: Case, error: Exception) -> None:
    class Full(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(type(error)) as caught:
        case.attribute(fusum.attr, Full())
    assert caught.value is error


def rows_seen(explain: Callable[[nn.Module], Any], model: str = "mlp") -> int:
    recorder = Recorder(subject(model).module)
    explain(recorder)
    return sum(recorder.rows)


@pytest.mark.parametrize("rows", [None, 1, 4, 13])
def test_a_line_takes_each_point_once(rows: int | None) -> None:
    x = noise(6, 8)
    seen = rows_seen(lambda m: IntegratedGradients(m).attribute(x, target=1, n_steps=9, internal_batch_size=rows))
    assert seen == 9 * 6


@pytest.mark.parametrize("kind", [Saliency, InputXGradient])
def test_a_gradient_takes_each_example_once(kind: type[Saliency | InputXGradient]) -> None:
    assert rows_seen(lambda m: kind(m).attribute(noise(6, 8), target=1)) == 6


ENDS = {"gausslegendre": 7, "riemann_middle": 7, "riemann_left": 6, "riemann_right": 1, "riemann_trapezoid": 0}


@pytest.mark.parametrize("rows", [None, 1, 4, 13])
@pytest.mark.parametrize(("method", "ends"), ENDS.items())
def test_a_delta_adds_what_is_not_yet_known(method: str, ends: int, rows: int | None) -> None:
    """Six examples and one shared baseline: the ends that lie on the line are not evaluated again."""
    x, same = noise(6, 8), {"target": 1, "n_steps": 9, "method": method, "internal_batch_size": rows}
    seen = rows_seen(lambda m: IntegratedGradients(m).attribute(x, 0.5, return_convergence_delta=True, **same))
    assert seen <= 9 * 6 + ends


def test_a_delta_with_own_baselines_adds_both_ends() -> None:
    x, baselines = noise(6, 8), noise(6, 8, seed=1)
    seen = rows_seen(
        lambda m: IntegratedGradients(m).attribute(x, baselines, target=1, n_steps=9, return_convergence_delta=True)
    )
    assert seen == 9 * 6 + 12


@pytest.mark.parametrize("rows", [None, 4])
def test_gradient_shaps_delta_adds_examples_and_baselines_once(rows: int | None) -> None:
    x, baselines = noise(6, 8), noise(9, 8, seed=1)

    def explain(model: nn.Module) -> None:
        with fusum.config(max_rows=rows):
            GradientShap(model).attribute(x, baselines, n_samples=10, target=1, return_convergence_delta=True)

    assert rows_seen(explain) <= 6 * 10 + 6 + 9


def test_gradient_shap_evaluates_no_more_baselines_than_are_drawn() -> None:
    x, baselines = noise(2, 8), noise(500, 8, seed=1)
    seen = rows_seen(
        lambda m: GradientShap(m).attribute(x, baselines, n_samples=3, target=1, return_convergence_delta=True)
    )
    assert seen <= 2 * 3 * 3


@pytest.mark.parametrize("case", on(having("NoiseTunnel")[:4]))
def test_a_tunnel_takes_each_noisy_point_once(case: Case) -> None:
    steps = case.arguments.get("n_steps", 1)
    bare = dict(case.arguments, return_convergence_delta=False) if steps > 1 else {}
    model = Recorder(case.subject.module)
    case.attribute(fusum.attr, model, **bare)
    assert sum(model.rows) == case.subject.examples * case.arguments["nt_samples"] * steps


class Normalised(nn.Module):
    """Couples its rows while it trains: cutting a batch of examples would change its results."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(x)))


def test_a_model_that_mixes_rows_while_training_sees_whole_batches() -> None:
    model = Recorder(Normalised().train())
    with fusum.config(memory="1KB"):
        Saliency(model).attribute(noise(40, 8), target=1)
        IntegratedGradients(model).attribute(noise(40, 8), target=1, n_steps=5)
    assert model.rows == [40, 200]
