"""The classes of ``captum.attr``, under the same names, signatures and defaults."""

from .base import Attribution, GradientAttribution, LayerAttribution, NeuronAttribution, PerturbationAttribution
from .gradient import GradientShap, InputXGradient, IntegratedGradients, Saliency
from .wrappers import NoiseTunnel

__all__ = [
    "Attribution",
    "GradientAttribution",
    "GradientShap",
    "InputXGradient",
    "IntegratedGradients",
    "LayerAttribution",
    "NeuronAttribution",
    "NoiseTunnel",
    "PerturbationAttribution",
    "Saliency",
]
