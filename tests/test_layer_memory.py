"""Layers whose memory others know: scores are those of the model, or an error says why there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fusum.attr
from cases import DELTA
from checkers import assert_same, untouched
from fusum import ArgumentError
from fusum.attr import LayerActivation, LayerGradientXActivation, LayerIntegratedGradients, NeuronGradient
from models import noise

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

X = noise(5, 8)
LINE = {"n_steps": 5}
# One class for each way in which the rest of a model is made to depend on a layer.
REPLACED: dict[str, dict[str, Any]] = {
    "LayerGradientXActivation": {},
    "LayerIntegratedGradients": LINE,
    "LayerConductance": LINE,
    "LayerDeepLift": {},
    "LayerLRP": {},
    "NeuronConductance": {"neuron_selector": 1, **LINE},
}
FORMS: dict[str, Callable[[nn.Module], Any]] = {"eager": lambda model: model, "scripted": torch.jit.script}


def explain(name: str, model: Any, of_input: bool = False, layer: str = "layer") -> Any:
    asked = {f"attribute_to_{'neuron' if 'Neuron' in name else 'layer'}_input": of_input}
    return getattr(fusum.attr, name)(model, layer).attribute(X, target=1, **asked, **REPLACED[name])


# Others read what is written to in place.


class Aliased(nn.Module):
    """What a layer returns is also read under another name, behind an operator that writes over it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.act, self.head = nn.Linear(8, 6), layer, nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        return self.head(self.act(self.layer(hidden)) + hidden)


class Returned(Aliased):
    """The other reader is the caller."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.stem(x)
        return self.head(self.act(self.layer(hidden))), hidden


class Rewritten(Aliased):
    """The other name is the one that is written to."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        out = self.layer(hidden)
        hidden.mul_(2)
        return self.head(torch.tanh(out))


class Overwritten(nn.Module):
    """A layer that writes over what it takes, which is then read by its old name; functional: by its new one."""

    def __init__(self, functional: bool = False) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(8, 6), nn.ReLU(inplace=not functional), nn.Linear(6, 3)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        out = self.layer(hidden)
        if self.functional:
            hidden = out
        return self.head(torch.tanh(out) + hidden * hidden)


