"""Methods that explain one neuron of a layer: each is a method of the inputs with ``read`` filled in.

Arguments that they share, besides those of ``fusum.attr.layer``:

    neuron_selector: which of the layer's numbers: an index, a tuple of indices behind the examples', slices of which
        the numbers are added up, or a function of what the layer holds that gives one number an example. Where the
        layer runs more than once, its last call is meant.
    attribute_to_neuron_input: read what the layer takes, not what it returns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..plan.neuron import neuron
from ..plan.spec import Call
from .base import GradientAttribution, NeuronAttribution, attribution, built
from .gradient import GradientShap, IntegratedGradients, Saliency
from .layer import site
from .relevance import Deconvolution, DeepLift, DeepLiftShap, GuidedBackprop

Tensors = Tensor | tuple[Tensor, ...]


class _Neuron(NeuronAttribution, GradientAttribution):
    """Methods of a neuron's gradient."""

    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        NeuronAttribution.__init__(self, forward_func, layer, device_ids)
        GradientAttribution.__init__(self, forward_func)

    def _read(self, call: Call, selector: Any, of_input: bool, options: Any = None, conducts: bool = False) -> Call:
        """The call, with the neuron explained in place of the output."""
        call.plan = replace(call.plan, read=neuron(site(self.layer, of_input, options), selector, conducts))
        return call


class _NeuronChange(_Neuron):
    """Methods of a neuron's change from baselines to inputs. multiply_by_inputs: multiply by input minus baseline."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Any,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        _Neuron.__init__(self, forward_func, layer, device_ids)
        self._multiply_by_inputs = multiply_by_inputs

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by input minus baseline."""
        return self._multiply_by_inputs


class NeuronGradient(_Neuron):
    """The gradient of a neuron with respect to each input."""

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        neuron_selector: Any,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
    ) -> Call:
        """Gradients in the form of inputs; shared arguments are described in docs/arguments.md.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        call = built(Saliency, self, inputs, None, False, additional_forward_args)
        return self._read(call, neuron_selector, attribute_to_neuron_input)


class NeuronIntegratedGradients(_NeuronChange):
    """Integrated gradients of a neuron (Sundararajan et al., 2017)."""

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        neuron_selector: Any,
        baselines: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        attribute_to_neuron_input: bool = False,
    ) -> Call:
        """As ``IntegratedGradients``, of the neuron.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        whole = IntegratedGradients(self.forward_func, self._multiply_by_inputs)
        given = (inputs, baselines, None, additional_forward_args, n_steps, method, internal_batch_size)
        return self._read(built(whole, whole, *given), neuron_selector, attribute_to_neuron_input)


class NeuronConductance(_NeuronChange):
    """The part of the explained output's integrated gradients that flows through a neuron (Dhamdhere et al., 2018)."""

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        neuron_selector: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "riemann_trapezoid",
        internal_batch_size: int | None = None,
        attribute_to_neuron_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Call:
        """As ``IntegratedGradients``, through the neuron.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        if callable(neuron_selector):
            warnings.warn(
                "neuron_selector: got a function; it should pick numbers of the layer, and not compute with them",
                UserWarning,
                stacklevel=3,
            )
        whole = IntegratedGradients(self.forward_func, self._multiply_by_inputs)
        given = (inputs, baselines, target, additional_forward_args, n_steps, method, internal_batch_size)
        call = built(whole, whole, *given)
        return self._read(call, neuron_selector, attribute_to_neuron_input, grad_kwargs, conducts=True)


class NeuronGradientShap(_NeuronChange):
    """Expected gradients of a neuron (Lundberg and Lee, 2017)."""

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        neuron_selector: Any,
        baselines: Any,
        n_samples: int = 5,
        stdevs: float | tuple[float, ...] = 0.0,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
    ) -> Call:
        """As ``GradientShap``, of the neuron.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        whole = GradientShap(self.forward_func, self._multiply_by_inputs)
        call = built(whole, whole, inputs, baselines, n_samples, stdevs, None, additional_forward_args)
        return self._read(call, neuron_selector, attribute_to_neuron_input)


class NeuronDeepLift(_NeuronChange):
    """DeepLift of a neuron (Shrikumar et al., 2017)."""

    _whole: type[DeepLift] = DeepLift

    def __init__(self, model: Callable[..., Any], layer: Any, multiply_by_inputs: bool = True) -> None:
        _NeuronChange.__init__(self, model, layer, None, multiply_by_inputs)

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        neuron_selector: Any,
        baselines: Any = None,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        custom_attribution_func: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> Call:
        """As ``DeepLift``, of the neuron.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        return self._call(
            inputs,
            neuron_selector,
            baselines,
            additional_forward_args,
            attribute_to_neuron_input,
            custom_attribution_func,
        )

    def _call(self, inputs: Any, selector: Any, baselines: Any, extra: Any, of_input: bool, custom: Any) -> Call:
        whole = self._whole(self.forward_func, self._multiply_by_inputs)
        call = built(whole, whole, inputs, baselines, None, extra, False, custom)
        return self._read(call, selector, of_input)


class NeuronDeepLiftShap(NeuronDeepLift):
    """DeepLift's mean over a distribution of baselines, of a neuron (Lundberg and Lee, 2017)."""

    _whole = DeepLiftShap

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        neuron_selector: Any,
        baselines: Any,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
        custom_attribution_func: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> Call:
        """As ``DeepLiftShap``, of the neuron.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        return self._call(
            inputs,
            neuron_selector,
            baselines,
            additional_forward_args,
            attribute_to_neuron_input,
            custom_attribution_func,
        )


class _NeuronRelu(_Neuron):
    """Methods that change what ReLU passes back, of a neuron."""

    _whole: type[GuidedBackprop] | type[Deconvolution]

    def __init__(self, model: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        _Neuron.__init__(self, model, layer, device_ids)

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        neuron_selector: Any,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
    ) -> Call:
        """As ``GuidedBackprop`` or ``Deconvolution``, of the neuron.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        whole = self._whole(self.forward_func)
        call = built(whole, whole, inputs, None, additional_forward_args)
        return self._read(call, neuron_selector, attribute_to_neuron_input)


class NeuronGuidedBackprop(_NeuronRelu):
    """Guided backpropagation of a neuron (Springenberg et al., 2014)."""

    _whole = GuidedBackprop


class NeuronDeconvolution(_NeuronRelu):
    """Deconvolution of a neuron (Zeiler and Fergus, 2014)."""

    _whole = Deconvolution
