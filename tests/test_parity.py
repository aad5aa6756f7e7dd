"""The numbers and signatures of captum 0.9.0, for the same seeds of torch and NumPy."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

import pytest
import torch

import fusum.attr
from cases import CASES, SHORT, Case, having, on, seed
from checkers import assert_same
from fusum import ArgumentError
from layer_cases import BASELINED, HIDDEN, LAYERED
from models import noise, subject

# captum warns whenever it sets requires_grad on an input, and more.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
captum_gradient = pytest.importorskip("captum._utils.gradient", reason="captum is not installed")


PRECISE = ("DeepLift", "DeepLiftShap", "LRP")


def peer_result(case: Case, **changes: Any) -> Any:
    return case.attribute(captum_attr, case.subject.peer, **changes)


@pytest.mark.parametrize("case", on([case for case in [*CASES, *LAYERED] if not case.no_peer]))
def test_same_numbers(case: Case) -> None:
    assert_same(case.attribute(fusum.attr), peer_result(case))


@pytest.mark.parametrize("case", on([case for case in having("IntegratedGradients") if "target" in case.name]))
def test_same_numbers_in_float64(case: Case) -> None:
    double = case.subject.module.double()
    try:
        inputs = case.subject.inputs.double()
        found = case.attribute(fusum.attr, inputs=inputs)
        assert_same(found, peer_result(case, inputs=inputs), rtol=1e-6, atol=1e-7)
    finally:
        double.float()


# captum takes differences of bfloat16 values, and LRP's quotients in it.
@pytest.mark.parametrize("case", on([case for case in SHORT if not case.no_peer and case.chain[0] not in PRECISE]))
def test_same_numbers_under_autocast(case: Case) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(case.attribute(fusum.attr), peer_result(case))


def test_same_numbers_for_one_number_a_batch() -> None:
    """One evaluation of the batch as it stands may return one number for it, or more rows than examples."""
    for forward in (lambda x: x.pow(2).sum().reshape(1), lambda x: x.pow(2).flatten()):
        for name in ("Saliency", "InputXGradient"):
            ours, theirs = getattr(fusum.attr, name)(forward), getattr(captum_attr, name)(forward)
            assert_same(ours.attribute(noise(5, 8)), theirs.attribute(noise(5, 8)))


@pytest.mark.parametrize("steps", [2, 3, 10])
@pytest.mark.parametrize("multiply", [True, False])
def test_trapezoid_is_captums_with_weights_that_sum_to_one(steps: int, multiply: bool) -> None:
    case = Case("", ("IntegratedGradients",), "smooth", options={"multiply_by_inputs": multiply})
    assert_scaled_trapezoid(case, steps)


NO_DELTA = {"LayerIntegratedGradients": {"return_convergence_delta": False}}


# LayerConductance has no weights but the changes themselves.
@pytest.mark.parametrize("name", [name for name in BASELINED if name != "LayerConductance"])
def test_trapezoid_of_layers_and_neurons(name: str) -> None:
    assert_scaled_trapezoid(HIDDEN.case(name, **NO_DELTA.get(name, {})), 5)


def assert_scaled_trapezoid(case: Case, steps: int) -> None:
    arguments = {"method": "riemann_trapezoid", "n_steps": steps}
    theirs = case.attribute(captum_attr, **arguments)
    assert_same(case.attribute(fusum.attr, **arguments), theirs * steps / (steps - 1))


@pytest.mark.parametrize("inner", ["DeepLift", "FeatureAblation", "Occlusion", "FeaturePermutation"])
@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("kind", ["smoothgrad", "vargrad"])
def test_tunnel_over_captums_own_methods(inner: str, size: int | None, kind: str) -> None:
    model, x = subject("mlp").module, subject("mlp").inputs
    own: dict[str, Any] = {"Occlusion": {"sliding_window_shapes": (2,)}}.get(inner, {})
    if inner == "DeepLift":
        own = {"baselines": noise(5, 8, seed=6), "return_convergence_delta": True}
    results = []
    for tunnel in (fusum.attr.NoiseTunnel, captum_attr.NoiseTunnel):
        seed()
        explainer = tunnel(getattr(captum_attr, inner)(model))
        keywords = {"nt_samples": 3, "nt_samples_batch_size": size, "nt_type": kind, "stdevs": 0.3}
        results.append(explainer.attribute(x, target=[0, 1, 2, 0, 1], **keywords, **own))
    assert_same(*results)


def test_tunnel_over_a_feature_mask() -> None:
    model, x = subject("mlp").module, subject("mlp").inputs
    mask = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 3]])
    results = []
    for attr in (fusum.attr, captum_attr):
        seed()
        explainer = attr.NoiseTunnel(captum_attr.FeatureAblation(model))
        results.append(explainer.attribute(x, target=0, feature_mask=mask, nt_samples=2))
    assert_same(*results)


def neuron_gradient(calls: list[int]) -> Any:
    """A gradient_func as captum's neuron classes set it: the gradient of something else than the target."""

    def gradient(forward_fn: Any, inputs: Any, target_ind: Any = None, additional_forward_args: Any = None) -> Any:
        calls.append(1)
        doubled = captum_gradient.compute_gradients(
            lambda *args: forward_fn(*args) ** 2, inputs, target_ind, additional_forward_args
        )
        return tuple(2 * g for g in doubled)

    return gradient


