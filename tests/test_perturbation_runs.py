"""What methods that change inputs ask of a model: which rows, how many, in which batches, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusum
import fusum.attr
from cases import Case, on, seed
from checkers import assert_identical, assert_no_graph, assert_rows_within, assert_same, flat, untouched
from formats import FORMATS, MOST_ROWS, STATIC_BATCH, converted
from fusum.attr import FeatureAblation, FeaturePermutation, Occlusion, ShapleyValues
from fusum.engine import perturb
from models import Mlp, Recorder, noise, subject
from perturbation_cases import AGGREGATES, METHODS, MIXING, PERTURBED, PERTURBED_SHORT, SAMPLING, case

# Torch warns of modules that are traced, captum of a batch of one.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

captum_attr = pytest.importorskip("captum.attr", reason="captum, whose batches are the measure, is not installed")

X = noise(5, 8)
# The first and the last example, each beside its baseline.
PROBE = [2, 2]
# Every kind of features and of additional arguments; exact values have a mask of few.
VARIOUS = [
    *PERTURBED_SHORT,
    *(case(name, "two_inputs") for name in METHODS),
    *(case(name, "cnn") for name in METHODS),
    *(case(name, "volume", target=None) for name in METHODS),
    *(row for row in PERTURBED if row.name.endswith(("mask-row-each-1", "mask-shared-each-1", "baselines-row-each-1"))),
]


# Results do not depend on how the work is cut.


# Of several inputs it decides, as in captum, in which order they are shuffled.
ONE_ORDER = [row for row in VARIOUS if (row.chain, row.model) != (("FeaturePermutation",), "two_inputs")]


@pytest.mark.parametrize("row", on(ONE_ORDER))
@pytest.mark.parametrize("evals", [2, 1000])
def test_perturbations_per_eval_changes_nothing(row: Case, evals: int) -> None:
    assert_same(row.attribute(fusum.attr, perturbations_per_eval=evals), row.attribute(fusum.attr))


@pytest.mark.parametrize("row", on(VARIOUS))
@pytest.mark.parametrize("options", [{"max_rows": 5}, {"memory": 2000}], ids=str)
def test_settings_change_nothing(row: Case, options: dict[str, Any]) -> None:
    with fusum.config(**options):
        found = row.attribute(fusum.attr)
    assert_same(found, row.attribute(fusum.attr))


@pytest.mark.parametrize("row", on([row for row in PERTURBED if not row.no_peer]))
def test_the_reference_gives_the_numbers_of_the_kernels(row: Case) -> None:
    with fusum.config(backend="reference"):
        found = row.attribute(fusum.attr)
    assert_same(found, row.attribute(fusum.attr))


@pytest.mark.parametrize("row", on(VARIOUS))
@pytest.mark.parametrize(("bits", "rows"), [(1, 1), (70, 23)])
def test_parts_of_many_coalitions(row: Case, bits: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are too many to be made at once."""
    expected = row.attribute(fusum.attr)
    monkeypatch.setattr(perturb, "_MOST_BITS", bits)
    monkeypatch.setattr(perturb, "_MOST_ROWS", rows)
    assert_same(row.attribute(fusum.attr), expected)


