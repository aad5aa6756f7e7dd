"""KernelShap: captum's numbers, Shapley values in closed form and by brute force, and draws that need fewer samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fusum
import fusum.attr
from cases import Case, on, seed
from checkers import assert_identical, assert_refused, assert_same, flat
from formats import converted
from fusum.attr import KernelShap, ShapleyValues
from fusum.plan import samples
from models import Recorder, noise, subject
from surrogate_cases import ALIKE, METHODS, assert_near, case, rows_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PAIRS = ("paired", "leverage")


@pytest.mark.parametrize("row", on(rows_of("KernelShap")))
def test_same_as_captum(row: Case) -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    theirs = row.attribute(captum_attr, row.subject.peer)
    drawn = torch.get_rng_state()
    # captum fits in float32, with a weight of a million where fusum has constraints.
    assert_near(row.attribute(fusum.attr), theirs, 2e-5)
    assert torch.equal(torch.get_rng_state(), drawn), "other random numbers were drawn"


# Closed forms.


def exact(model: Any, inputs: Any, **keywords: Any) -> Any:
    """Shapley values by their definition."""
    return ShapleyValues(model).attribute(inputs, **keywords)


@pytest.mark.parametrize("sampling", ["kernel", *PAIRS])
@pytest.mark.parametrize("n_samples", [10, 30, 200])
def test_an_additive_game_is_exact(sampling: str, n_samples: int) -> None:
    x, base = noise(5, 8).double(), noise(5, 8, seed=1).double()
    found = KernelShap(lambda x: (x.sin() + 3 * x).sum(1)).attribute(x, base, n_samples=n_samples, sampling=sampling)
    if n_samples > 10:  # fewer do not tell 8 features apart
        assert_same(found.double(), x.sin() + 3 * x - base.sin() - 3 * base, rtol=1e-6)
    change = (x.sin() + 3 * x - base.sin() - 3 * base).sum(1)
    torch.testing.assert_close(found.double().sum(1), change, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampling", PAIRS)
@pytest.mark.parametrize("model", ["mlp", "one_row", "two_inputs", "number"])
def test_every_coalition_is_exact(model: str, sampling: str) -> None:
    source = subject(model)
    mask = tuple(torch.arange(x[:1].numel()).view(x[:1].shape) % 6 for x in source.tensors)
    keywords = {"target": source.target, "additional_forward_args": source.extra, "feature_mask": mask}
    expected = exact(source.module, source.tensors, **keywords)
    for n_samples in (2**6 - 2, 2**6 + 3):
        found = KernelShap(source.module).attribute(source.tensors, n_samples=n_samples, sampling=sampling, **keywords)
        assert_near(found, expected, 1e-6)


@pytest.mark.parametrize("sampling", PAIRS)
@pytest.mark.parametrize("features", [1, 2, 3])
def test_few_features(features: int, sampling: str) -> None:
    x = noise(4, features)
    model: Callable[[Tensor], Tensor] = lambda x: (x.cumsum(1) ** 2).sum(1) * x.sin().prod(1)  # noqa: E731
    assert_near(KernelShap(model).attribute(x, n_samples=6, sampling=sampling), exact(model, x), 1e-6)


def test_one_feature_gets_all() -> None:
    x = noise(4, 8)
    found = KernelShap(lambda x: (x**2).sum(1)).attribute(x, feature_mask=torch.zeros(1, 8, dtype=torch.int64))
    assert_same(found, (x**2).sum(1, keepdim=True).expand(4, 8))


@pytest.mark.parametrize("sampling", ["kernel", *PAIRS])
@pytest.mark.parametrize("model", ["mlp", "two_inputs", "cnn"])
@pytest.mark.parametrize("n_samples", [2, 3, 20, 100])
def test_scores_sum_to_the_change(model: str, n_samples: int, sampling: str) -> None:
    row = case("KernelShap", model, n_samples=n_samples, sampling=sampling)
    source = row.subject
    zeros = tuple(torch.zeros_like(x) for x in source.tensors)
    change = [source.module(*at, *source.extra)[:, source.target] for at in (source.tensors, zeros)]
    total = sum(s.flatten(1).sum(1) for s in flat(row.attribute(fusum.attr)))
    torch.testing.assert_close(total, change[0] - change[1], rtol=0, atol=1e-5)


# Fewer samples for the same error.


def interacting(features: int) -> Callable[[Tensor], Tensor]:
    """A game with interactions of any order."""
    mix, out = noise(features, 12, seed=3).double(), noise(12, seed=4).double()
    return lambda x: torch.tanh(x @ mix / 2) @ out


@pytest.mark.parametrize(("features", "n_samples"), [(8, 60), (8, 200), (10, 100), (10, 200)])
def test_pairs_err_less(features: int, n_samples: int) -> None:
    """Of the mean squared error of captum's draws, at most a third is left."""
    model, x = interacting(features), noise(12, features).double()
    expected = exact(model, x)
    errors = {}
    for sampling in ("kernel", *PAIRS):
        seed()
        found = [KernelShap(model).attribute(x, n_samples=n_samples, sampling=sampling) for _ in range(10)]
        errors[sampling] = sum(float((f - expected).square().mean()) for f in found)
    assert errors["kernel"] > 0
    for sampling in PAIRS:
        assert errors[sampling] < errors["kernel"] / 3, errors