def _replaceable(case: Case) -> bool:
    lifts = case.chain[0].startswith("DeepLift")  # captum calls the function in another way
    return not (case.no_peer or lifts) and case.subject.peer is None and case.chain[0] != "NoiseTunnel"


@pytest.mark.parametrize("case", on([case for case in CASES if _replaceable(case)]))
def test_replaced_gradient_func(case: Case) -> None:
    calls: list[int] = []
    results = []
    for attr in (captum_attr, fusum.attr):
        explainer = case.explainer(attr)
        explainer.gradient_func = neuron_gradient(calls)
        seed()
        results.append(explainer.attribute(**case.keywords()))
        assert calls, "gradient_func was not called"
        calls.clear()
    assert_same(*reversed(results))


def test_replaced_gradient_func_inside_a_tunnel() -> None:
    results = []
    for attr in (fusum.attr, captum_attr):
        explainer = attr.IntegratedGradients(subject("mlp").module)
        explainer.gradient_func = neuron_gradient([])
        seed()
        tunnel = attr.NoiseTunnel(explainer)
        results.append(tunnel.attribute(subject("mlp").inputs, target=[0, 1, 2, 0, 1], nt_samples=3, n_steps=3))
    assert_same(*results)


@pytest.mark.parametrize("case", on(having("IntegratedGradients")[:10] + having("GradientShap")[:2]))
def test_compute_convergence_delta(case: Case) -> None:
    inputs, target, extra = case.subject.inputs, case.subject.target, case.subject.extra or None
    scores = inputs
    deltas = []
    for attr in (fusum.attr, captum_attr):
        explainer = case.explainer(attr)
        zeros = tuple(0 * x for x in inputs) if isinstance(inputs, tuple) else 0 * inputs
        deltas.append(
            explainer.compute_convergence_delta(scores, zeros, inputs, target=target, additional_forward_args=extra)
        )
    assert_same(*deltas)


CLASSES = sorted(name for name in fusum.attr.__all__ if hasattr(getattr(fusum.attr, name), "get_name"))
# What captum's objects hold while they run, or call themselves.
WITHIN = {
    *("backward_handles", "forward_handles", "layers", "verbose", "attribute_to_layer_input"),
    *("satisfies_attribute_criteria", "multiply_gradient_acts", "attributor"),
    *("kernel_shap_perturb_generator", "kernel_shap_similarity_kernel"),
}
FUTURES = ("FeatureAblation", "FeaturePermutation", "ShapleyValueSampling", "ShapleyValues")


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, callable if isinstance(p.default, FunctionType) else p.default) for p in found]