@pytest.mark.parametrize("row", on(VARIOUS))
def test_threads_of_torch_change_nothing(row: Case) -> None:
    expected, before = row.attribute(fusum.attr), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_same(row.attribute(fusum.attr), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
@pytest.mark.parametrize("capacity", [5, 13])
def test_a_full_memory(row: Case, capacity: int) -> None:
    """What is more than there is memory for is cut and asked again."""
    model = Recorder(row.subject.module, capacity)
    assert_same(row.attribute(fusum.attr, model), row.attribute(fusum.attr))
    assert max(model.rows) > capacity >= model.rows[-1]


@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
def test_no_more_rows_than_set(row: Case) -> None:
    model = Recorder(row.subject.module)
    with fusum.config(max_rows=7):
        row.attribute(fusum.attr, model)
    assert_rows_within(model.rows, 7)


# How much is evaluated.


def rows_of(explain: Callable[[Any], Any]) -> int:
    """How many rows a new model is asked for."""
    model = Recorder(Mlp(8).eval())
    explain(model)
    return sum(model.rows)


def test_one_row_a_feature_and_example() -> None:
    """Each feature once and the inputs themselves, and what the probe takes."""
    assert rows_of(lambda f: FeatureAblation(f).attribute(X, target=1)) == 5 * (8 + 1) + sum(PROBE)
    assert rows_of(lambda f: FeaturePermutation(f).attribute(X, target=1)) == 5 * (8 + 1) + sum(PROBE)
    mask = torch.tensor([[0, 0, 2, 2, 2, 7, 7, 7]])
    assert rows_of(lambda f: FeatureAblation(f).attribute(X, target=1, feature_mask=mask)) == 5 * (3 + 1) + sum(PROBE)
    assert rows_of(lambda f: Occlusion(f).attribute(X, (3,), 2, target=1)) == 5 * (4 + 1) + sum(PROBE)


def test_a_model_is_probed_once() -> None:
    model = Recorder(Mlp(8).eval())
    for probe in (sum(PROBE), 0, 0):
        model.rows.clear()
        FeatureAblation(model).attribute(X, target=1)
        assert sum(model.rows) == 5 * 9 + probe
    ShapleyValues(model).attribute(X, target=1)
    assert sum(model.rows) == 5 * 9 + 5 * 2**8


def test_batches_are_as_large_as_memory_allows() -> None:
    """Whatever perturbations_per_eval says: it is for models that mix rows."""
    seed()  # of an output that happens to be near zero, the probe takes rounding for mixing
    model = Recorder(Mlp(8).eval())
    FeatureAblation(model).attribute(X, target=1)
    assert model.rows == [5, *PROBE, 5 * 8]


@pytest.mark.parametrize("features", [1, 3, 8])
def test_exact_values_evaluate_each_coalition_once(features: int) -> None:
    mask = torch.arange(8)[None] % features
    for baseline in (0, 0.5, noise(5, 8, seed=1)):
        rows = rows_of(lambda f, b=baseline: ShapleyValues(f).attribute(X, b, target=1, feature_mask=mask))
        assert rows == 5 * 2**features + sum(PROBE)


@pytest.mark.parametrize(("features", "n"), [(2, 25), (4, 10), (8, 6)])
def test_coalitions_that_come_again_are_evaluated_once(features: int, n: int) -> None:
    mask = torch.arange(8)[None] % features
    seed()
    orders = [torch.randperm(features).tolist() for _ in range(n)]
    coalitions = {frozenset(order[:size]) for order in orders for size in range(features + 1)}
    row = case("ShapleyValueSampling", "mlp", feature_mask=mask, n_samples=n)
    rows = rows_of(lambda f: row.attribute(fusum.attr, f))
    assert rows == 5 * len(coalitions) + sum(PROBE)
    assert len(coalitions) < n * (features - 1) + 2


def test_features_as_in_the_baseline_are_not_evaluated() -> None:
    same = X.clone()
    same[:, [2, 5]] = 0.5
    assert rows_of(lambda f: FeatureAblation(f).attribute(same, 0.5, target=1)) == 5 * (6 + 1) + sum(PROBE)
    assert rows_of(lambda f: ShapleyValues(f).attribute(same, 0.5, target=1)) == 5 * 2**6 + sum(PROBE)
    same[3, :4] = 0.5  # of one example only
    assert rows_of(lambda f: FeatureAblation(f).attribute(same, 0.5, target=1)) == 5 * (6 + 1) - 3 + sum(PROBE)
    assert rows_of(lambda f: ShapleyValues(f).attribute(same, 0.5, target=1)) == 4 * 2**6 + 2**3 + sum(PROBE)
    assert rows_of(lambda f: Occlusion(f).attribute(same, (2,), 2, 0.5, target=1)) == 5 * (4 + 1) - 2 + sum(PROBE)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "FeaturePermutation"])
