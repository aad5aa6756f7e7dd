"""What is measured: one frozen record a workload."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from . import ideal, ideal_layers, ideal_rules, models
from .workload import Tensors, Workload, chunks
from .workloads_coalitions import COALITIONS


def path(attr: ModuleType, model: nn.Module) -> Any:
    """Integrated gradients."""
    return attr.IntegratedGradients(model)


def smooth_path(attr: ModuleType, model: nn.Module) -> Any:
    """Integrated gradients of noisy copies."""
    return attr.NoiseTunnel(attr.IntegratedGradients(model))


def smooth_saliency(attr: ModuleType, model: nn.Module) -> Any:
    """Saliency of noisy copies."""
    return attr.NoiseTunnel(attr.Saliency(model))


def random_path(attr: ModuleType, model: nn.Module) -> Any:
    """GradientShap."""
    return attr.GradientShap(model)


def rescale(attr: ModuleType, model: nn.Module) -> Any:
    """DeepLift."""
    return attr.DeepLift(model)


def rescale_shap(attr: ModuleType, model: nn.Module) -> Any:
    """DeepLiftShap."""
    return attr.DeepLiftShap(model)


def guided(attr: ModuleType, model: nn.Module) -> Any:
    """Guided backpropagation."""
    return attr.GuidedBackprop(model)


def relevance(attr: ModuleType, model: nn.Module) -> Any:
    """Layer-wise relevance propagation."""
    return attr.LRP(model)


def at_layer(method: str, layer: str) -> Callable[[ModuleType, nn.Module], Any]:
    """A method of a layer, by their names."""
    return lambda attr, model: getattr(attr, method)(model, model.get_submodule(layer))


def mlp_ig(name: str, rows: int, over_best: float, scripted: bool = False) -> Workload:
    """Integrated gradients of the MLP on some rows."""
    return Workload(
        name,
        models.mlp,
        models.features(rows),
        path,
        ideal.integrated_gradients,
        {"n_steps": 50},
        chunks("internal_batch_size", 10 * rows, 25 * rows),
        (5 * rows, 10 * rows, 25 * rows, 50 * rows),
        scripted=scripted,
        over_best=over_best,
    )


def resnet18_ig(name: str, scripted: bool = False) -> Workload:
    """Integrated gradients of ResNet-18 on one image of 128 x 128."""
    return Workload(
        name,
        models.resnet18,
        models.images(1, 128),
        path,
        ideal.integrated_gradients,
        {"n_steps": 20, "target": 3},
        chunks("internal_batch_size", 2, 4, 5, 10),
        (4, 5, 7, 10, 20),
        scripted=scripted,
        over_best=1.0,
        over_default=1.2,
    )


def mlp_deep_lift(name: str, rows: int, over_best: float) -> Workload:
    """DeepLift of the MLP on some rows."""
    return Workload(
        name,
        models.mlp,
        models.features(rows),
        rescale,
        ideal_rules.deep_lift,
        {},
        (),
        (rows,),
        over_best=over_best,
        near_ideal=1.3,
    )


def cnn_rule(
    name: str, method: Callable[[ModuleType, nn.Module], Any], loop: Callable[..., Tensors], over_best: float
) -> Workload:
    """A rule of the backward pass, on 16 images and the CNN."""
    return Workload(
        name,
        models.Cnn,
        models.images(16, 32),
        method,
        loop,
        {"target": 3},
        (),
        (4, 8, 16),
        over_best=over_best,
        near_ideal=1.3,
    )


def resnet18_layer(
    name: str,
    method: str,
    layer: int,
    loop: Callable[[ideal_layers.Cut], Callable[..., Tensors]],
    over_best: float,
    arguments: Mapping[str, Any],
    settings: tuple[Mapping[str, int], ...] = (),
    rows: tuple[int, ...] = (1,),
) -> Workload:
    """A method of what a module of ResNet-18 returns, on one image of 128 x 128."""
    return Workload(
        name,
        models.resnet18,
        models.images(1, 128),
        at_layer(method, str(layer)),
        loop(ideal_layers.chain(layer + 1)),
        arguments,
        settings,
        rows,
        over_best=over_best,
    )


WORKLOADS = (
    mlp_ig("mlp_ig", 180, over_best=9),
    mlp_ig("mlp_ig_1row", 1, over_best=10),
    Workload(
        "mlp_gradient_shap",
        models.mlp,
        models.features(180),
        random_path,
        ideal.gradient_shap,
        {"n_samples": 5},
        (),
        (450, 900),
        tensors={"baselines": lambda device: models.draw(420, 8, device=device, seed=9)},
        over_best=8,
    ),
    Workload(
        "mlp_noise_tunnel_ig",
        models.mlp,
        models.features(180),
        smooth_path,
        ideal.noise_tunnel(ideal.integrated_gradients),
        {"nt_samples": 5, "stdevs": 0.1, "n_steps": 50},
        chunks("internal_batch_size", 1800, 9000) + chunks("nt_samples_batch_size", 1),
        (900, 1800, 4500, 9000, 45000),
        over_best=8,
    ),
    mlp_ig("mlp_ig_scripted", 180, over_best=8, scripted=True),
    Workload(
        "dlrm_ig",
        models.Dlrm,
        models.clicks(497),
        path,
        ideal.integrated_gradients,
        {"n_steps": 10},
        chunks("internal_batch_size", 497, 994, 2485),
        (497, 994, 1988, 2485, 4970),
        over_best=1.25,
    ),
    Workload(
        "cnn_noise_tunnel_saliency",
        models.Cnn,
        models.images(8, 32),
        smooth_saliency,
        ideal.noise_tunnel(ideal.saliency),
        {"nt_samples": 20, "stdevs": 0.1, "target": 3},
        chunks("nt_samples_batch_size", 2, 5, 10),
        (16, 40, 80, 160),
    ),
    resnet18_ig("resnet18_ig"),
    resnet18_ig("resnet18_ig_scripted", scripted=True),
    mlp_deep_lift("mlp_deep_lift", 180, over_best=10),
    mlp_deep_lift("mlp_deep_lift_1row", 1, over_best=4),
    Workload(
        "mlp_deep_lift_shap",
        models.mlp,
        models.features(180),
        rescale_shap,
        ideal_rules.deep_lift_shap,
        {},
        (),
        (180, 360, 900, 1800, 3600),
        tensors={"baselines": lambda device: models.draw(20, 8, device=device, seed=9)},
        over_best=8,
        near_ideal=2,
    ),
    cnn_rule("cnn_deep_lift", rescale, ideal_rules.deep_lift, over_best=3),
    Workload(
        "cnn_deep_lift_shap",
        models.Cnn,
        models.images(8, 32),
        rescale_shap,
        ideal_rules.deep_lift_shap,
        {"target": 3, "return_convergence_delta": True},
        (),
        (8, 16, 32, 40, 80, 160),
        tensors={"baselines": lambda device: models.draw(20, 3, 32, 32, device=device, seed=9)},
        over_best=6,
        near_ideal=2,
    ),
    cnn_rule("cnn_guided_backprop", guided, ideal_rules.guided_backprop, over_best=1.15),
    cnn_rule("cnn_lrp", relevance, ideal_rules.lrp, over_best=2.2),
    Workload(
        "mlp_layer_conductance",
        models.mlp,
        models.features(180),
        at_layer("LayerConductance", "6"),
        ideal_layers.conductance(ideal_layers.chain(6)),
        {"n_steps": 100, "attribute_to_layer_input": True},
        chunks("internal_batch_size", 1800, 4500, 9000),
        (1010, 2020, 4545, 9090, 18180),
        over_best=18,
    ),
    Workload(
        "dlrm_layer_conductance",
        models.Dlrm,
        models.clicks(497),
        at_layer("LayerConductance", "top"),
        ideal_layers.conductance(ideal_layers.top),
        {"n_steps": 10, "attribute_to_layer_input": True},
        chunks("internal_batch_size", 994, 1988, 2982),
        (506, 1012, 2024, 2739, 5467),
        over_best=1.3,
    ),
    resnet18_layer(
        "resnet18_layer_ig",
        "LayerIntegratedGradients",
        11,
        ideal_layers.integrated_gradients,
        6.5,
        {"n_steps": 20, "target": 3},
        chunks("internal_batch_size", 2, 4, 5, 10),
        (1, 5, 10, 20),
    ),
    resnet18_layer("resnet18_layer_grad_cam", "LayerGradCam", 11, ideal_layers.grad_cam, 1.0, {"target": 3}),
    resnet18_layer("resnet18_guided_grad_cam", "GuidedGradCam", 11, ideal_layers.guided_grad_cam, 1.7, {"target": 3}),
    resnet18_layer("resnet18_layer_activation", "LayerActivation", 7, ideal_layers.activation, 1.0, {}),
    Workload(
        "bert_layer_ig",
        models.Bert,
        models.sentences(2),
        at_layer("LayerIntegratedGradients", "classifier.bert.embeddings"),
        ideal_layers.integrated_gradients(ideal_layers.embeddings),
        {"n_steps": 30, "target": 1},
        chunks("internal_batch_size", 4, 10, 20, 30),
        (4, 6, 10, 12, 20, 30, 60),
        tensors={"additional_forward_args": models.sentence_mask(2)},
        over_best=1.0,
    ),
    *COALITIONS,
)
