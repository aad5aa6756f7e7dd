"""The classes of ``captum.attr``, under the same names, signatures and defaults."""

from .base import (
    Attribution,
    GradientAttribution,
    LayerAttribution,
    NeuronAttribution,
    PerturbationAttribution,
)
from .dataloader import DataLoaderAttribution
from .embedding import (
    InterpretableEmbeddingBase,
    TokenReferenceBase,
    configure_interpretable_embedding_layer,
    remove_interpretable_embedding_layer,
)
from .gradient import GradientShap, InputXGradient, IntegratedGradients, Saliency
from .layer import GuidedGradCam, LayerActivation, LayerGradCam, LayerGradientXActivation, LayerLRP
from .layer_path import (
    InternalInfluence,
    LayerConductance,
    LayerDeepLift,
    LayerDeepLiftShap,
    LayerGradientShap,
    LayerIntegratedGradients,
)
from .layer_perturbation import LayerFeatureAblation, LayerFeaturePermutation, NeuronFeatureAblation
from .lime import KernelShap, Lime, LimeBase
from .neuron import (
    NeuronConductance,
    NeuronDeconvolution,
    NeuronDeepLift,
    NeuronDeepLiftShap,
    NeuronGradient,
    NeuronGradientShap,
    NeuronGuidedBackprop,
    NeuronIntegratedGradients,
)
from .perturbation import FeatureAblation, FeaturePermutation, Occlusion
from .product_baselines import ProductBaselines
from .relevance import (
    LRP,
    Alpha1_Beta0_Rule,
    Deconvolution,
    DeepLift,
    DeepLiftShap,
    EpsilonRule,
    GammaRule,
    GuidedBackprop,
    IdentityRule,
    PropagationRule,
)
from .shapley import ShapleyValues, ShapleyValueSampling
from .wrappers import NoiseTunnel

__all__ = [
    "LRP",
    "Alpha1_Beta0_Rule",
    "Attribution",
    "DataLoaderAttribution",
    "Deconvolution",
    "DeepLift",
    "DeepLiftShap",
    "EpsilonRule",
    "FeatureAblation",
    "FeaturePermutation",
    "GammaRule",
    "GradientAttribution",
    "GradientShap",
    "GuidedBackprop",
    "GuidedGradCam",
    "IdentityRule",
    "InputXGradient",
    "IntegratedGradients",
    "InternalInfluence",
    "InterpretableEmbeddingBase",
    "KernelShap",
    "LayerActivation",
    "LayerAttribution",
    "LayerConductance",
    "LayerDeepLift",
    "LayerDeepLiftShap",
    "LayerFeatureAblation",
    "LayerFeaturePermutation",
    "LayerGradCam",
    "LayerGradientShap",
    "LayerGradientXActivation",
    "LayerIntegratedGradients",
    "LayerLRP",
    "Lime",
    "LimeBase",
    "NeuronAttribution",
    "NeuronConductance",
    "NeuronDeconvolution",
    "NeuronDeepLift",
    "NeuronDeepLiftShap",
    "NeuronFeatureAblation",
    "NeuronGradient",
    "NeuronGradientShap",
    "NeuronGuidedBackprop",
    "NeuronIntegratedGradients",
    "NoiseTunnel",
    "Occlusion",
    "PerturbationAttribution",
    "ProductBaselines",
    "PropagationRule",
    "Saliency",
    "ShapleyValueSampling",
    "ShapleyValues",
    "TokenReferenceBase",
    "configure_interpretable_embedding_layer",
    "remove_interpretable_embedding_layer",
]