@pytest.mark.parametrize("sampling", PAIRS)
def test_more_pairs_err_less(sampling: str) -> None:
    model, x = interacting(10), noise(12, 10).double()
    expected, errors = exact(model, x), []
    for n_samples in (30, 120, 480):
        seed()
        found = [KernelShap(model).attribute(x, n_samples=n_samples, sampling=sampling) for _ in range(5)]
        errors.append(sum(float((f - expected).square().mean()) for f in found))
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors


@pytest.mark.parametrize("sampling", PAIRS)
@pytest.mark.parametrize(("features", "n"), [(2, 2), (5, 30), (8, 31), (8, 200), (20, 500), (64, 300), (784, 201)])
def test_pairs_are_complements_and_differ(features: int, n: int, sampling: str) -> None:
    drawn, weights = samples.pairs(n, features, sampling)
    assert drawn.shape == (n - n % 2, features)
    assert weights.shape == (len(drawn),)
    assert bool((weights > 0).all() and weights.isfinite().all())
    assert torch.equal(drawn[1::2], ~drawn[::2])
    assert len(torch.unique(drawn, dim=0)) == len(drawn)


@pytest.mark.parametrize("sampling", PAIRS)
def test_a_weighted_mean_over_pairs_is_unbiased(sampling: str) -> None:
    """Each coalition's weight times how often it comes is its Shapley kernel."""
    seed()
    bits, draws = 2 ** torch.arange(6), 1000
    total = torch.zeros(64, dtype=torch.float64)
    for _ in range(draws):
        drawn, weights = samples.pairs(20, 6, sampling)
        total.index_add_(0, drawn.long() @ bits, weights)
    for number in range(1, 63):
        size = bin(number).count("1")
        kernel = 1 / (size * (6 - size) * torch.tensor([0, 6, 15, 20, 15, 6][size]))
        assert abs(total[number] / draws / kernel - 1) < 0.3, number


# Seeds, evaluations, formats.


@pytest.mark.parametrize("sampling", ["kernel", *PAIRS])
def test_same_seed_same_scores(sampling: str) -> None:
    row = case("KernelShap", "mlp", sampling=sampling)
    first, state = row.attribute(fusum.attr), torch.get_rng_state()
    assert_identical(row.attribute(fusum.attr), first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert not torch.equal(KernelShap(row.subject.module).attribute(**row.keywords()), first)


@pytest.mark.parametrize("sampling", ["kernel", *PAIRS])
def test_no_coalition_is_evaluated_twice(sampling: str) -> None:
    model = Recorder(subject("mlp").module)
    mask = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3]])
    KernelShap(model).attribute(noise(5, 8), target=1, feature_mask=mask, n_samples=300, sampling=sampling)
    assert sum(model.rows) < 5 * 2**4 + 10  # and a few rows that show that rows are apart