def assert_same_parameters(ours: Any, theirs: Any) -> None:
    """But for options of ours, which only stand by keyword and may be left out."""
    named = inspect.signature(theirs).parameters
    more = [(n, k, d) for n, k, d in parameters(ours) if k is inspect.Parameter.KEYWORD_ONLY and n not in named]
    assert all(default is not inspect.Parameter.empty for *_, default in more)
    assert [p for p in parameters(ours) if p not in more] == parameters(theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_same_constructor(name: str) -> None:
    assert parameters(getattr(fusum.attr, name).__init__) == parameters(getattr(captum_attr, name).__init__)


@pytest.mark.parametrize("name", [name for name in CLASSES if not name.endswith("Attribution")])
def test_same_attribute_signature(name: str) -> None:
    ours, theirs = getattr(fusum.attr, name).attribute, getattr(captum_attr, name).attribute
    assert_same_parameters(ours, theirs)
    assert_same_parameters(ours.__wrapped__, getattr(theirs, "__wrapped__", theirs))  # LayerLRP has none


@pytest.mark.parametrize("name", CLASSES)
def test_same_public_members(name: str) -> None:
    ours, theirs = getattr(fusum.attr, name), getattr(captum_attr, name)
    missing = {member for member in dir(theirs) if not member.startswith("_")} - set(dir(ours)) - {"__annotations__"}
    assert not missing - WITHIN
    assert ours.get_name() == theirs.get_name()
    assert parameters(ours.has_convergence_delta) == parameters(theirs.has_convergence_delta)


@pytest.mark.parametrize("name", [n for n in fusum.attr.__all__ if n.startswith(("configure", "remove"))])
def test_same_functions(name: str) -> None:
    assert parameters(getattr(fusum.attr, name)) == parameters(getattr(captum_attr, name))


@pytest.mark.parametrize("name", ["InterpretableEmbeddingBase", "TokenReferenceBase"])
def test_same_classes_of_embeddings(name: str) -> None:
    ours, theirs = getattr(fusum.attr, name), getattr(captum_attr, name)
    own = [member for member, value in vars(theirs).items() if inspect.isfunction(value)]
    assert own
    for member in own:
        assert parameters(getattr(ours, member)) == parameters(getattr(theirs, member))


def test_same_delta_signature() -> None:
    ours, theirs = fusum.attr.GradientAttribution, captum_attr.GradientAttribution
    assert parameters(ours.compute_convergence_delta) == parameters(theirs.compute_convergence_delta)
    assert parameters(fusum.attr.LayerAttribution.interpolate) == parameters(captum_attr.LayerAttribution.interpolate)


BASES = [name for name in CLASSES if name.endswith("Attribution")]
PROPERTIES = [name for name in CLASSES if name not in (*BASES, "NoiseTunnel")]


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("tunnel", [False, True])
@pytest.mark.parametrize("multiply", [None, True, False])
def test_same_properties(name: str, tunnel: bool, multiply: bool | None) -> None:
    model = subject("mlp").module
    takes = inspect.signature(getattr(captum_attr, name).__init__).parameters
    options: dict[str, Any] = {"layer": model[2]} if "layer" in takes else {}
    if name == "LimeBase":
        options = dict.fromkeys(list(takes)[2:], len)
    if "multiply_by_inputs" in takes and multiply is not None:
        options["multiply_by_inputs"] = multiply
    seen = []
    for attr in (fusum.attr, captum_attr):
        explainer = getattr(attr, name)(model, **options)
        explainer = attr.NoiseTunnel(explainer) if tunnel else explainer
        kinds = [isinstance(explainer, getattr(attr, kind)) for kind in BASES]
        seen.append((explainer.has_convergence_delta(), explainer.multiplies_by_inputs, kinds))
        assert explainer.forward_func is model
        if isinstance(explainer, (attr.LayerAttribution, attr.NeuronAttribution)):
            assert explainer.layer is model[2]
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "name", [n for n in CLASSES if hasattr(getattr(captum_attr, n), "attribute_future") and n not in FUTURES]
)
def test_no_futures(name: str) -> None:
    with pytest.raises(NotImplementedError, match="attribute_future"):
        getattr(fusum.attr, name).attribute_future(SHORT[0].explainer(fusum.attr))


@pytest.mark.parametrize("name", FUTURES)
def test_futures(name: str) -> None:
    """Every forward is started before the first is waited for; the scores are those of attribute, and captum's."""
    model, x = subject("mlp").module, subject("mlp").inputs[:3]
    pairs = {"target": 1, "feature_mask": torch.arange(8)[None] // 2}
    waiting: list[tuple[torch.futures.Future[Any], Any]] = []

    def later(*args: Any) -> torch.futures.Future[Any]:
        waiting.append((torch.futures.Future(), model(*args)))
        return waiting[-1][0]

    found = []
    for attr in (fusum.attr, captum_attr):
        seed()
        answer = getattr(attr, name)(later).attribute_future(x, perturbations_per_eval=2, **pairs)
        assert attr is captum_attr or not answer.done()
        for future, out in waiting:
            future.set_result(out)
        waiting.clear()
        found.append(answer.wait())
    seed()
    assert_same(found[0], getattr(fusum.attr, name)(model).attribute(x, **pairs))
    assert_same(*found)
    with pytest.raises(ArgumentError, match="forward_func: returned Tensor"):
        getattr(fusum.attr, name)(model).attribute_future(x, **pairs)


@pytest.mark.parametrize("name", FUTURES)
def test_futures_of_futures(name: str) -> None:
    """What `then` returns is not of the class torch.futures.Future, but a future."""
    model, x = subject("mlp").module, subject("mlp").inputs[:3]
    pairs = {"target": 1, "feature_mask": torch.arange(8)[None] // 2}

    def later(x: torch.Tensor) -> Any:
        return torch.futures.collect_all([]).then(lambda _: model(x))

    seed()
    found = getattr(fusum.attr, name)(later).attribute_future(x, **pairs).wait()
    seed()
    assert_same(found, getattr(fusum.attr, name)(model).attribute(x, **pairs))


def test_wrapped_attribute_runs_the_same() -> None:
    explainer, x = fusum.attr.IntegratedGradients(subject("mlp").module), subject("mlp").inputs
    wrapped = type(explainer).attribute.__wrapped__
    assert_same(wrapped(explainer, x, target=1), explainer.attribute(x, target=1))


def test_interpolate() -> None:
    scores = noise(2, 3, 4, 4)
    for mode, size in (("nearest", 8), ("bilinear", (6, 10))):
        ours = fusum.attr.LayerAttribution.interpolate(scores, size, mode)
        assert_same(ours, captum_attr.LayerAttribution.interpolate(scores, size, mode))
