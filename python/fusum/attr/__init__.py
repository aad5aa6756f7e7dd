"""The classes of ``captum.attr``, under the same names, signatures and defaults."""

from .base import Attribution, GradientAttribution, LayerAttribution, NeuronAttribution, PerturbationAttribution
from .gradient import GradientShap, InputXGradient, IntegratedGradients, Saliency
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
from .wrappers import NoiseTunnel

__all__ = [
    "LRP",
    "Alpha1_Beta0_Rule",
    "Attribution",
    "Deconvolution",
    "DeepLift",
    "DeepLiftShap",
    "EpsilonRule",
    "GammaRule",
    "GradientAttribution",
    "GradientShap",
    "GuidedBackprop",
    "IdentityRule",
    "InputXGradient",
    "IntegratedGradients",
    "LayerAttribution",
    "NeuronAttribution",
    "NoiseTunnel",
    "PerturbationAttribution",
    "PropagationRule",
    "Saliency",
]
