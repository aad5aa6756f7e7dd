"""How often the models of layers run: cuts change nothing, nothing runs twice in vain, and threads do not meet."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fusum
import fusum.attr
from cases import DELTA, Case, on, seed
from checkers import assert_rows_within, assert_same, untouched
from formats import converted
from fusum.attr import LayerIntegratedGradients
from layer_cases import BASELINED, EVERYWHERE, GUIDED_CAM, HIDDEN, LAYERED_SHORT, ODD, SOMEWHERE
from models import Recorder, noise, subject

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # NeuronConductance warns of functions


# Cuts.


@pytest.mark.parametrize("case", on([*SOMEWHERE, *ODD]))
def test_small_chunks_give_the_same(case: Case) -> None:
    model = Recorder(case.subject.module)
    with fusum.config(max_rows=3):
        found = case.attribute(fusum.attr, model)
    assert_rows_within(model.rows, 3)
    assert_same(found, case.attribute(fusum.attr))


@pytest.mark.parametrize("case", on([*LAYERED_SHORT, GUIDED_CAM]))
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_any_cap_gives_the_same(case: Case, rows: int) -> None:
    with fusum.config(max_rows=rows):
        found = case.attribute(fusum.attr)
    assert_same(found, case.attribute(fusum.attr))


@pytest.mark.parametrize("name", BASELINED)
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("method", ["riemann_trapezoid", "gausslegendre"])
def test_internal_batch_size_is_a_cap_and_changes_nothing(name: str, size: int, method: str) -> None:
    case = HIDDEN.case(name, method=method)
    model = Recorder(case.subject.module)
    found = case.attribute(fusum.attr, model, internal_batch_size=size)
    assert_rows_within(model.rows, size)
    assert_same(found, case.attribute(fusum.attr))


@pytest.mark.parametrize("case", on([*LAYERED_SHORT, GUIDED_CAM]))
@pytest.mark.parametrize("capacity", [1, 2, 4])
def test_out_of_memory_is_met_with_smaller_chunks(case: Case, capacity: int) -> None:
    x = noise(6, *case.subject.inputs.shape[1:], seed=8)
    model = Recorder(case.subject.module, capacity)
    found = case.attribute(fusum.attr, model, inputs=x)
    assert max(model.rows) > capacity, "the model never ran out of memory"
    assert_same(found, case.attribute(fusum.attr, inputs=x))


@pytest.mark.parametrize("case", on(LAYERED_SHORT))
def test_little_memory_changes_nothing(case: Case) -> None:
    with fusum.config(memory=2000):
        found = case.attribute(fusum.attr)
    assert_same(found, case.attribute(fusum.attr))


# Rows that run.


class Counter(nn.Module):
    """Hands on what it takes, and notes its rows in a list that is no state of the module."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.note = seen.append

    def forward(self, x: Tensor) -> Tensor:
        self.note(len(x))
        return x


class Counted:
    """A model whose layer stands between two counters."""

    def __init__(self, name: str = "mlp", layer: int = 2) -> None:
        self.before: list[int] = []
        self.after: list[int] = []
        body = list(subject(name).module)
        self.layer = body[layer]
        parts = [*body[:layer], Counter(self.before), self.layer, Counter(self.after), *body[layer + 1 :]]
        self.model = nn.Sequential(*parts).eval()

    def attribute(self, name: str, forward: Callable[..., Any] | None = None, **arguments: Any) -> Any:
        """The result of a class, with nothing counted before it."""
        self.before.clear()
        self.after.clear()
        case = HIDDEN.case(name)
        method = getattr(fusum.attr, name)(self.model if forward is None else forward, self.layer)
        seed()
        return method.attribute(**{**case.keywords(), **arguments})


@pytest.mark.parametrize("rows", [None, 1, 4, 13])
def test_what_runs_before_a_layer_runs_once_for_a_path_between_its_values(rows: int | None) -> None:
    counted = Counted()
    found = counted.attribute("LayerIntegratedGradients", n_steps=9, internal_batch_size=rows)
    assert sum(counted.before) == 5 + 1, "five inputs and one baseline"
    assert sum(counted.after) == 5 * 9 + 5 + 1
    assert_same(found, HIDDEN.case("LayerIntegratedGradients").attribute(fusum.attr, n_steps=9))


class Narrow(nn.Module):
    """Takes few rows only."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 6:
            raise ValueError("too many rows")
        return x


class Fails(nn.Module):
    """Must not run."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("has run")
        return x


@pytest.mark.parametrize("convert", [lambda model: model, torch.jit.script], ids=["eager", "scripted"])
@pytest.mark.parametrize("of_input", [False, True])
def test_what_runs_before_a_layer_sees_no_points_of_a_path(convert: Callable[[nn.Module], Any], of_input: bool) -> None:
    body = list(subject("mlp").module)
    model = convert(nn.Sequential(*body[:2], Narrow(), *body[2:]).eval())
    case = HIDDEN.case("LayerIntegratedGradients", of_input)
    found = LayerIntegratedGradients(model, "3").attribute(**case.keywords())
    assert_same(found, case.attribute(fusum.attr))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["LayerActivation", "NeuronGradient", "NeuronIntegratedGradients"])