FORMS = ["function", "scripted", "traced", "frozen", "fx_traced", "exported_dynamic", "exported_static", "compiled"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", ["mlp", "two_inputs"])
def test_formats(model: str, form: str, name: str) -> None:
    row = case(name, model)
    assert_near(row.attribute(fusum.attr, converted(model, form)), row.attribute(fusum.attr), 1e-5)


def test_the_model_is_as_it_was_after_an_error() -> None:
    def fails(x: Tensor) -> Tensor:
        if len(x) > 5:
            raise KeyError("mine")
        return x.sum(1)

    with pytest.raises(KeyError, match="mine"):
        KernelShap(fails).attribute(noise(5, 8))


def test_row_each_alone_where_rows_mix() -> None:
    """captum explains each example by itself; so do pairs."""
    x, model = noise(4, 6), lambda x: x[:, 0] * x[:, 1] + x.sum(1) / len(x)
    expected = torch.cat([exact(lambda x: x[:, 0] * x[:, 1] + x.sum(1), one) for one in x.split(1)])
    assert_near(KernelShap(model).attribute(x, n_samples=64, sampling="paired"), expected, 1e-6)


# Arguments.


@pytest.mark.parametrize(
    ("names", "arguments"),
    [
        ("n_samples", {"n_samples": 0}),
        ("n_samples", {"n_samples": 2.5}),
        ("n_samples", {"n_samples": 1, "sampling": "paired"}),
        ("sampling", {"sampling": "captum"}),
        ("sampling", {"sampling": None}),
        ("return_input_shape", {"return_input_shape": 1}),
        ("perturbations_per_eval", {"perturbations_per_eval": 0}),
        ("feature_mask", {"feature_mask": torch.tensor([[0, 1]])}),
        ("feature_mask", {"feature_mask": torch.full((1, 8), -1)}),
        ("feature_mask", {"feature_mask": (torch.zeros(1, 8).long(),) * 2}),
        ("baselines", {"baselines": noise(2, 8)}),
        ("inputs", {"inputs": noise(5, 0)}),
        ("inputs", {"inputs": noise(0, 8)}),
    ],
)
def test_bad_arguments(names: str, arguments: dict[str, Any]) -> None:
    model = Recorder(subject("mlp").module)
    given = {"inputs": noise(5, 8), "target": 1, **arguments}
    assert_refused(lambda: KernelShap(model).attribute(**given), names, model.rows)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("form", ALIKE)
def test_arguments_that_captum_does_not_take(name: str, form: str) -> None:
    row, (ours, others) = case(name, "mlp"), ALIKE[form]
    assert_identical(row.attribute(fusum.attr, **ours), row.attribute(fusum.attr, **others))


@pytest.mark.parametrize("name", METHODS)
def test_additional_arguments_of_any_kind(name: str) -> None:
    row = case(name, "many_kinds")
    each, *others = row.subject.extra

    def bound(x: Tensor) -> Tensor:  # the rows of x tell which of the additional rows are theirs
        of = (x[:, None, :1] == row.subject.inputs[None, :, :1]).any(-1).int().argmax(1)
        return row.subject.module(x, each[of], others[0][of], *others[1:])

    mask = torch.tensor([[0, 1, 1, 2, 3, 3]])
    fixed = {"feature_mask": mask, "baselines": row.subject.inputs * torch.tensor([1.0, 0, 0, 0, 0, 0])}
    found = row.attribute(fusum.attr, **fixed)
    assert_near(found, row.attribute(fusum.attr, bound, **fixed, additional_forward_args=None), 1e-6)
    assert found.abs().max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_outputs_that_are_not_one_number_an_example(name: str) -> None:
    method = getattr(fusum.attr, name)
    with pytest.raises(fusum.ArgumentError, match=r"^forward_func: returned 15 numbers for 5 examples.*expected"):
        method(subject("mlp").module).attribute(noise(5, 8))
    with pytest.raises(fusum.ArgumentError, match=r"^forward_func: returned 3 numbers for 1 examples"):
        method(subject("mlp").module).attribute(noise(1, 8))
    with pytest.raises(fusum.ArgumentError, match=r"^perturbations_per_eval: got 2; expected 1"):
        method(lambda x: x.sum()).attribute(noise(5, 8), perturbations_per_eval=2)


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_that_starts_above_zero_warns(name: str) -> None:
    method = getattr(fusum.attr, name)(subject("mlp").module)
    with pytest.warns(UserWarning, match="least number is 2"):
        method.attribute(noise(5, 8), target=1, feature_mask=torch.tensor([[2, 2, 3, 3, 4, 4, 5, 5]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.attribute(noise(5, 8), target=1)


def test_many_features_warn() -> None:
    with pytest.warns(UserWarning, match="10001 features"):
        found = KernelShap(lambda x: x.sum(1)).attribute(noise(1, 10001), n_samples=3)
    torch.testing.assert_close(found.sum(), noise(1, 10001).sum(), rtol=0, atol=1e-2)


def test_one_sample_warns() -> None:
    with pytest.warns(UserWarning, match="scores of zero"):
        found = KernelShap(subject("mlp").module).attribute(noise(1, 8), target=1, n_samples=1)
    assert_same(found, torch.zeros(1, 8))
