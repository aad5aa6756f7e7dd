"""Layers of ScriptModules: the same values, gradients and replaced outputs as hooks on the eager module."""

from __future__ import annotations

import copy
import gc
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import script_nets as nets
from checkers import assert_identical, assert_same
from fusum.engine.probe import Mode, Probe, probing
from fusum.engine.script import ScriptSites
from fusum.errors import ArgumentError, ArgumentTypeError
from fusum.plan.spec import Guided
from fusum.rules.turn import ruled
from models import noise

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
Visit = tuple[int, list[Tensor]]


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    layers: tuple[tuple[str, ...], ...]
    forms: tuple[str, ...] = ("scripted", "traced")


X = noise(5, 4)
NESTED = (("stem",), ("sequence",), ("sequence.1.fc", "sequence.1", "listed.0.act", "stem"), ("head", "head"), ("",))
CASES = {
    "nested": Case(nets.Nested, (X,), NESTED, ("scripted", "loaded", "traced", "traced_loaded")),
    "looped": Case(nets.Looped, (X, 3), (("layer",), ("stem", "layer", "head")), ("scripted",)),
    "recurrent": Case(nets.Recurrent, (noise(5, 2, 4),), (("lstm",), ("lstm", "head"))),
    "several": Case(nets.Caller, (X,), (("layer",), ("layer.fc", "stem", "layer")), ("scripted", "loaded")),
    "convolutions": Case(nets.Convolutions, (noise(3, 1, 6, 6),), (("bn",), ("relu",), ("b",), ("a", "b", "head"))),
    "forked": Case(nets.Forked, (X,), (("layer",), ("stem", "layer")), ("scripted",)),
    "tied": Case(nets.Tied, (X,), (("first",), ("last", "first"))),
}
EVERY = [
    pytest.param(name, form, layers, id=f"{name}-{form}-{'+'.join(layers) or 'model'}")
    for name, case in CASES.items()
    for form in case.forms
    for layers in case.layers
]