def test_a_script_ends_with_the_layer_at_its_first_call(name: str) -> None:
    body = list(subject("mlp").module)
    model = torch.jit.script(nn.Sequential(*body[:3], Fails(), *body[3:]).eval())
    case = HIDDEN.case(name)
    found = getattr(fusum.attr, name)(model, "2").attribute(**case.keywords())
    assert_same(found, case.attribute(fusum.attr))


@pytest.mark.parametrize("case", on([*LAYERED_SHORT, GUIDED_CAM]))
def test_frozen_weights_change_nothing(case: Case) -> None:
    model = deepcopy(case.subject.module).requires_grad_(False)
    assert_same(case.attribute(fusum.attr, model), case.attribute(fusum.attr))


def test_own_baselines_run_once_each() -> None:
    counted = Counted()
    counted.attribute("LayerIntegratedGradients", baselines=noise(5, 8, seed=3), n_steps=9)
    assert sum(counted.before) == 5 + 5


def test_the_input_of_a_layer_is_put_in_without_what_came_before() -> None:
    counted = Counted()
    counted.attribute("LayerIntegratedGradients", attribute_to_layer_input=True, n_steps=9)
    assert sum(counted.before) == 5 + 1


# What these do is over when the layer has run.
STOPPING = ("LayerActivation", "NeuronGradient", "NeuronIntegratedGradients", "NeuronGradientShap")


@pytest.mark.parametrize("name", STOPPING)
def test_nothing_runs_after_the_layer_from_the_second_call_on(name: str) -> None:
    counted = Counted()
    counted.attribute(name)
    for rows in (5, 3):
        found = counted.attribute(name, inputs=noise(rows, 8))
        assert counted.before
        assert not counted.after
        assert_same(found, HIDDEN.case(name).attribute(fusum.attr, inputs=noise(rows, 8)))


def test_a_forward_that_ends_early_notices_another_way() -> None:
    """How often a layer runs may depend on the shapes of the inputs."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for t in range(x.shape[1]):
                x = torch.cat([x[:, :t], self.inner(x[:, t])[:, None], x[:, t + 1 :]], 1)
            return x.sum((1, 2))

    model = Loop().eval()
    method = fusum.attr.LayerActivation(model, model.inner)
    for length in (2, 2, 5, 5, 1, 1):
        held = method.attribute(noise(3, length, 4))
        assert (len(held) if isinstance(held, tuple) else 1) == length


@pytest.mark.parametrize("rows", [None, 1, 4, 13])
def test_conductance_takes_one_point_more_than_steps(rows: int | None) -> None:
    model = Recorder(subject("mlp").module)
    HIDDEN.case("LayerConductance", n_steps=9, internal_batch_size=rows, return_convergence_delta=False).attribute(
        fusum.attr, model
    )
    assert sum(model.rows) == 10 * 5


# Five examples, one baseline, five steps.
ROWS = {
    **{"LayerGradientXActivation": 5, "LayerGradCam": 5, "NeuronGradient": 5, "NeuronGuidedBackprop": 5},
    **{"LayerDeepLift": 6, "NeuronDeepLift": 6, "NeuronConductance": 25, "NeuronIntegratedGradients": 25},
}


@pytest.mark.parametrize(("name", "rows"), ROWS.items())
def test_no_row_runs_twice(name: str, rows: int) -> None:
    counted = Counted()
    counted.attribute(name)
    counted.attribute(name)
    assert sum(counted.before) == rows


def test_a_guided_cam_runs_its_model_once() -> None:
    model = Recorder(subject("skip").module)
    for _ in range(2):
        GUIDED_CAM.attribute(fusum.attr, model)
    assert model.rows == [4, 4]


# What runs before a layer runs again where it would not give the same.


class Drawing(nn.Module):
    """Adds random numbers of one generator."""

    def __init__(self, draw: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x + self.draw(x)


def _numbers(x: Tensor) -> Tensor:
    return torch.from_numpy(np.random.rand(*x.shape)).float()


PREFIXES: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.3).train(),
    "dropout-inside": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)).train(),
    "batch-norm": lambda: nn.BatchNorm1d(8, momentum=0.0).train(),
    "torch": lambda: Drawing(torch.rand_like).eval(),
    "numpy": lambda: Drawing(_numbers).eval(),
    "python": lambda: Drawing(lambda x: random.random()).eval(),
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["LayerIntegratedGradients", "LayerConductance", "LayerActivation"])
@pytest.mark.parametrize("of_input", [False, True])
def test_a_prefix_that_draws_or_trains_is_not_cut(prefix: str, name: str, of_input: bool) -> None:
    """Of a function's model nothing is known: it runs whole, at the same points."""
    model = nn.Sequential(PREFIXES[prefix](), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model.training = model[0].training
    case = HIDDEN.case(name, of_input, **({} if name == "LayerActivation" else {"baselines": noise(5, 8, seed=3)}))
    results = []
    for forward in (model, lambda x: model(x)):
        random.seed(0)
        seed()
        method = getattr(fusum.attr, name)(forward, model[1])
        results.append(method.attribute(**case.keywords()))
    assert_same(*results)


def test_a_table_of_as_many_rows_as_examples_is_not_taken_for_theirs() -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places, self.inner, self.head = nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.inner(x) + self.places(torch.arange(x.shape[1])).sum(1)[:, None]).mean(1))

    model, x = Positioned().eval(), noise(3, 3, 4)
    for rows in (3, 2, 1):
        for cap in (None, 1):
            keywords = {"target": 1, "n_steps": 5, "internal_batch_size": cap, **DELTA}
            found = LayerIntegratedGradients(model, model.inner).attribute(x[:rows], **keywords)
            expected = LayerIntegratedGradients(lambda x: model(x), model.inner).attribute(x[:rows], **keywords)
            assert_same(found, expected)