def test_inputs_that_are_their_baselines(name: str) -> None:
    row = case(name, "mlp", baselines=X)
    model = Recorder(Mlp(8).eval())
    assert_same(row.attribute(fusum.attr, model), torch.zeros(5, 8), rtol=0, atol=1e-12)
    assert sum(model.rows) == 5 + sum(PROBE)


# Batches of models that mix rows.


class Seen(nn.Module):
    """Keeps all rows that a model sees."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.batches: list[Tensor] = []
        self.train(body.training)

    def forward(self, x: Tensor) -> Any:
        self.batches.append(x.clone())
        return self.body(x)


def without_probe(batches: list[Tensor], rows: int) -> list[Tensor]:
    return [batch for batch in batches if len(batch) % rows == 0]


@pytest.mark.parametrize("model", [*MIXING, *AGGREGATES])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "ShapleyValues"])
def test_models_that_mix_rows_see_captums_batches(name: str, model: str) -> None:
    for evals in (1,) if model in AGGREGATES else (1, 2, 4, 7):
        row = case(name, model, perturbations_per_eval=evals)
        ours, theirs = Seen(row.subject.module), Seen(row.subject.module)
        assert_same(row.attribute(fusum.attr, ours), row.attribute(captum_attr, theirs))
        found = without_probe(ours.batches, row.subject.examples)
        if name in SAMPLING:  # captum does not ask for the inputs by themselves, which come last of each order
            found = found[1:]
        for batch, expected in zip(found, theirs.batches, strict=True):
            assert_same(batch, expected)


def normalised(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), kind(6), nn.Tanh(), nn.Linear(6, 3)).train()


@pytest.mark.parametrize("evals", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_batch_norm_in_training_mode(name: str, evals: int) -> None:
    if name == "ShapleyValues" and evals > 1:
        return  # takes each coalition once, so others share its batch
    row = case(name, "mlp", perturbations_per_eval=evals)
    ours, theirs = normalised(nn.BatchNorm1d), normalised(nn.BatchNorm1d)
    assert_same(row.attribute(fusum.attr, ours), row.attribute(captum_attr, theirs))
    still = normalised(nn.BatchNorm1d).eval()
    assert not torch.allclose(row.attribute(fusum.attr, still), row.attribute(fusum.attr, ours), atol=1e-3)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", METHODS)
def test_one_example_leads_all_others(name: str, place: int) -> None:
    """A model that divides by the largest of a batch, whichever example has it."""
    x = noise(4, 6).abs()
    x[place] += 5
    row = case(name, "centred", inputs=x, target=None)
    largest = lambda x: x.sum(1) / (1 + x.sum(1).max())  # noqa: E731
    assert_same(row.attribute(fusum.attr, largest), row.attribute(captum_attr, largest))


# Formats.


def _rows() -> Iterator[Case]:
    for name in METHODS:
        yield case(name, "mlp")
        yield case(name, "two_inputs")
        yield replace(case(name, "mlp", perturbations_per_eval=3, target=[0, 1, 2, 1, 0]), name=f"{name}-targets")


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "eager"])
@pytest.mark.parametrize("row", on(list(_rows())))
def test_the_eager_numbers(row: Case, form: str) -> None:
    assert_same(row.attribute(fusum.attr, converted(row.model, form)), row.attribute(fusum.attr))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("name", METHODS)
def test_other_numbers_of_examples(name: str, rows: int, form: str) -> None:
    row = case(name, "mlp", inputs=noise(rows, 8, seed=rows))
    assert_same(row.attribute(fusum.attr, converted("mlp", form)), row.attribute(fusum.attr))


@pytest.mark.parametrize(("form", "most"), [("exported_static", STATIC_BATCH), ("exported_bounded", MOST_ROWS)])
@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
def test_an_exported_program_sees_rows_that_it_takes(row: Case, form: str, most: int) -> None:
    program, seen = converted("mlp", form), []
    handle = program.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        row.attribute(fusum.attr, program, inputs=noise(10, 8))
    finally:
        handle.remove()
    assert_rows_within(seen, most)


# Nothing is left behind.


@pytest.mark.parametrize("row", on([row for row in PERTURBED if row.name.endswith(("-1", "-1-at-once"))]))
def test_nothing_is_left_behind(row: Case) -> None:
    extra = tuple(a for a in row.subject.extra if isinstance(a, Tensor))
    with untouched(row.subject.module, *row.subject.tensors, *extra):
        result = row.attribute(fusum.attr)
    assert_no_graph(result)


@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
def test_inputs_that_require_gradients(row: Case) -> None:
    leaf = X.clone().requires_grad_()
    with untouched(row.subject.module, leaf):
        for inputs in (leaf, leaf * 1.0):
            found = row.attribute(fusum.attr, inputs=inputs)
            assert_no_graph(found)
            assert_identical(found, row.attribute(fusum.attr))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
def test_modes(row: Case, mode: Any) -> None:
    with mode():
        found = row.attribute(fusum.attr, inputs=X * 1.0)
    assert_no_graph(found)
    assert_same(found, row.attribute(fusum.attr))


class Overwrites(nn.Module):
    """Writes to the rows that it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return subject("mlp").module(x)


