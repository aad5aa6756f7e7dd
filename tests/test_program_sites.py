"""Layers of exported programs: what their calls hold, as hooks on the module that was exported see it."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from checkers import assert_same
from fusum.engine.probe import Mode, Probe, probing
from fusum.engine.program import ProgramSites, layers_of
from fusum.errors import ArgumentError
from layered import (
    Args,
    Around,
    Best,
    Clears,
    Counts,
    Detached,
    Executed,
    Hooks,
    Makes,
    Picks,
    arguments,
    assert_alike,
    decomposed,
    executed,
    exported,
    loaded,
    net,
    other_values,
    plain,
    run,
    simple,
    tensors,
)
from models import noise


@cache
def dynamic(strict: bool = False) -> Any:
    return exported(net(), arguments(), strict=strict, dynamic_shapes=({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}))


FORMS: dict[str, Callable[[], Any]] = {
    "dynamic": dynamic,
    "static": lambda: exported(net(), arguments()),
    "strict": lambda: dynamic(strict=True),
    "loaded": lambda: loaded(dynamic()),
    "decomposed": lambda: decomposed(dynamic()),
}


@cache
def program(form: str) -> GraphModule:
    return FORMS[form]().module()


LAYERS: dict[str, tuple[str, ...]] = {
    "called-twice": ("stem",),
    "in-place": ("blocks.0.act",),
    "before-in-place": ("blocks.1.a",),
    "in-a-list": ("blocks.1",),
    "one-in-another": ("blocks.0.a", "blocks.0", "blocks.0.act"),
    "two-of-one-output": ("head", "head.1"),
    "dropout": ("drop",),
    "several-outputs": ("halves",),
    "several-inputs": ("merge",),
    "recurrent": ("lstm",),
    "attention": ("mha",),
    "one-of-two-outputs": ("pool",),
    "one-of-four-outputs": ("bag",),
    "far-apart": ("mha", "blocks.1.act", "stem", "head.0"),
}
SITES = {f"{name}-output": (names, False) for name, names in LAYERS.items()}
SITES |= {f"{name}-input": (names, True) for name, names in LAYERS.items() if names != ("bag",)}  # takes integers
every_site = pytest.mark.parametrize(("names", "of_input"), SITES.values(), ids=SITES.keys())


def assert_as_hooks_see_it(
    module: GraphModule, model: nn.Module, names: tuple[str, ...], of_input: bool, args: Args
) -> None:
    """Watched values, gradients of leaves, and the output with other values put in; all of a program left as it was."""
    before = str(module.graph)
    sites, hooks = ProgramSites(module, names, of_input), Hooks(model, names, of_input)

    (out, probe), (expected, seen) = run(sites, Mode.WATCH, args), run(hooks, Mode.WATCH, args)
    assert len(seen.visits) >= len(names)
    assert_alike(probe.visits, seen.visits)
    assert_alike(out, expected)

    values = other_values(seen, len(names))
    given, changed = run(sites, Mode.GIVE, args, values)[0], run(hooks, Mode.GIVE, args, values)[0]
    assert_alike(given, changed)
    assert not torch.allclose(tensors(given)[0], tensors(out)[0])

    found = []
    for side in (sites, hooks):
        out, probe = run(side, Mode.LEAVES, args)
        leaves = [t for t in tensors([kept for _, kept in probe.visits]) if t.requires_grad]
        total = sum(t.sum() for t in tensors(out) if t.requires_grad)
        found.append(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    assert_alike(found[0], found[1])
    assert any(t.abs().sum() > 0 for t in found[0])
    assert str(module.graph) == before


@every_site
def test_as_hooks_see_it(names: tuple[str, ...], of_input: bool) -> None:
    assert_as_hooks_see_it(program("dynamic"), net(), names, of_input, arguments(3, seed=7))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "dynamic"])
@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
def test_all_layers_at_once_in_other_forms(form: str, of_input: bool) -> None:
    names = tuple({name: None for names, of in SITES.values() if of == of_input for name in names})
    assert len(names) >= 12
    args = arguments(5 if form == "static" else 3, seed=7)
    assert_as_hooks_see_it(program(form), net(), names, of_input, args)


class Noting(Probe):
    """Notes how many operators had been executed at its last visit."""

    def __init__(self, ran: Executed) -> None:
        super().__init__(Mode.WATCH)
        self.ran = ran

    def visit(self, layer: int, tensors: list[Tensor]) -> list[Tensor]:
        kept = super().visit(layer, tensors)
        self.noted = len(self.ran.names)
        return kept


@every_site
def test_nothing_is_executed_after_the_last_visit(names: tuple[str, ...], of_input: bool) -> None:
    sites, args = ProgramSites(program("dynamic"), names, of_input), arguments()
    expected = run(sites, Mode.WATCH, args)[1].visits
    for stop in (False, True):
        with Executed() as ran, probing(probe := Noting(ran)):
            out = sites.run(args, Mode.WATCH, stop)
        assert (out is None) == (len(ran.names) == probe.noted) == stop
        assert_alike(probe.visits, expected)


class Chain(nn.Sequential):
    def __init__(self, training: bool = False) -> None:
        parts = [nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5)]
        super().__init__(*parts)
        self.train(training)


def test_what_only_fed_the_layer_is_not_computed() -> None:
    x = noise(6, 4)
    sites = ProgramSites(simple(Chain()), ("3",), False)
    values = other_values(run(sites, Mode.WATCH, (x,))[1], 1)
    stopped, given = executed(sites, Mode.WATCH, (x,), stop=True), executed(sites, Mode.GIVE, (x,), values)
    assert (stopped.count("aten.relu_"), stopped.count("aten.tanh")) == (1, 0)
    assert given.count("aten.tanh") == 1
    assert not {"aten.relu_", "aten.addmm", "aten.t"} & set(given)


def test_numbers_are_drawn_as_ever_where_values_are_given() -> None:
    x, model = noise(6, 4), Chain(training=True)
    sites, hooks = ProgramSites(simple(model), ("3",), False), Hooks(model, ("3",), False)
    values = other_values(run(sites, Mode.WATCH, (x,))[1], 1)
    assert_same(run(sites, Mode.GIVE, (x,), values)[0], run(hooks, Mode.GIVE, (x,), values)[0])


@pytest.mark.parametrize("form", [plain, decomposed])
@pytest.mark.parametrize(("first", "buffer"), [(Counts, "count"), (lambda: nn.BatchNorm1d(4), "running_mean")])
def test_buffers_are_written_to_as_ever(form: Any, first: Callable[[], nn.Module], buffer: str) -> None:
    x, model = noise(6, 4), nn.Sequential(first(), nn.Linear(4, 4), nn.Tanh())
    expected, module = copy.deepcopy(model), simple(model, form)
    expected(x), expected(x)
    sites = ProgramSites(module, ("1",), False)
    values = other_values(run(sites, Mode.WATCH, (x,))[1], 1)
    assert_same(run(sites, Mode.GIVE, (x,), values)[0], values[0][0][0].tanh())
    assert_same(module.get_buffer(f"0.{buffer}"), expected.get_buffer(f"0.{buffer}"))


def test_batch_norm_in_training_returns_one_tensor() -> None:
    x, model = noise(6, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
    sites, hooks = ProgramSites(simple(model, decomposed), ("0",), False), Hooks(model, ("0",), False)
    assert_alike(run(sites, Mode.WATCH, (x,))[1].visits, run(hooks, Mode.WATCH, (x,))[1].visits)


@pytest.mark.parametrize("form", ["dynamic", "strict", "loaded"])
def test_a_layer_whose_output_is_not_read(form: str) -> None:
    sites, hooks = ProgramSites(program(form), ("unused",), False), Hooks(net(), ("unused",), False)
    assert_alike(run(sites, Mode.WATCH, arguments())[1].visits, run(hooks, Mode.WATCH, arguments())[1].visits)


def test_two_outputs_that_are_not_read() -> None:
    x, model = noise(6, 4), Around(Best(), ignored)
    sites, hooks = ProgramSites(simple(model), ("layer",), False), Hooks(model, ("layer",), False)
    assert_alike(run(sites, Mode.WATCH, (x,))[1].visits, run(hooks, Mode.WATCH, (x,))[1].visits)


def test_threads_have_probes_of_their_own() -> None:
    names = ("blocks.0.act", "stem")
    sites, hooks = ProgramSites(program("dynamic"), names, False), Hooks(net(), names, False)
    inputs = [arguments(2 + thread, seed=thread) for thread in range(4)]
    seen = [run(hooks, Mode.WATCH, args)[1] for args in inputs]
    values = [other_values(probe, 2) for probe in seen]
    changed = [run(hooks, Mode.GIVE, *both)[0] for both in zip(inputs, values, strict=True)]

    def work(thread: int) -> list[Any]:
        args = inputs[thread]
        return [
            (run(sites, Mode.WATCH, args, stop=bool(i % 2))[1].visits, run(sites, Mode.GIVE, args, values[thread])[0])
            for i in range(10)
        ]

    with ThreadPoolExecutor(4) as pool:
        for thread, found in enumerate(pool.map(work, range(4))):
            for visits, out in found:
                assert_alike(visits, seen[thread].visits)
                assert_alike(out, changed[thread])


def test_the_layers_that_a_program_records() -> None:
    found = layers_of(program("dynamic"))
    assert found[:5] == ["stem", "blocks.0", "blocks.0.a", "blocks.0.act", "blocks.1"]
    assert {name for names in LAYERS.values() for name in names} < set(found)
    assert not {"", "same", "never", "blocks"} & set(found)
    assert layers_of(program("loaded")) == layers_of(program("strict")) == found


def test_what_is_done_to_the_module_later_is_seen() -> None:
    module, x = simple(Chain()), noise(6, 4)
    sites = ProgramSites(module, ("3",), False)
    before = run(sites, Mode.WATCH, (x,))[0]
    module.get_submodule("0").weight = nn.Parameter(torch.ones(4, 4))
    changed = run(sites, Mode.WATCH, (x,))[0]
    assert_same(changed, module(x))
    assert not torch.allclose(changed, before)
    module.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    assert_same(run(sites, Mode.WATCH, (x / 2,))[0], changed)


@pytest.mark.parametrize("args", [(noise(4, 4),), (noise(6, 4), noise(6, 4)), ([noise(6, 4)],)])
def test_arguments_are_checked_as_ever(args: Any) -> None:
    module = simple(Chain())
    with pytest.raises(Exception, match=r".") as expected:
        module(*args)
    with pytest.raises(expected.type) as found:
        run(ProgramSites(module, ("3",), False), Mode.WATCH, args)
    assert str(found.value) == str(expected.value)


def test_sites_do_not_keep_a_module_alive() -> None:
    module = simple(Chain())
    sites, gone = ProgramSites(module, ("3",), False), weakref.ref(module)
    run(sites, Mode.WATCH, (noise(6, 4),))
    del module
    gc.collect()
    assert gone() is None
    assert len(run(sites, Mode.WATCH, (noise(6, 4),), stop=True)[1].visits) == 1


def plainly(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    return around.later(layer(x))


def ignored(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    layer(x)
    return x * 2


def first_of_all(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    return layer(x)[0] * 2


def beside_a_write(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    other = around.later(x)
    other[:, 0] = 0
    return layer(x) * other


def in_no_grad(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    with torch.no_grad():
        scale = layer(x) * 2
    return around.later(x) * scale


def in_a_branch(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: layer(x), lambda x: x - 1, (layer(x),))


def viewed_before(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    view = x.view(-1)
    return layer(x) + view.view(6, 4)


def written_after(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    y = layer(x)
    x.mul_(2)
    return y * 3


def returned_as_it_was(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    return layer(x).relu_() + x


def alone_in_no_grad(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    with torch.no_grad():
        scale = layer(x)
    return around.later(x) * scale


def made_anew(layer: nn.Module, x: Tensor, around: nn.Module) -> Tensor:
    view = x.view(2, -1)
    x.relu_()
    return layer(view) * view


REFUSED: dict[str, tuple[nn.Module, Callable[..., Tensor], bool, str]] = {
    "nothing": (nn.Identity(), plainly, False, r"'layer' has no operator in this program; expected one of 'later'$"),
    "in-no-grad": (nn.Linear(4, 4), in_no_grad, False, "'layer' is called inside a block"),
    "in-a-branch": (nn.Linear(4, 4), in_a_branch, False, "'layer' is called inside a block"),
    "viewed-before": (nn.ReLU(inplace=True), viewed_before, True, "'layer' shares memory"),
    "input-written-to": (nn.Linear(4, 4), written_after, True, "'layer' shares memory"),
    "view-written-to": (nn.Flatten(0), written_after, False, "'layer' shares memory"),
    "returned-as-it-was": (nn.Dropout(), returned_as_it_was, False, "'layer' shares memory"),
    "writes-to-input": (Clears(), plainly, False, "'layer' computes nothing that this program reads, but writes"),
    "writes-to-buffer": (Counts(), plainly, False, "'layer' computes nothing that this program reads, but writes"),
    "takes-nothing": (Makes(), plainly, True, "'layer' takes no tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_cannot_be_looked_at(case: str) -> None:
    layer, call, of_input, message = REFUSED[case]
    module = simple(Around(layer, call).eval())
    with pytest.raises(ArgumentError, match=rf"^layer: {message}"):
        ProgramSites(module, ("layer",), of_input)


@pytest.mark.parametrize(
    ("layer", "call", "form"),
    [
        (nn.ReLU(inplace=True), viewed_before, plain),
        (nn.ReLU(), returned_as_it_was, plain),
        (nn.Linear(4, 4), written_after, decomposed),
        (nn.Linear(4, 4), alone_in_no_grad, plain),
        (nn.Tanh(), made_anew, decomposed),
        (Detached(), plainly, plain),
        (Clears(), plainly, decomposed),
        (nn.Linear(4, 4), beside_a_write, plain),
        (nn.LSTM(4, 4), first_of_all, plain),
        (Picks(), plainly, plain),
    ],
)
def test_layers_like_those_that_can(layer: nn.Module, call: Callable[..., Tensor], form: Any) -> None:
    model = Around(layer, call).eval()
    assert_as_hooks_see_it(simple(model, form), model, ("layer",), False, (noise(6, 4),))


@pytest.mark.parametrize("name", ["never", "blocks", "same", "nowhere"])
def test_a_layer_that_is_not_called_is_named(name: str) -> None:
    message = rf"^layer: '{name}' has no operator in this program; expected one of 'stem', .*, \.\.\. \(\d+ in all\)$"
    with pytest.raises(ArgumentError, match=message):
        ProgramSites(program("dynamic"), ("stem", name), False)