# Threads.


@pytest.mark.parametrize("form", ["eager", "scripted", "exported_dynamic"])
def test_threads_share_a_model(form: str) -> None:
    """Four threads look at different layers of one model by different methods; none draws."""
    forward = converted("mlp", form)
    cases = [case for case in EVERYWHERE if case.model == "mlp" and "Shap" not in case.name]
    expected = [case.attribute(fusum.attr, forward) for case in cases]

    def some(thread: int) -> list[tuple[int, Any]]:
        order = range(thread, 4 * len(cases), 3)
        return [(i % len(cases), _unseeded(cases[i % len(cases)], forward)) for i in order]

    with untouched(subject("mlp").module), ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(some, thread) for thread in range(4)]:
            for which, found in job.result():
                assert_same(found, expected[which])


def _unseeded(case: Case, forward: Any) -> Any:
    return case.explainer(fusum.attr, forward).attribute(**case.keywords())


@pytest.mark.parametrize("of_input", [False, True])
def test_a_thread_that_is_inside_the_layer_while_another_ends_its_call(of_input: bool) -> None:
    """torch hands it the hooks that were there when it came; what it knows of them is gone by then."""
    model, x = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3)).eval(), noise(5, 8)
    started, entered, done = threading.Event(), threading.Event(), threading.Event()
    explaining = threading.get_ident()

    def wait(module: nn.Module, args: Any) -> None:
        (started if threading.get_ident() == explaining else entered).set()
        (entered if threading.get_ident() == explaining else done).wait(10)

    def call() -> Tensor:
        started.wait(10)
        return model(x)

    expected = model(x)
    model[1].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(call)
        fusum.attr.LayerActivation(model, model[1]).attribute(x, attribute_to_layer_input=of_input)
        done.set()
        assert_same(other.result(), expected)


# Token ids.

TEXT = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)).eval()  # linear in what the embedding holds
IDS, BLANKS = torch.arange(15).view(3, 5) % 9, torch.arange(35).view(7, 5) % 8
DRAWING: dict[str, Callable[[Any], Any]] = {
    "LayerGradientShap": lambda own: fusum.attr.LayerGradientShap(TEXT, TEXT[0]).attribute(IDS, n_samples=2000, **own),
    "NoiseTunnel": lambda own: fusum.attr.NoiseTunnel(fusum.attr.LayerIntegratedGradients(TEXT, TEXT[0])).attribute(
        IDS, nt_samples=2000, stdevs=0.0, draw_baseline_from_distrib=True, n_steps=2, **own
    ),
}


@pytest.mark.parametrize("name", DRAWING)
def test_ids_against_ids_that_are_drawn(name: str) -> None:
    """The points lie between embeddings; in the mean an element has its weight times the change from theirs."""
    seed()
    own = {"baselines": BLANKS, "target": 1, "return_convergence_delta": True}
    scores, delta = DRAWING[name](own)
    change = TEXT[0](IDS) - TEXT[0](BLANKS).mean(0)
    assert delta.shape == (3 * 2000,)
    assert delta.abs().max() < 1e-5
    assert torch.allclose(scores, (change * TEXT[2].weight[1].view(5, 4)).detach(), atol=0.03)


def test_ids_that_are_drawn_have_no_arguments_of_examples() -> None:
    method = fusum.attr.LayerGradientShap(lambda ids, scale: TEXT(ids) * scale, TEXT[0])
    with pytest.raises(fusum.ArgumentError, match=r"^baselines: .*expected"):
        method.attribute(IDS, BLANKS, target=1, additional_forward_args=torch.ones(3, 1))
