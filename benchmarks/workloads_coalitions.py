"""The workloads of methods that replace features and watch the output."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from . import ideal_coalitions, ideal_surrogates, models
from .workload import Tensors, Workload, chunks


def named(method: str) -> Callable[[ModuleType, nn.Module], Any]:
    """A method, by its name."""
    return lambda attr, model: getattr(attr, method)(model)


def evals(*sizes: int) -> tuple[Mapping[str, int], ...]:
    """Settings of captum's perturbations_per_eval."""
    return chunks("perturbations_per_eval", *sizes)


def mlp_surrogate(
    name: str, method: str, loop: Callable[..., Tensors], over_best: float, own: Mapping[str, Any] | None = None
) -> Workload:
    """A method that fits linear models to the MLP, on 16 rows; own: arguments that captum does not have."""
    return Workload(
        name,
        models.mlp,
        models.features(16),
        named(method),
        loop,
        {"n_samples": 254 if own else 200, "target": 0},
        evals(10, 50, 200),
        (512, 1024, 2048, 4096),
        own=own or {},
        over_best=over_best,
        near_ideal=1.3,
    )


COALITIONS = (
    Workload(
        "mlp_ablation",
        models.mlp,
        models.features(180),
        named("FeatureAblation"),
        ideal_coalitions.feature_ablation,
        {},
        evals(2, 4, 8),
        (180, 360, 540, 900, 1620),
        over_best=1.6,
        over_default=3,
        near_ideal=1.3,
    ),
    Workload(
        "resnet18_ablation_49",
        models.resnet18,
        models.images(1, 224),
        named("FeatureAblation"),
        ideal_coalitions.feature_ablation,
        {"target": 3},
        evals(2, 4, 7, 10, 25, 49),
        (1, 2, 4, 5, 10, 25, 50),
        tensors={"feature_mask": models.superpixels(224, 32)},
        over_best=1.0,
        over_default=1.2,
        near_ideal=1.3,
    ),
    Workload(
        "bert_ablation",
        models.Bert,
        models.sentences(1),
        named("FeatureAblation"),
        ideal_coalitions.feature_ablation,
        {"target": 1, "baselines": models.BERT_BLANK},
        evals(2, 4, 8, 16, 32, 96),
        (1, 2, 4, 7, 10, 14, 20, 33, 97),
        tensors={"additional_forward_args": models.sentence_mask(1)},
        over_best=1.0,
        over_default=1.2,
        near_ideal=1.3,
    ),
    Workload(
        "cnn_occlusion",
        models.Cnn,
        models.images(8, 32),
        named("Occlusion"),
        ideal_coalitions.occlusion,
        {"target": 3, "sliding_window_shapes": (3, 8, 8), "strides": (3, 4, 4)},
        evals(2, 4, 7, 10, 25, 49),
        (8, 16, 40, 80, 100, 200, 400),
        over_best=1.0,
        over_default=1.2,
        near_ideal=1.3,
    ),
    Workload(
        "mlp_shapley_sampling",
        models.mlp,
        models.features(180),
        named("ShapleyValueSampling"),
        ideal_coalitions.shapley_value_sampling,
        {"n_samples": 25, "target": 0},
        evals(2, 4, 8),
        (360, 900, 1800, 3600, 9000, 18000),
        over_best=3,
        near_ideal=1.3,
    ),
    Workload(
        "pixel_shapley_sampling",
        models.patches,
        models.images(1, 224),
        named("ShapleyValueSampling"),
        ideal_coalitions.shapley_value_sampling,
        {"n_samples": 25, "target": 3},
        evals(2, 4, 10, 49),
        (4, 8, 12, 16, 25, 32),
        tensors={"feature_mask": models.superpixels(224, 32)},
        over_best=20,
        near_ideal=1.3,
    ),
    Workload(
        "mlp_shapley_exact",
        models.mlp,
        models.features(32),
        named("ShapleyValues"),
        ideal_coalitions.shapley_values,
        {"target": 0},
        evals(8),
        (1024, 2048, 4096, 8192),
        over_best=80,
        near_ideal=1.3,
    ),
    mlp_surrogate("mlp_kernel_shap", "KernelShap", ideal_surrogates.kernel_shap, over_best=40),
    mlp_surrogate(
        "mlp_kernel_shap_paired",
        "KernelShap",
        ideal_surrogates.exactly(ideal_coalitions.shapley_values),
        over_best=80,
        own={"sampling": "paired"},
    ),
    mlp_surrogate("mlp_lime", "Lime", ideal_surrogates.lime, over_best=40),
)
