"""fusum in place of captum: inside a program, and for a script that is not changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

import fusum
import fusum.attr
import fusum.attr._utils.lrp_rules as lrp_rules
from cases import seed
from checkers import assert_same
from models import noise, subject

captum_attr = pytest.importorskip("captum.attr", reason="captum, which is patched here, is not installed")
captum_lrp_rules = pytest.importorskip("captum.attr._utils.lrp_rules", reason="captum is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def patched() -> Iterator[None]:
    fusum.patch()
    yield
    fusum.unpatch()


NAMES = [name for name in fusum.attr.__all__ if hasattr(captum_attr, name)]
INHERITED = {
    ("captum.attr._core.layer.layer_deep_lift", "DeepLift"),
    ("captum.attr._core.layer.layer_deep_lift", "DeepLiftShap"),
    ("captum.attr._core.layer.layer_lrp", "LRP"),
}
RULES = [name for name in vars(captum_lrp_rules) if name.endswith(("Rule", "_Rule"))]  # captum keeps them elsewhere
PLACES = {
    "IntegratedGradients": "captum.attr._core.integrated_gradients",
    "Saliency": "captum.attr._core.saliency",
    "GradientShap": "captum.attr._core.gradient_shap",
    "InputXGradient": "captum.attr._core.input_x_gradient",
    "NoiseTunnel": "captum.attr._core.noise_tunnel",
    "LayerConductance": "captum.attr._core.layer.layer_conductance",
    "NeuronGradient": "captum.attr._core.neuron.neuron_gradient",
    "GuidedGradCam": "captum.attr._core.guided_grad_cam",
    "configure_interpretable_embedding_layer": "captum.attr._models.base",
    "LayerAttribution": "captum.attr._utils.attribution",
    "GradientAttribution": "captum.attr._utils.attribution",
}


def held() -> dict[tuple[str, str], Any]:
    """Every class and function that any module of captum holds, by module and name."""
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "captum"}
    held = {(m, n): v for m, module in modules.items() for n, v in vars(module).items()}
    return {place: v for place, v in held.items() if isinstance(v, (type, FunctionType))}


def test_every_class_is_there() -> None:
    assert {*NAMES, *RULES} == {*fusum.attr.__all__}
    assert all(getattr(lrp_rules, name) is getattr(fusum.attr, name) for name in RULES)


def test_names_are_replaced_everywhere_and_given_back() -> None:
    before = held()
    fusum.patch()
    try:
        for name in NAMES:
            assert getattr(captum_attr, name) is getattr(fusum.attr, name)
        for name, place in PLACES.items():
            assert getattr(sys.modules[place], name) is getattr(fusum.attr, name)
        theirs = {before["captum.attr", name] for name in NAMES}
        kept = {key for key, value in held().items() if value in theirs}
        assert kept <= INHERITED, "captum's classes are left where no class of captum is built on them"
        during = held()
        fusum.patch()
        assert held() == during, "a second patch changes something"
    finally:
        fusum.unpatch()
    assert held() == before
    fusum.unpatch()
    assert held() == before


def test_patch_works_again_after_unpatch() -> None:
    for _ in range(2):
        fusum.patch()
        assert captum_attr.Saliency is fusum.attr.Saliency
        fusum.unpatch()
        assert captum_attr.Saliency is not fusum.attr.Saliency


@pytest.mark.usefixtures("patched")
def test_captums_other_classes_still_belong() -> None:
    model = subject("mlp").module
    lift, ablation = captum_attr.DeepLift(model), captum_attr.FeatureAblation(model)
    layer = captum_attr.LayerFeatureAblation(model, model[0])
    assert isinstance(lift, captum_attr.GradientAttribution)
    assert isinstance(lift, captum_attr.Attribution)
    assert isinstance(ablation, captum_attr.PerturbationAttribution)
    assert not isinstance(ablation, captum_attr.GradientAttribution)
    assert isinstance(layer, captum_attr.LayerAttribution)
    assert isinstance(captum_attr.IntegratedGradients(model), captum_attr.GradientAttribution)
    assert not isinstance(captum_attr.Saliency(model), captum_attr.LayerAttribution)


def layered(name: str, **own: Any) -> Callable[[], Any]:
    def call() -> Any:
        model = subject("mlp").module
        return getattr(captum_attr, name)(model, model[0]).attribute(noise(5, 8), **own)

    return call


def direct(name: str, **own: Any) -> Callable[[], Any]:
    def call() -> Any:
        return getattr(captum_attr, name)(subject("mlp").module).attribute(noise(5, 8), **own)

    return call


def tunnel_of_a_layer() -> Any:
    model = subject("mlp").module
    inner = captum_attr.LayerIntegratedGradients(model, model[0])
    return captum_attr.NoiseTunnel(inner).attribute(noise(5, 8), target=1, n_steps=4, nt_samples=2)


def tunnel_of_an_ablated_layer() -> Any:
    model = subject("mlp").module
    inner = captum_attr.LayerFeatureAblation(model, model[0])
    return captum_attr.NoiseTunnel(inner).attribute(noise(5, 8), target=1, nt_samples=2)


def neuron_target(name: str, **own: Any) -> Callable[[], Any]:
    return layered(name, neuron_selector=3, **own)


BASELINES = noise(6, 8, seed=2)
CALLS = {
    "IntegratedGradients": direct("IntegratedGradients", target=1, return_convergence_delta=True),
    "GradientShap": direct("GradientShap", baselines=BASELINES, target=1, return_convergence_delta=True),
    "LayerIntegratedGradients": layered("LayerIntegratedGradients", target=1, return_convergence_delta=True),
    "LayerIntegratedGradients-chunks": layered("LayerIntegratedGradients", target=1, internal_batch_size=10),
    "LayerGradientShap": layered(
        "LayerGradientShap", baselines=BASELINES, target=1, stdevs=0.1, return_convergence_delta=True
    ),
    "LayerConductance": layered("LayerConductance", target=1, n_steps=8),
    "LayerGradientXActivation": layered("LayerGradientXActivation", target=1),
    "LayerDeepLift": layered("LayerDeepLift", target=1),
    "InternalInfluence": layered("InternalInfluence", target=1, n_steps=8),
    "NeuronIntegratedGradients": neuron_target("NeuronIntegratedGradients", n_steps=8),
    "NeuronGradientShap": neuron_target("NeuronGradientShap", baselines=BASELINES),
    "NeuronGradient": neuron_target("NeuronGradient"),
    "NeuronConductance": neuron_target("NeuronConductance", target=1, n_steps=8, method="gausslegendre"),
    "NeuronDeepLift": neuron_target("NeuronDeepLift"),
    "DeepLift": direct("DeepLift", target=1, return_convergence_delta=True),
    "DeepLiftShap": direct("DeepLiftShap", baselines=BASELINES, target=1),
    "LayerActivation": layered("LayerActivation"),
    "LayerGradCam": layered("LayerGradCam", target=1),
    "LayerLRP": layered("LayerLRP", target=1),
    "LayerFeatureAblation": layered("LayerFeatureAblation", target=1),
    "NeuronFeatureAblation": neuron_target("NeuronFeatureAblation"),
    "NeuronGuidedBackprop": neuron_target("NeuronGuidedBackprop"),
    "FeatureAblation": direct("FeatureAblation", target=1),
    "KernelShap": direct("KernelShap", target=1, n_samples=10),
    "NoiseTunnel-layer": tunnel_of_a_layer,
    "NoiseTunnel-ablated-layer": tunnel_of_an_ablated_layer,
}


@pytest.mark.parametrize("name", CALLS)
def test_captums_own_classes_give_the_same_numbers(name: str) -> None:
    seed()
    expected = CALLS[name]()
    fusum.patch()
    try:
        seed()
        found = CALLS[name]()
    finally:
        fusum.unpatch()
    assert_same(found, expected)


def test_an_embedding_layer_of_token_ids() -> None:
    """Ids have no gradient: captum's layer class gives IntegratedGradients the layer's values and a gradient_func."""
    embedding = torch.nn.Embedding(20, 4)
    model = torch.nn.Sequential(embedding, torch.nn.Flatten(), torch.nn.Linear(12, 2))
    ids = torch.tensor([[1, 2, 3], [7, 8, 9]])

    def call() -> Any:
        explainer = captum_attr.LayerIntegratedGradients(model, embedding)
        return explainer.attribute(ids, 0 * ids, target=1, return_convergence_delta=True)

    expected = call()
    fusum.patch()
    try:
        assert_same(call(), expected)
    finally:
        fusum.unpatch()


def test_patch_says_so_where_captum_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match="captum is not installed"):
        fusum.patch()


SCRIPT = """
import sys
import torch
from captum.attr import IntegratedGradients, Saliency, FeatureAblation
from captum.attr._core.noise_tunnel import NoiseTunnel
print("args", sys.argv[1:], __name__, sys.argv[0].endswith("job.py"))
print("class", IntegratedGradients.__module__, NoiseTunnel.__module__, FeatureAblation.__module__)
import neighbour
model = torch.nn.Linear(3, 2)
IntegratedGradients(model).attribute(torch.ones(4, 3), target=0)
IntegratedGradients(model).attribute(torch.ones(4, 3), target=0)
NoiseTunnel(FeatureAblation(torch.nn.Sequential(model))).attribute(torch.ones(4, 3), target=0)
mode = sys.argv[1]
if mode == "exit":
    sys.exit(7)
