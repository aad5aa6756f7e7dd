"""LRP: captum's numbers, twins, conservation, rules set on modules, and errors that name what cannot be served."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fusum
import fusum.attr
import twins
from cases import seed
from checkers import assert_complete, assert_identical, assert_no_graph, assert_same, untouched
from fusum.attr import LRP, Alpha1_Beta0_Rule, EpsilonRule, GammaRule, IdentityRule, InputXGradient
from lrp_nets import FREE, NETS, Shift, built, layers_of
from models import Mlp, Recorder, noise
from twins import Relevance

RULES: dict[str, tuple[str, dict[str, Any], Relevance]] = {
    "epsilon": ("EpsilonRule", {}, Relevance()),
    "large epsilon": ("EpsilonRule", {"epsilon": 0.2}, Relevance(0.2)),
    "gamma": ("GammaRule", {}, Relevance(gamma=0.25)),
    "gamma without bias": ("GammaRule", {"gamma": 0.7, "set_bias_to_zero": True}, Relevance(1e-9, 0.7, False, True)),
    "positive": ("Alpha1_Beta0_Rule", {}, Relevance(positive=True)),
    "positive without bias": (
        "Alpha1_Beta0_Rule",
        {"set_bias_to_zero": True},
        Relevance(positive=True, without_bias=True),
    ),
}


# Numbers.


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("rule", [None, *RULES, "mixed"])
def test_captums_numbers(net: str, rule: str | None) -> None:
    captum = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    theirs = pytest.importorskip("captum.attr._utils.lrp_rules", reason="captum is not installed")
    model, x = built(net)
    results = []
    for attr, rules in ((captum, theirs), (fusum.attr, fusum.attr)):
        for place, layer in enumerate(layers_of(model) if rule else []):
            kind, options, _ = RULES[rule] if rule in RULES else list(RULES.values())[place % len(RULES)]
            layer.rule = getattr(rules, kind)(**options)
        results.append(attr.LRP(model).attribute(x, target=[0, 1, 2, 1], return_convergence_delta=True))
    assert_same(*results[::-1], rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captums_identity_rule() -> None:
    captum = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    theirs = pytest.importorskip("captum.attr._utils.lrp_rules", reason="captum is not installed")
    model, x = built("norm")
    results = []
    for attr, rules in ((captum, theirs), (fusum.attr, fusum.attr)):
        model.features[1].rule = rules.IdentityRule()
        results.append(attr.LRP(model).attribute(x, target=1, return_convergence_delta=True))
    assert_same(*results[::-1], rtol=1e-6, atol=1e-6)
    del model.features[1].rule
    assert (LRP(model).attribute(x, target=1) - results[0][0]).abs().max() > 1e-3


def test_the_identity_rule_of_a_sum_conserves_relevance() -> None:
    """Its terms share it; of a constant and a tensor all goes to the tensor, whichever comes first."""
    model, x = built("residual of modules", bias=False)
    expected = LRP(model).attribute(x, target=1)
    model.add.rule = IdentityRule()
    assert_same(LRP(model).attribute(x, target=1), expected, rtol=1e-9, atol=1e-9)
    model, x = built("mlp", bias=False)
    plain, shifted = nn.Sequential(model, Shift(0.0)), nn.Sequential(model, Shift(2.0))
    shifted[1].rule = IdentityRule()
    expected = LRP(plain).attribute(x, target=1)
    found = LRP(shifted).attribute(x, target=1)
    assert_same(found.sum(1), expected.sum(1) + 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.ELU, nn.GELU])
@pytest.mark.parametrize("rule", [*RULES, "mixed"])
def test_the_twin_of_an_mlp(rule: str, activation: type[nn.Module]) -> None:
    seed()
    model, x = Mlp(activation=activation).double(), noise(5, 8).double()
    layers = layers_of(model)
    rows = list(RULES.values())[:: 2 if rule == "mixed" else 1]
    chosen = rows if rule == "mixed" else [RULES[rule]] * len(layers)
    for layer, (kind, options, _) in zip(layers, chosen, strict=True):
        layer.rule = getattr(fusum.attr, kind)(**options)
    scores = LRP(model).attribute(x, target=2)
    for row, one in enumerate(x):
        relevance = twins.lrp(layers, [twin for _, _, twin in chosen], activation(), twins.array(one), 2)
        assert_same(scores[row], torch.from_numpy(relevance), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("net", [net for net in NETS if net != "tanh"])
def test_default_rules_of_a_relu_net_are_input_times_gradient(net: str) -> None:
    model, x = built(net)
    assert_same(LRP(model).attribute(x, target=1), InputXGradient(model).attribute(x, target=1), rtol=1e-5, atol=1e-8)


def test_delta_is_the_output_minus_the_sum() -> None:
    model, x = built("mlp")
    scores, delta = LRP(model).attribute(x, target=1, return_convergence_delta=True)
    with torch.no_grad():
        assert_same(delta, model(x)[:, 1] - scores.sum(1), rtol=1e-9, atol=1e-9)
    assert delta.abs().max() > 1e-3, "a net with biases keeps part of the relevance"


# Conservation.


@pytest.mark.parametrize("net", FREE)
def test_scores_of_a_net_without_biases_sum_to_its_output(net: str) -> None:
    model, x = built(net, bias=False)
    scores, delta = LRP(model).attribute(x, target=1, return_convergence_delta=True)
    with torch.no_grad():
        out = model(x)[:, 1]
    assert_complete(scores.flatten(1) / out[:, None], torch.ones_like(out), 1e-6)
    assert delta.abs().max() <= 1e-6 * out.abs().max()


@pytest.mark.parametrize("rule", ["gamma", "gamma without bias", "positive without bias"])
@pytest.mark.parametrize("net", ["mlp", "max", "residual"])
def test_changed_weights_conserve_as_well(net: str, rule: str) -> None:
    """Where every unit has positive weights, so that none is left without inputs to give its relevance to."""
    model, x = built(net, bias=False)
    kind, options, _ = RULES[rule]
    for layer in layers_of(model)[1:]:
        layer.weight.data.abs_()
        layer.rule = getattr(fusum.attr, kind)(**options)
    scores = LRP(model).attribute(x.abs(), target=1)
    with torch.no_grad():
        out = model(x.abs())[:, 1]
    assert_complete(scores.flatten(1) / out[:, None], torch.ones_like(out), 1e-6)


def test_captums_addition_module_and_a_plain_addition() -> None:
    """captum conserves only where the addition is its own module and both its inputs come from other layers."""
    x, (model, _) = noise(4, 8).double(), built("residual", bias=False)
    named, _ = built("residual of modules", bias=False)
    assert_same(LRP(model).attribute(x, target=0), LRP(named).attribute(x, target=0), rtol=1e-9, atol=1e-12)


# Forms of the model.


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(48, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.first(x)), 2).flatten(1)
        hidden = self.second(hidden)
        hidden += hidden.flip(1)
        return self.last(torch.relu(hidden))


FORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "scripted": lambda model, x: torch.jit.script(model),
    "traced": torch.jit.trace,
    "frozen": lambda model, x: torch.jit.freeze(torch.jit.script(model)),
    "exported": lambda model, x: torch.export.export(
        model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).module(),
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form: str) -> None:
    seed()
    model, x = Functional().eval(), noise(4, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = FORMS[form](model, x)
    expected = LRP(model).attribute(x, target=1, return_convergence_delta=True)
    for _ in range(2):
        assert_same(LRP(other).attribute(x, target=1, return_convergence_delta=True), expected, rtol=1e-5, atol=1e-6)


def test_two_inputs_with_arguments() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)
            self.last = nn.Linear(4, 3, bias=False)

        def forward(self, a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(a) + self.second(b.flatten(1)))) * factor

    seed()
    model, inputs = Sum().double(), (noise(4, 6).double(), noise(4, 2, 3, seed=1).double())
    factor = noise(4, 1, seed=2).double()
    scores = LRP(model).attribute(inputs, target=[0, 2, 1, 1], additional_forward_args=(factor,))
    assert isinstance(scores, tuple)
    with torch.no_grad():
        out = model(*inputs, factor)[torch.arange(4), [0, 2, 1, 1]]
    assert_complete(scores, out, 1e-6)


def test_the_model_sees_each_example_once() -> None:
    model, x = built("max")
    recorder = Recorder(model)
    LRP(recorder).attribute(x, target=1, return_convergence_delta=True)
    assert sum(recorder.rows) == len(x)


# What is left behind, what is printed.


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", ["mlp", "norm"])
def test_nothing_is_left_behind_and_rules_stay(net: str, rule: str) -> None:
    model, x = built(net)
    kind, options, _ = RULES[rule]
    rules = [getattr(fusum.attr, kind)(**options) for _ in layers_of(model)]
    for layer, own in zip(layers_of(model), rules, strict=True):
        layer.rule = own
    state = [dict(vars(own)) for own in rules]
    with untouched(model, x):
        first = LRP(model).attribute(x, target=1)
    assert_no_graph(first)
    assert all(layer.rule is own for layer, own in zip(layers_of(model), rules, strict=True))
    assert [vars(own) for own in rules] == state
    assert_identical(LRP(model).attribute(x, target=1), first)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("pool", ["max", "average"])
def test_captums_epsilon_of_a_pool(pool: str) -> None:
    captum = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    theirs = pytest.importorskip("captum.attr._utils.lrp_rules", reason="captum is not installed")
    model, x = built(pool)
    results = []
    for attr, rules in ((captum, theirs), (fusum.attr, fusum.attr)):
        model.features[2].rule = rules.EpsilonRule(0.2)
        results.append(attr.LRP(model).attribute(x, target=1, return_convergence_delta=True))
    assert_same(*results[::-1], rtol=1e-6, atol=1e-6)


def test_a_rule_holds_for_weights_that_are_computed() -> None:
    """Of a parametrised layer the weight is a new tensor at each use."""
    model, x = built("mlp")
    model[2].rule = GammaRule(0.8)
    expected = LRP(model).attribute(x, target=1)
    nn.utils.parametrizations.weight_norm(model[2])
    assert_same(LRP(model).attribute(x, target=1), expected, rtol=1e-6, atol=1e-6)


def test_a_rule_holds_under_autocast() -> None:
    model, x = built("mlp")
    model, x = model.float(), x.float()
    without = LRP(model).attribute(x, target=1)
    model[2].rule = GammaRule(2.0)
    expected = LRP(model).attribute(x, target=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LRP(model).attribute(x, target=1)
    error = (found - expected).abs().max()
    assert error <= 0.1 * expected.abs().max()
    assert error < 0.5 * (without - expected).abs().max()


def test_layers_that_share_a_weight_have_rules_of_their_own() -> None:
    seed()
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), noise(4, 8)
    model[2].weight = model[0].weight
    model[2].rule = GammaRule(0.8)
    expected = LRP(model).attribute(x, target=1)
    model[2].weight = nn.Parameter(model[0].weight.detach().clone())
    assert_same(LRP(model).attribute(x, target=1), expected)


def test_one_rule_for_many_modules() -> None:
    model, x = built("max")
    shared = GammaRule()
    for layer in layers_of(model):
        layer.rule = shared
    together = LRP(model).attribute(x, target=1)
    for layer in layers_of(model):
        layer.rule = GammaRule()
    assert_identical(LRP(model).attribute(x, target=1), together)


def test_verbose_names_layers_and_rules(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = built("max")
    model.head[0].rule = GammaRule()
    LRP(model).attribute(x, target=1)
    assert capsys.readouterr().out == ""
    LRP(model).attribute(x, target=1, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    for name, rule in {"features.0": "EpsilonRule", "features.2": "EpsilonRule", "head.0": "GammaRule"}.items():
        layer = model.get_submodule(name)
        (line,) = [line for line in lines if line.endswith(f" on layer {layer} ({name})")]  # as captum prints
        assert line.startswith(f"Applied {rule}(")


def test_rules_are_where_captum_has_them() -> None:
    import fusum.attr._utils.lrp_rules as module

    for rule in (EpsilonRule, GammaRule, Alpha1_Beta0_Rule, IdentityRule):
        assert getattr(module, rule.__name__) is rule
        assert issubclass(rule, module.PropagationRule)


# Errors.


@pytest.mark.parametrize("rule", ["epsilon", 0.25, GammaRule])
def test_a_rule_of_unknown_type(rule: Any) -> None:
    model, x = built("mlp")
    model[2].rule = rule
    recorder = Recorder(model)
    with pytest.raises(TypeError, match=r"^rule: got .*body\.2.*expected"):
        LRP(recorder).attribute(x, target=1)
    assert not recorder.rows


UNSERVED: dict[str, tuple[nn.Module, Any, str]] = {
    "identity of other sizes": (nn.Linear(8, 5), IdentityRule(), "IdentityRule.*linear"),
    "gamma of a norm": (nn.LayerNorm(8), GammaRule(), "layer_norm"),
    "positive of softmax": (nn.Softmax(1), Alpha1_Beta0_Rule(), "Alpha1_Beta0_Rule.*special"),
    "epsilon of a product": (nn.Bilinear(8, 8, 4), EpsilonRule(), "trilinear"),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_a_rule_for_an_operator_that_it_cannot_serve(name: str) -> None:
    module, rule, names = UNSERVED[name]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.special = module

        def forward(self, x: Tensor) -> Tensor:
            return self.special(x, x) if isinstance(module, nn.Bilinear) else self.special(x)

    module.rule = rule
    with pytest.raises(fusum.ArgumentError, match=names):
        LRP(Net()).attribute(noise(4, 8), target=1)


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(8, 8), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("softmax", lambda x: x.softmax(1)),
        ("layer_norm", lambda x: F.layer_norm(x, (8,))),
        ("mul", lambda x: x * x.sigmoid()),
        ("div", lambda x: x / (3 + x.tanh())),
        ("matmul", lambda x: (x[:, None] @ x[:, :, None]).flatten(1)),
        ("prod", lambda x: x.prod(1, keepdim=True)),
        ("cumprod", lambda x: x.cumprod(1)),
    ],
)
def test_an_operator_without_a_rule_is_named(name: str, function: Callable[[Tensor], Tensor]) -> None:
    model = Calls(function)
    with untouched(model), pytest.raises(TypeError, match=name):
        LRP(model).attribute(noise(4, 8), target=0)
    assert LRP(Calls(torch.relu)).attribute(noise(4, 8), target=0).shape == (4, 8)
