"""Bars: what they say of every method, with tqdm and without; none where none is asked for; one a thread."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import fusum.attr
from cases import SHORT, Case, on
from checkers import assert_identical, assert_refused
from fusum import ArgumentTypeError, progress
from layer_cases import GUIDED_CAM, LAYERED_SHORT
from models import Recorder, noise, subject
from perturbation_cases import PERTURBED_SHORT

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

X = noise(5, 8)
MASK = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]])
CASES = [*SHORT, *LAYERED_SHORT, GUIDED_CAM, *PERTURBED_SHORT]
# Rows for each example, where they are not one.
POINTS = {
    "IG": 12,
    "GradientShap": 5,
    "NoiseTunnel-IG": 3 * 6,
    "NoiseTunnel-Saliency": 4,
    "DeepLiftShap": 7,
}


class Bar:
    """Stands in for tqdm: notes what became of each bar."""

    made: list[Bar]

    def __init__(self, desc: str, total: int | None, unit: str) -> None:
        self.desc, self.total, self.unit, self.n, self.closed = desc, total, unit, 0, False
        self.seen: list[int] = []
        self.thread = threading.get_ident()
        self.made.append(self)

    def update(self, n: int) -> None:
        assert not self.closed
        assert n >= 0
        self.n += n
        self.seen.append(self.n)

    def refresh(self) -> None:
        assert not self.closed

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    @property
    def before_closing(self) -> int:
        """Where it was when the last rows had been evaluated."""
        return self.seen[-2]


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    tqdm = pytest.importorskip("tqdm.auto", reason="tqdm, whose bar is shown, is not installed")
    Bar.made = []
    monkeypatch.setattr(tqdm, "tqdm", Bar)
    return Bar.made


@pytest.fixture
def without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)


def mlp() -> torch.nn.Module:
    return subject("mlp").module


def words(name: str) -> str:
    return f"{getattr(fusum.attr, name).get_name()} attribution"


# Every method.


@pytest.mark.parametrize("case", on(CASES))
def test_every_method_of_the_case_table(case: Case, bars: list[Bar]) -> None:
    expected = case.attribute(fusum.attr)
    assert not bars
    assert_identical(case.attribute(fusum.attr, show_progress=True), expected)
    (bar,) = bars
    assert bar.desc == words(case.chain[0])
    assert bar.n == bar.total == bar.before_closing, "rows were missing, and were made up for when it was closed"
    assert bar.closed
    assert bar.total % case.subject.examples == 0
    if case.name in POINTS:
        assert bar.total == POINTS[case.name] * case.subject.examples


def labelled() -> Any:
    scores = fusum.attr.DataLoaderAttribution(fusum.attr.FeatureAblation(mlp()))
    return lambda **kwargs: scores.attribute([X[:3], X[3:]], feature_mask=MASK, perturbations_per_pass=2, **kwargs)


def direct(name: str, *options: Any, model: Callable[..., Any] | None = None, **keywords: Any) -> Any:
    explainer = getattr(fusum.attr, name)(mlp() if model is None else model, *options)
    return lambda **kwargs: explainer.attribute(X, **keywords, **kwargs)


def based() -> Any:
    class Mean:
        def fit(self, data: Any) -> None:
            self.mean = torch.cat([y for _, y, _ in data]).mean()

        def representation(self) -> torch.Tensor:
            return self.mean

    def similarity(*_: Any, **__: Any) -> float:
        return 1.0

    def perturb(x: torch.Tensor, **_: Any) -> torch.Tensor:
        return x * torch.rand_like(x)

    base = fusum.attr.LimeBase(
        mlp(), Mean(), similarity, perturb, False, None, lambda p, x, **_: (p / x).flatten()[None]
    )
    return lambda **kwargs: base.attribute(X[:1], target=0, n_samples=9, **kwargs)


OTHERS: dict[str, tuple[Callable[[], Any], int]] = {
    "DataLoaderAttribution": (labelled, (1 + 3) * 5),
    "Lime": (lambda: direct("Lime", target=0, n_samples=20), 20 * 5),
    "LimeBase": (based, 9),
    "KernelShap": (lambda: direct("KernelShap", target=0, n_samples=20), 20 * 5),
    "LayerFeatureAblation": (lambda: direct("LayerFeatureAblation", mlp()[0], target=0), 16 * 5),
    "LayerFeaturePermutation": (lambda: direct("LayerFeaturePermutation", mlp()[0], target=0), 16 * 5),
    "NeuronFeatureAblation": (lambda: direct("NeuronFeatureAblation", mlp()[2], neuron_selector=1), 8 * 5),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods(name: str, bars: list[Bar]) -> None:
    make, total = OTHERS[name]
    make()(show_progress=True)
    (bar,) = bars
    assert (bar.desc, bar.n, bar.total, bar.closed) == (words(name), total, total, True)


def test_no_class_is_left_out() -> None:
    tested = {name for case in CASES for name in case.chain} | set(OTHERS)
    have = [name for name in fusum.attr.__all__ if callable(getattr(getattr(fusum.attr, name), "attribute", None))]
    assert len(have) > 30
    assert set(have) == tested


@pytest.mark.parametrize("name", [*sorted({case.chain[0] for case in CASES}), *OTHERS])
def test_all_take_show_progress(name: str) -> None:
    attribute = getattr(fusum.attr, name).attribute
    for function in (attribute, getattr(attribute, "__wrapped__", attribute)):
        parameter = inspect.signature(function).parameters["show_progress"]
        assert parameter.default is False
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


@pytest.mark.parametrize("case", on(CASES))
@pytest.mark.parametrize("value", [1, "yes", None])
def test_what_is_no_bool_is_refused(case: Case, value: Any) -> None:
    recorder = Recorder(case.subject.module)
    attribute = getattr(fusum.attr, case.chain[0]).attribute
    explainer, keywords = case.explainer(fusum.attr), {**case.keywords(), "show_progress": value}
    if case.layer is None:
        explainer.forward_func = recorder
    for function in (attribute, attribute.__wrapped__):
        refused = partial(function, explainer, **keywords)
        assert_refused(refused, "show_progress", recorder.rows, ArgumentTypeError)


# What is evaluated otherwise than row by row.


def many_rows(**keywords: Any) -> Any:
    return direct("IntegratedGradients", target=0, n_steps=50, **keywords)


def later(x: torch.Tensor) -> Any:
    return torch.futures.collect_all([]).then(lambda _: mlp()(x))


TOTALS: dict[str, tuple[Callable[[], Any], int]] = {
    "in-chunks": (lambda: many_rows(internal_batch_size=7), 250),
    "one-row-at-a-time": (lambda: many_rows(internal_batch_size=1), 250),
    "one-number-a-batch": (lambda: direct("FeatureAblation", model=lambda x: mlp()(x).sum()), 40),
    "several-at-once": (
        lambda: direct("FeatureAblation", model=lambda x: mlp()(x).softmax(0)[:, 0], perturbations_per_eval=3),
        40,
    ),
    "shuffled-by-a-function": (
        lambda: direct("FeaturePermutation", lambda x, mask: torch.where(mask, x.flip(0), x), target=0),
        40,
    ),
    "repeats": (lambda: direct("ShapleyValueSampling", target=0, n_samples=40, feature_mask=MASK), (40 * 3 + 1) * 5),
    "nothing-to-do": (lambda: direct("FeatureAblation", target=0, baselines=X), 40),
    "many-baselines": (lambda: direct("DeepLiftShap", baselines=noise(9, 8), target=0), 45),
    "futures": (lambda: partial(fusum.attr.FeatureAblation(later).attribute_future, X, target=0), 40),
    "distinct-baselines": (lambda: direct("DeepLift", baselines=noise(5, 8), target=0), 5),
}


@pytest.mark.parametrize("name", TOTALS)
def test_totals(name: str, bars: list[Bar]) -> None:
    make, total = TOTALS[name]
    make()(show_progress=True)
    (bar,) = bars
    assert bar.n == bar.total == bar.before_closing == total


def test_a_bar_moves_while_the_model_runs(bars: list[Bar]) -> None:
    many_rows(internal_batch_size=10)(show_progress=True)
    assert [*range(10, 251, 10), 250] == bars[0].seen


def test_rows_that_run_out_of_memory_are_not_counted_twice(bars: list[Bar]) -> None:
    model = Recorder(mlp(), capacity=6)
    direct("IntegratedGradients", model=model, target=0, n_steps=8)(show_progress=True)
    assert max(model.rows) > 6
    assert bars[0].n == bars[0].total == 40


@pytest.mark.parametrize("inner", ["Saliency", "IntegratedGradients", "DeepLift", "FeatureAblation"])
def test_a_tunnel_has_one_bar_for_the_whole(inner: str, bars: list[Bar]) -> None:
    method = getattr(fusum.attr, inner)(mlp())
    keywords = {"target": 0, "nt_samples": 6, "nt_samples_batch_size": 4}
    fusum.attr.NoiseTunnel(method).attribute(X, show_progress=True, **keywords)
    (bar,) = bars
    assert bar.desc == "Noise Tunnel attribution"
    assert bar.n == bar.total == bar.before_closing
    assert bar.total % (6 * 5) == 0


def test_a_tunnel_over_a_method_without_a_plan(bars: list[Bar]) -> None:
    """The inner attribute is called for one part of the copies after the other; it has no bar of its own."""

    class Mine(fusum.attr.Attribution):
        def attribute(self, inputs: Any, **kwargs: Any) -> Any:
            assert not kwargs
            return fusum.attr.Saliency(self.forward_func).attribute(inputs, target=0)

    for method in (Mine(mlp()), fusum.attr.NoiseTunnel(Mine(mlp()))):
        tunnel = fusum.attr.NoiseTunnel(method)
        tunnel.attribute(X, nt_samples=6, nt_samples_batch_size=4, show_progress=True)
        bar = bars.pop()
        assert not bars
        assert bar.seen == [20, 30, 30]
        assert bar.total == 30


def test_a_model_that_explains_another_does_not_count_for_the_bar(bars: list[Bar]) -> None:
    inner = fusum.attr.IntegratedGradients(mlp())

    def model(x: torch.Tensor) -> torch.Tensor:
        return x * inner.attribute(x.detach(), target=0, n_steps=10)

    direct("FeatureAblation", model=model, target=0)(show_progress=True)
    (bar,) = bars
    assert bar.n == bar.total == bar.before_closing == 40


def test_a_loader_of_which_nothing_is_known(bars: list[Bar]) -> None:
    labelled()(show_progress=True)
    assert bars[0].seen == [3, 5, 8, 11, 13, 15, 18, 20, 20]


# Exceptions.


@pytest.mark.parametrize("name", ["IntegratedGradients", "DeepLift", "FeatureAblation", "NoiseTunnel"])
def test_an_exception_closes_the_bar_where_it_is(name: str, bars: list[Bar]) -> None:
    calls = []

    class Fails(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            if len(calls) > 2:
                raise KeyError("mine")
            return x.sum(1)

    inner = {"NoiseTunnel": "Saliency"}.get(name, name)
    explainer = getattr(fusum.attr, inner)(Fails())
    explainer = fusum.attr.NoiseTunnel(explainer) if name == "NoiseTunnel" else explainer
    with fusum.config(max_rows=3), pytest.raises(KeyError, match="mine"):
        explainer.attribute(X, show_progress=True)
    (bar,) = bars
    assert bar.closed
    assert bar.n < bar.total
    Fails.forward = lambda self, x: x.sum(1)
    with fusum.config(max_rows=3):
        explainer.attribute(X)
        explainer.attribute(X, show_progress=True)
    assert [b.closed for b in bars] == [True, True]
    assert bars[1].n == bars[1].total


def test_bad_arguments_leave_no_bar(bars: list[Bar], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [
        direct("Saliency", target="cat"),
        direct("FeatureAblation", target=0, baselines="zero"),
        direct("DeepLiftShap", target=0, baselines=X[:1]),
        many_rows(internal_batch_size="all"),
    ]
    for explain in wrong:
        with pytest.raises(fusum.ArgumentError):
            explain(show_progress=True)
    assert not bars
    assert capsys.readouterr() == ("", "")


# What is shown.


@pytest.mark.parametrize("case", on([case for case in CASES if case.model == "mlp"]))
def test_nothing_is_printed_unless_asked_for(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    case.attribute(fusum.attr)
    case.attribute(fusum.attr, show_progress=False)
    assert capfd.readouterr() == ("", "")


def test_the_bar_of_tqdm(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm", reason="tqdm, whose bar is shown, is not installed")
    many_rows(internal_batch_size=50)(show_progress=True)
    out, err = capsys.readouterr()
    assert not out
    assert "\rIntegrated Gradients attribution:   0%|" in err
    assert "250/250" in err.rpartition("\r")[2]
    assert err.endswith("\n")


@pytest.mark.usefixtures("without_tqdm")
def test_the_bar_without_tqdm(capsys: pytest.CaptureFixture[str]) -> None:
    many_rows(internal_batch_size=100)(show_progress=True)
    lines = ["  0% |                    |", " 40% |########            |", " 80% |################    |"]
    lines.append("100% |####################|")
    assert capsys.readouterr() == ("", "".join(f"\rIntegrated Gradients attribution: {at}" for at in lines) + "\n")


@pytest.mark.usefixtures("without_tqdm")
def test_the_line_is_not_written_for_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown("Mine"):
        progress.expect(10**5)
        for _ in range(10**5):
            progress.advance(1)
    written = capsys.readouterr().err
    assert written.count("\r") == 101
    assert written.endswith("100% |####################|\n")


@pytest.mark.usefixtures("without_tqdm")
def test_rows_of_which_nobody_knows_how_many_come(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown("Mine"):
        progress.advance(3)
        progress.advance(4)
    assert capsys.readouterr().err == "\rMine: 0 rows\rMine: 3 rows\rMine: 7 rows\rMine: 100% |####################|\n"


def test_a_bar_ends_at_the_total_whatever_came(bars: list[Bar]) -> None:
    for steps in ([], [3], [10], [8, 8]):
        with progress.shown("Mine"):
            progress.expect(10)
            for rows in steps:
                progress.advance(rows)
    assert [(bar.n, bar.total, bar.closed) for bar in bars] == [(10, 10, True)] * 4


# Threads.


def test_threads_do_not_mix(bars: list[Bar]) -> None:
    """Four threads at once, of which three show bars of different lengths."""
    ready = threading.Barrier(4)

    def work(steps: int) -> None:
        explain = direct("IntegratedGradients", target=0, n_steps=steps, internal_batch_size=5)
        ready.wait()
        explain(show_progress=steps > 4)

    threads = [threading.Thread(target=work, args=(steps,)) for steps in (4, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(bar.total for bar in bars) == [50, 100, 150]
    assert len({bar.thread for bar in bars}) == 3
    for bar in bars:
        assert bar.seen == [*range(5, bar.total + 1, 5), bar.total]