@cache
def eager(case: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CASES[case].make().eval()


def load(module: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.pt")
        module.save(path)
        return torch.jit.load(path)


@cache
def converted(case: str, form: str) -> Any:
    if form.endswith("loaded"):
        return load(converted(case, "traced" if form.startswith("traced") else "scripted"))
    return traced(eager(case), CASES[case].args) if form == "traced" else scripted(eager(case))


def scripted(module: nn.Module) -> Any:
    return torch.jit.script(module.eval())


def frozen(module: nn.Module) -> Any:
    return torch.jit.freeze(scripted(module))


def traced(module: nn.Module, args: Any = X) -> Any:
    return torch.jit.trace(module, args)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, (tuple, list)) else []


def swapped(value: Any, values: Any) -> Any:
    """value with the next of values in place of each tensor."""
    if isinstance(value, Tensor):
        return next(values)
    if not isinstance(value, (tuple, list)):
        return value
    parts = [swapped(item, values) for item in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


@contextmanager
def hooked(module: nn.Module, names: Sequence[str], of_input: bool, change: Callable[[int, list[Tensor]], Any]) -> Any:
    """Hooks that put in what change makes of the tensors of each call."""
    handles = []
    for i, name in enumerate(names):

        def after(_: Any, args: Any, value: Any, i: int = i) -> Any:
            return swapped(value, iter(change(i, tensors(value))))

        def before(_: Any, args: Any, kwargs: Any, i: int = i) -> Any:
            return swapped((args, tuple(kwargs.values())), iter(change(i, tensors((args, tuple(kwargs.values()))))))

        def by_name(m: Any, args: Any, kwargs: Any, before: Any = before) -> Any:
            changed, values = before(m, args, kwargs)
            return changed, dict(zip(kwargs, values, strict=True))

        layer = module.get_submodule(name)
        if of_input:
            handles.append(layer.register_forward_pre_hook(by_name, with_kwargs=True))
        else:
            handles.append(layer.register_forward_hook(after))
    yield
    for handle in handles:
        handle.remove()


def by_hooks(
    module: nn.Module, names: Sequence[str], of_input: bool, args: Any, change: Callable[[int, Tensor], Tensor]
) -> tuple[Any, list[Visit]]:
    """The eager module's output, and what its layers went on with."""
    visits: list[Visit] = []

    def note(layer: int, found: list[Tensor]) -> list[Tensor]:
        visits.append((layer, [change(len(visits), t) for t in found]))
        return [t.clone() for t in visits[-1][1]]

    with hooked(module, names, of_input, note):
        return module(*args), visits


@contextmanager
def forward_of(probe: Probe) -> Iterator[None]:
    """As the engine runs a forward."""
    with torch.jit.optimized_execution(False), torch.enable_grad(), probing(probe):
        yield


def run(sites: ScriptSites, args: Any, mode: Mode, stop: bool = False, values: Any = ()) -> tuple[Any, list[Visit]]:
    probe = Probe(mode, values)
    with forward_of(probe):
        return sites.run(args, mode, stop), probe.visits


def given(visits: list[Visit], layers: int) -> list[list[list[Tensor]]]:
    """Values for GIVE: what was visited, call by call."""
    return [[found for layer, found in visits if layer == i] for i in range(layers)]


def gradients(out: Tensor, visits: list[Visit]) -> tuple[Tensor, ...]:
    leaves = [t for _, found in visits for t in found]
    return torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)


def graphs(module: Any) -> list[str]:
    return [str(m._c._get_method(name).graph) for m in module.modules() for name in m._c._method_names()]


def assert_same_visits(found: list[Visit], expected: list[Visit]) -> None:
    assert [layer for layer, _ in found] == [layer for layer, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert_same(tuple(ours), tuple(theirs))


@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize(("case", "form", "layers"), EVERY)
def test_as_hooks_on_the_eager_module(case: str, form: str, layers: tuple[str, ...], of_input: bool) -> None:
    module, args = converted(case, form), CASES[case].args
    before = graphs(module)
    sites = ScriptSites(module, layers, of_input)

    expected, seen = by_hooks(eager(case), layers, of_input, args, lambda _, t: t)
    out, visits = run(sites, args, Mode.WATCH)
    assert_same(out, expected)
    assert_same_visits(visits, seen)

    def leaf(visit: int, t: Tensor) -> Tensor:
        return t if visit and t.requires_grad else t.detach().clone().requires_grad_()

    expected, seen = by_hooks(eager(case), layers, of_input, args, leaf)
    out, visits = run(sites, args, Mode.LEAVES)
    assert_same_visits(visits, seen)
    ours, theirs = gradients(out, visits), gradients(expected, seen)
    assert any(g.abs().max() > 1e-3 for g in ours)
    assert_same(ours, theirs)

    expected, seen = by_hooks(eager(case), layers, of_input, args, lambda i, t: noise(*t.shape, seed=i))
    out, _ = run(sites, args, Mode.GIVE, values=given(seen, len(layers)))
    assert_same(out, expected)

    out, visits = run(sites, args, Mode.WATCH, stop=True)
    assert out is None
    assert len(visits) == len(seen)
    assert graphs(module) == before


@pytest.mark.parametrize("layers", [("first",), ("inner",), ("inner", "first")])
def test_what_follows_the_last_layer_does_not_run(layers: tuple[str, ...]) -> None:
    sites = ScriptSites(scripted(nets.Guarded()), layers, False)
    out, visits = run(sites, (X,), Mode.WATCH, stop=True)
    assert out is None
    assert len(visits) == sum(2 if name == "inner" else 1 for name in layers)
    with pytest.raises(torch.jit.Error, match="came by"):
        run(sites, (X,), Mode.WATCH)


@pytest.mark.parametrize("form", CASES["convolutions"].forms)
@pytest.mark.parametrize(("layer", "of_input"), [("bn", False), ("b", False), ("b", True), ("head", True)])
def test_what_only_feeds_the_layers_does_not_run(form: str, layer: str, of_input: bool) -> None:
    """The model's first convolution would not take these inputs; the skip connection needs it."""
    sites = ScriptSites(converted("convolutions", form), (layer,), of_input)
    args = CASES["convolutions"].args
    out, visits = run(sites, args, Mode.WATCH)
    values = given(visits, 1)
    wrong = (noise(3, 5, 6, 6),)
    if layer == "b":
        with pytest.raises(RuntimeError, match="channels"):
            run(sites, wrong, Mode.GIVE, values=values)
    else:
        assert_same(run(sites, wrong, Mode.GIVE, values=values)[0], out)


@pytest.mark.parametrize("kind", ["needed", "returned", "behind", "not needed"])
def test_what_is_needed_is_checked(kind: str) -> None:
    sites = ScriptSites(scripted(nets.Checked(kind)), ("layer",), False)
    with nullcontext() if kind == "not needed" else pytest.raises(torch.jit.Error, match="expected five rows"):
        run(sites, (X[:3],), Mode.GIVE, values=[[[noise(3, 4)]]])


def after_giving(module: Any, forward: Callable[[], Any]) -> tuple[Tensor, ...]:
    """What forward returns, and the buffers and random numbers that it leaves."""
    torch.manual_seed(5)
    out = forward()
    return (out.detach(), torch.rand(3), *(b.double() for b in module.buffers()))


@cache
def effects(kind: str) -> tuple[nn.Module, Any]:
    module = nets.Effects(kind).eval()
    return module, scripted(copy.deepcopy(module))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["none", "count", "dropout", "batch norm", "lstm", "random", "always"])
def test_random_numbers_and_buffers_are_as_in_the_plain_model(kind: str, training: bool) -> None:
    module, converted = effects(kind)
    sites = ScriptSites(converted, ("layer",), False)
    values = noise(5, 4, seed=1)
    for mode in (not training, training):  # the same sites serve both
        converted.train(mode)
        run(sites, (X,), Mode.GIVE, values=[[[values]]])
    converted.load_state_dict(module.state_dict())
    module = copy.deepcopy(module).train(training)

    with torch.random.fork_rng():
        found = after_giving(converted, lambda: run(sites, (X,), Mode.GIVE, values=[[[values]]])[0])
        with hooked(module, ("layer",), False, lambda *_: [values]):
            expected = after_giving(module, lambda: module(X))
    assert_identical(found, expected)

    kept = training or kind in ("random", "always")
    if not kept:
        out = run(sites, (noise(5, 9),), Mode.GIVE, values=[[[values]]])[0]
        assert_identical(out, values + converted.count)
    else:
        with pytest.raises(RuntimeError, match="shapes"):
            run(sites, (noise(5, 9),), Mode.GIVE, values=[[[values]]])


def test_threads_visit_their_own_probes() -> None:
    sites = ScriptSites(converted("nested", "scripted"), ("sequence.0", "head"), False)
    inputs = [noise(3 + i, 4, seed=i) for i in range(4)]
    expected = [by_hooks(eager("nested"), ("sequence.0", "head"), False, (x,), lambda _, t: t)[1] for x in inputs]

    def work(thread: int) -> None:
        for _ in range(25):
            assert_same_visits(run(sites, (inputs[thread],), Mode.WATCH)[1], expected[thread])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_defaults_of_the_forward_and_arguments_for_them() -> None:
    sites = ScriptSites(converted("nested", "scripted"), ("stem",), False)
    for args in ((X,), (X, 0.25)):
        assert_identical(run(sites, args, Mode.WATCH)[0], converted("nested", "scripted")(*args))


def optimised(module: nn.Module) -> Any:
    """Its functions are first called while the optimiser is off, and then keep plans that know nothing of a rule."""
    module = scripted(module)
    with torch.jit.optimized_execution(False):
        module(X)
    for _ in range(3):
        module(X.clone().requires_grad_()).sum().backward()
    return module


@pytest.mark.parametrize("form", [scripted, traced, optimised])
def test_under_a_rule(form: Callable[[nn.Module], Any]) -> None:
    """Guided backpropagation down to a layer: by hand, ReLU passes back what is positive."""
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    sites = ScriptSites(form(module), ("1",), False)
    probe = Probe(Mode.LEAVES)
    with forward_of(probe):
        x = X.clone().requires_grad_()
        with ruled(Guided(deconvolution=False), len(X)):
            out = sites.run((x,), Mode.LEAVES, False)
    ((_, (leaf,)),) = probe.visits
    (found,) = torch.autograd.grad(out[:, 1].sum(), leaf)
    active = module[2](module[1](module[0](X))) > 0
    expected = (module[4].weight[1].clamp(min=0) * active) @ module[2].weight
    assert_same(found, expected)
    with forward_of(Probe(Mode.GIVE, [[[leaf.detach()]]])), ruled(Guided(deconvolution=False), len(X)):
        assert_same(sites.run((x,), Mode.GIVE, False), out)


def test_an_error_of_the_probe_comes_as_it_is() -> None:
    sites = ScriptSites(converted("nested", "scripted"), ("head",), False)
    _, visits = run(sites, (X,), Mode.WATCH)
    values = given(visits, 1)
    with pytest.raises(IndexError):
        run(sites, (X,), Mode.GIVE, values=[values[0][:1]])
    run(sites, (X,), Mode.GIVE, values=values)


def row() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Identity(), *(nn.ReLU() for _ in range(23)))