MEMORY: dict[str, Callable[[], nn.Module]] = {
    "identity": lambda: Aliased(nn.Identity()),
    "flatten": lambda: Aliased(nn.Flatten()),
    "view": lambda: Aliased(nn.Unflatten(1, (6,))),
    "dropout": lambda: Aliased(nn.Dropout()),
    "relu": lambda: Aliased(nn.ReLU(inplace=True)),
    "returned": lambda: Returned(nn.Identity()),
    "rewritten": lambda: Rewritten(nn.Identity()),
    "overwritten": Overwritten,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", [name for name in REPLACED if name != "LayerLRP"])  # which knows no products
def test_others_read_what_is_written_to(name: str, memory: str, form: str) -> None:
    """A copy that the layer's own readers write to would leave the others with another value."""
    module = MEMORY[memory]().eval()
    model = FORMS[form](module)
    for _ in range(2):
        with untouched(module, X), pytest.raises(ArgumentError, match=r"^layer: .*layer.* is read by others"):
            explain(name, model)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("memory", ["identity", "relu", "overwritten"])
@pytest.mark.parametrize("name", ["LayerGradientXActivation", "LayerIntegratedGradients", "LayerConductance"])
def test_others_read_what_a_layer_takes_and_is_written_to(name: str, memory: str, form: str) -> None:
    with pytest.raises(ArgumentError, match=r"^layer: .*layer.* is read by others"):
        explain(name, FORMS[form](MEMORY[memory]().eval()), of_input=True)


@pytest.mark.parametrize("form", ["traced", "exported"])
@pytest.mark.parametrize("name", [name for name in REPLACED if name != "LayerLRP"])
def test_a_graph_knows_one_name_for_what_is_overwritten(name: str, form: str) -> None:
    model, functional = Overwritten().eval(), Overwritten(functional=True).eval()
    functional.load_state_dict(model.state_dict())
    graph = torch.jit.trace(model, X) if form == "traced" else torch.export.export(model, (X,))
    assert_same(explain(name, graph), explain(name, functional))


@pytest.mark.parametrize("memory", MEMORY)
def test_what_ends_with_the_layer_has_no_other_readers(memory: str) -> None:
    model = MEMORY[memory]().eval()
    weights = model.stem.weight[1].detach()
    expected = model.layer(model.stem(X)).detach()
    passes = (expected[:, 1:2] > 0) if isinstance(model.layer, nn.ReLU) else torch.ones(5, 1)
    for _ in range(2):
        assert_same(LayerActivation(model, "layer").attribute(X), expected)
        assert_same(NeuronGradient(model, "layer").attribute(X, 1), weights * passes)


# Nobody else reads it.


class Chain(nn.Module):
    """Layers that hand on memory, in a row; half of it is read elsewhere."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stem, self.drop, self.layer = nn.Linear(8, 6), nn.Dropout(inplace=inplace), nn.ReLU(inplace=inplace)
        self.body, self.elu, self.head = nn.Linear(6, 6), nn.ELU(inplace=inplace), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(self.layer(self.drop(self.stem(x))))
        return self.head(torch.cat([self.elu(hidden[:, :3]), hidden[:, 3:]], 1) - 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", ["stem", "drop", "layer", "elu"])
@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("name", REPLACED)
def test_memory_that_nobody_else_reads(name: str, of_input: bool, layer: str, form: str) -> None:
    """The halves of what was split have memory of their own, side by side."""
    model, apart = Chain(inplace=True).eval(), Chain(inplace=False).eval()
    apart.load_state_dict(model.state_dict())
    assert_same(explain(name, FORMS[form](model), of_input, layer), explain(name, apart, of_input, layer))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", [nn.Identity, nn.Flatten, nn.Dropout])
def test_others_may_read_what_is_not_written_to(layer: Callable[[], nn.Module], form: str) -> None:
    model = Aliased(layer()).eval()
    model.act = nn.Tanh()
    hidden = model.stem(X).detach()
    expected = hidden * model.head.weight[1].detach() * (1 - hidden.tanh() ** 2)
    assert_same(explain("LayerGradientXActivation", FORMS[form](model)), expected)


def test_a_forward_more_finds_out_once() -> None:
    """Who reads memory that is written to is asked at the first call; random numbers are drawn as if it were not."""
    model, rows = Chain(inplace=True).eval(), []
    model.stem.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    method = LayerGradientXActivation(model, "layer")
    for expected in ([5, 5], [5], [5]):
        rows.clear()
        method.attribute(X, target=1)
        assert rows == expected
    model.train()
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        scores = LayerGradientXActivation(model, "elu").attribute(X, target=1)
        results.append((scores, torch.rand(3)))
    assert_same(*results)


# Others read what a layer takes, under a rule.


class Residual(nn.Module):
    """What a layer takes is also read by an operator that a rule has its own way back through."""

    def __init__(self, shape: tuple[int, ...] = (-1, 6)) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(8, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.stem(x).tanh() + 0.5)

    def behind(self, hidden: Tensor) -> Tensor:
        """The model from what its layer takes."""
        return self.head(self.layer(hidden) + torch.relu(hidden))


class Viewed(Residual):
    """The same of a view."""

    def behind(self, hidden: Tensor) -> Tensor:
        hidden = hidden.view(-1, 6)
        return self.head(self.layer(hidden) + torch.relu(hidden))


class Direct(Residual):
    """The same of the model's own input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(x[:, :6].contiguous()) if x.shape[1] > 6 else self.behind(x)


@pytest.mark.parametrize("form", [*FORMS, "exported"])
@pytest.mark.parametrize("name", ["DeepLift", "LRP"])
@pytest.mark.parametrize("build", [Residual, Direct])
def test_a_rule_goes_back_through_all_that_reads_what_a_layer_takes(name: str, build: Any, form: str) -> None:
    model, x = build().eval(), noise(5, 6) if build is Direct else X
    held = [x if build is Direct else (model.stem(a).tanh() + 0.5).detach() for a in (x, 0 * x)]
    start = {"baselines": 0 * x if build is Direct else held[1]} if name == "DeepLift" else {}
    expected = getattr(fusum.attr, name)(model.behind).attribute(held[0], target=1, **start, **DELTA)
    converted = torch.export.export(model, (x,)) if form == "exported" else FORMS[form](model)
    method = getattr(fusum.attr, f"Layer{name}")(converted, "layer")
    version = x._version
    found = method.attribute(x, target=1, attribute_to_layer_input=True, **DELTA)
    assert x._version == version
    assert_same(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["LayerDeepLift", "LayerLRP"])
def test_a_rule_cannot_go_back_through_others_that_read_a_view(name: str, form: str) -> None:
    model = FORMS[form](Viewed().eval())
    assert LayerGradientXActivation(model, "layer").attribute(X, target=1, attribute_to_layer_input=True).any()
    with pytest.raises(ArgumentError, match=r"^layer: .*layer.* is read by others"):
        explain(name, model, of_input=True)


def test_a_frozen_parameter_stays_frozen() -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.layer, self.head = nn.Parameter(noise(1, 8)), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.layer(self.queries) + x))

    model = Queries().eval().requires_grad_(False)
    for name in ("LayerGradientXActivation", "LayerDeepLift"):
        with untouched(model):
            getattr(fusum.attr, name)(model, "layer").attribute(X[:1], target=1, attribute_to_layer_input=True)
        assert not model.queries.requires_grad


def test_a_line_between_values_is_for_the_layer_alone() -> None:
    """As documented of what a layer takes: others go on with the model's own value, where nothing writes to it."""
    model = Residual().eval()
    _, delta = LayerIntegratedGradients(model, "layer").attribute(
        X, target=1, attribute_to_layer_input=True, n_steps=50, **DELTA
    )
    assert delta.abs().max() > 1e-3


# What is computed again.


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(lambda h: torch.tanh(self.layer(h)), self.stem(x), use_reentrant=False))


@pytest.mark.parametrize("name", ["LayerGradientXActivation", "LayerIntegratedGradients", "LayerConductance"])
def test_a_checkpoint_runs_a_layer_again(name: str) -> None:
    """On the way back, without the values that were put in: then there are no scores. A layer before it is served."""
    model = Checkpointed().eval()
    plain = nn.Sequential(model.stem, model.layer, nn.Tanh(), model.head).eval()
    for layer in (model.stem, model.layer):
        method = getattr(fusum.attr, name)(model, layer)
        if name == "LayerIntegratedGradients" and layer is model.layer:
            with pytest.raises(ArgumentError, match=r"^layer: runs inside torch\.utils\.checkpoint"):
                method.attribute(X, target=1)
        else:
            expected = getattr(fusum.attr, name)(plain, layer).attribute(X, target=1)
            assert_same(method.attribute(X, target=1), expected)
    with torch.autograd.graph.save_on_cpu():  # which is none of the model's
        assert LayerIntegratedGradients(plain, model.layer).attribute(X, target=1).any()
