"""Methods that replace features one at a time, of layers: those of the inputs with ``where`` or ``read`` filled in.

Arguments that they share:

    forward_func: the model, in any format, or a function that calls it.
    layer: a module of the model or its dotted name.
    device_ids: accepted as in captum, and not needed: models that are spread over devices run on one.
    layer_mask: as ``feature_mask`` of the methods of inputs, for what the layer holds.
    perturbations_per_eval: as in ``FeatureAblation``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..plan.neuron import neuron
from ..plan.spec import Ablate, Call, Fold, Permute, Plan
from .base import LayerAttribution, NeuronAttribution, PerturbationAttribution, attribution, built, no_future
from .layer import site
from .perturbation import FeatureAblation, FeaturePermutation

Tensors = Tensor | tuple[Tensor, ...]


class LayerFeatureAblation(LayerAttribution, PerturbationAttribution):
    """What the output loses when a part of what a layer holds is replaced by its baseline."""

    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        PerturbationAttribution.__init__(self, forward_func)

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        layer_baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        layer_mask: Any = None,
        attribute_to_layer_input: bool = False,
        perturbations_per_eval: int = 1,
    ) -> Call:
        """Scores in the form of what the layer holds; shared arguments are described in docs/perturbation.md.

        Arguments:
            layer_baselines: as baselines of the methods of inputs, for what the layer holds.
            attribute_to_layer_input: score what the layer takes, not what it returns.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        return Call(
            Plan(Ablate(), Fold.CREDIT, where=site(self.layer, attribute_to_layer_input)),
            self.forward_func,
            inputs,
            layer_baselines,
            target,
            additional_forward_args,
            feature_mask=layer_mask,
            perturbations_per_eval=perturbations_per_eval,
        )


class LayerFeaturePermutation(LayerAttribution, FeaturePermutation):
    """What the output loses when a part of what a layer holds is shuffled among the examples."""

    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        FeaturePermutation.__init__(self, forward_func)

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        layer_mask: Any = None,
        perturbations_per_eval: int = 1,
    ) -> Call:
        """Scores in the form of what the layer holds; shared arguments are described in docs/perturbation.md.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        return Call(
            Plan(Permute(), Fold.CREDIT, where=site(self.layer, False)),
            self.forward_func,
            inputs,
            None,
            target,
            additional_forward_args,
            feature_mask=layer_mask,
            perturbations_per_eval=perturbations_per_eval,
        )

    attribute_future = no_future


class NeuronFeatureAblation(NeuronAttribution, PerturbationAttribution):
    """What a neuron loses when a feature of the inputs is replaced by its baseline."""

    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        NeuronAttribution.__init__(self, forward_func, layer, device_ids)
        PerturbationAttribution.__init__(self, forward_func)

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        neuron_selector: Any,
        baselines: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        attribute_to_neuron_input: bool = False,
        perturbations_per_eval: int = 1,
    ) -> Call:
        """Scores for inputs; shared arguments are described in docs/perturbation.md.

        Arguments:
            neuron_selector: an index, a tuple of indices and slices behind the examples', or a function of what the
                layer holds that gives one number an example.
            attribute_to_neuron_input: read what the layer takes, not what it returns.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        given = (inputs, baselines, None, additional_forward_args, feature_mask, perturbations_per_eval)
        call = built(FeatureAblation, FeatureAblation(self.forward_func), *given)
        call.plan = replace(call.plan, read=neuron(site(self.layer, attribute_to_neuron_input), neuron_selector))
        return call