CHOSEN = "layer: the model chooses as it runs which .*{} it calls"
ERRORS: dict[str, tuple[Callable[[Any], Any], Callable[[], nn.Module], str, str]] = {
    "not there": (
        scripted,
        nets.Nested,
        "steam",
        r"^layer: 'steam' is not in the model; expected one of stem, .*0\.fc",
    ),
    "never called": (
        scripted,
        nets.Nested,
        "unused",
        r"^layer: 'unused' is never called; expected one of (?!.*unused)",
    ),
    "a container": (scripted, nets.Nested, "listed", "'listed' is never called"),
    "many names": (scripted, row, "x", "'x' is not in the model; expected one of 0, 1, 2, .*, 19 and 5 more$"),
    "no names": (frozen, nets.Nested, "stem", "'stem' is not in the model; expected one of no layer at all"),
    "a mapping": (scripted, nets.Odd, "mapping", r"'mapping' has a Dict\[str, Tensor\] there; expected tensors"),
    "a number": (scripted, nets.Odd, "number", "'number' has int there; expected tensors"),
    "left out of the trace": (traced, row, "1", "'1' has NoneType there; expected tensors"),
    "chosen": (scripted, nets.Odd, "a", CHOSEN.format("Block")),
    "inside one that is chosen": (scripted, nets.Odd, "b.fc", CHOSEN.format("Block")),
    "chosen by a number": (scripted, nets.Indexed, "listed.0", CHOSEN.format("Callee")),
    "with hooks": (scripted, lambda: nets.with_a_hook("1"), "1", "'1' has hooks that were scripted with it"),
    "model with hooks": (scripted, lambda: nets.with_a_hook(""), "1", "the model has hooks that were scripted with it"),
}
OF_TYPE = {"a mapping", "a number", "left out of the trace"}


@pytest.mark.parametrize("error", ERRORS)
def test_layers_that_cannot_be_served(error: str) -> None:
    convert, make, layer, message = ERRORS[error]
    module = convert(make())
    with pytest.raises(ArgumentError, match=message) as raised:
        ScriptSites(module, (layer,), False)
    assert isinstance(raised.value, ArgumentTypeError) == (error in OF_TYPE)


def test_a_model_does_not_live_on_in_its_sites() -> None:
    module = scripted(nets.Tied())
    sites, alive = ScriptSites(module, ("first",), False), weakref.ref(module)
    _, visits = run(sites, (X,), Mode.WATCH)
    run(sites, (X,), Mode.GIVE, values=given(visits, 1))
    del module
    gc.collect()
    assert alive() is None