@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
def test_a_model_that_writes_to_its_rows(row: Case) -> None:
    x = X.clone()
    assert_same(
        row.attribute(fusum.attr, Overwrites(), inputs=x),
        row.attribute(fusum.attr, lambda x: subject("mlp").module(2 * x)),
    )
    assert_identical(x, X)


class Broken(nn.Module):
    """Raises at its n-th call."""

    def __init__(self, at_call: int) -> None:
        super().__init__()
        self.body, self.left = subject("mlp").module, [at_call]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        if self.left[0] == 0:
            raise ValueError("mine")
        return self.body(x)


@pytest.mark.parametrize("at_call", [1, 4])
@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
def test_the_models_own_errors_pass_through(row: Case, at_call: int) -> None:
    model = Broken(at_call)
    with untouched(model, X), pytest.raises(ValueError, match=r"^mine$"):
        row.attribute(fusum.attr, model)
    assert_same(row.attribute(fusum.attr, model), row.attribute(fusum.attr))


@pytest.mark.parametrize("row", on(PERTURBED_SHORT))
def test_a_model_that_refuses_the_probe_sees_whole_batches(row: Case) -> None:
    model = Recorder(Broken(2))
    assert_same(row.attribute(fusum.attr, model), row.attribute(fusum.attr))
    assert set(model.rows) == {2, 5}


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("FeaturePermutation", "ShapleyValueSampling")]
)
def test_other_threads(name: str) -> None:
    """Threads that share a model, each with inputs of its own; settings are the caller's."""
    shared, rows = deepcopy(subject("mlp").module), [case(name, "mlp", inputs=noise(5, 8, seed=i)) for i in range(4)]
    expected = [row.attribute(fusum.attr) for row in rows]

    def work(i: int) -> list[Any]:
        with fusum.config(max_rows=(None, 6, 11, 40)[i]):
            return [rows[i].attribute(fusum.attr, shared) for _ in range(20)]

    with untouched(shared), ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(work, range(4))):
            for each in found:
                assert_same(each, expected[i])
    assert fusum.settings.current().max_rows is None


def test_results_have_their_own_memory() -> None:
    for row in PERTURBED_SHORT:
        x = X.clone()
        for scores in flat(row.attribute(fusum.attr, inputs=x)):
            assert scores is not None
            scores.add_(1)
        assert_identical(x, X)