if mode == "raise":
    raise KeyError("from the script")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scripts")
    (path / "job.py").write_text(SCRIPT)
    (path / "neighbour.py").write_text("print('neighbour', __name__)\n")
    return path


def python_m_fusum(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it where a script's own folder is not the current one, with the fusum of these tests."""
    source = str(Path(fusum.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "fusum", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_script_runs_unchanged(folder: Path, tmp_path: Path) -> None:
    done = python_m_fusum("--profile", str(folder / "job.py"), "ok", "--profile", "-m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "args ['ok', '--profile', '-m'] __main__ True" in done.stdout
    assert "class fusum.attr.gradient fusum.attr.wrappers fusum.attr.perturbation" in done.stdout
    assert "neighbour neighbour" in done.stdout
    table = {line.split()[0]: line for line in done.stderr.splitlines() if line.strip()}
    assert "2" in table["IntegratedGradients"].split()[1:3]
    assert "1" in table["NoiseTunnel"].split()[1:3]


def test_a_module_runs_unchanged_and_its_exit_code_is_kept(folder: Path) -> None:
    done = python_m_fusum("-m", "job", "exit", cwd=folder)
    assert done.returncode == 7, done.stderr
    assert "args ['exit'] __main__ True" in done.stdout
    assert "class fusum.attr.gradient" in done.stdout


def test_an_exception_of_the_script_comes_through(folder: Path, tmp_path: Path) -> None:
    done = python_m_fusum("--profile", str(folder / "job.py"), "raise", cwd=tmp_path)
    assert done.returncode == 1
    assert "KeyError: 'from the script'" in done.stderr
    assert "IntegratedGradients" in done.stderr, "the profile of what ran is still printed"


def test_info_and_usage(tmp_path: Path) -> None:
    done = python_m_fusum("info", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.__version__ in done.stdout
    assert "kernels in use" in done.stdout or "kernels not in use: " in done.stdout
    from fusum.__main__ import main

    assert main([]) == 2


def test_a_first_call_does_not_load_the_compiler() -> None:
    code = """
import sys, torch, fusum.attr
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
fusum.attr.FeatureAblation(lambda x: model(x)).attribute(torch.randn(5, 4), target=0)
fusum.attr.LayerGradientShap(model, model[1]).attribute(torch.randn(5, 4), torch.randn(3, 4), target=0)
fusum.attr.LayerFeatureAblation(model, model[0]).attribute(torch.randn(5, 4), target=0)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr
