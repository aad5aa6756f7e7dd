"""Methods that give scores to what layers hold: each is a method of the inputs with ``where`` filled in.

Arguments that they share:

    forward_func, model: the model, in any format, or a function that calls it.
    layer: a module of the model or its dotted name; where it says so also a list of them.
    device_ids: accepted as in captum, and not needed: models that are spread over devices run on one.
    attribute_to_layer_input: score what the layer takes, not what it returns.
    grad_kwargs: allow_unused or materialize_grads, as of ``torch.autograd.grad``: zeros for a layer of no influence.

Scores have the form of what the layer holds: a tensor, or a tuple where it holds several; where the layer runs more
than once, a tuple of one for each call; of a list of layers, a list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from ..plan.spec import Call, Cam, Fold, Layer, Once, Plan
from .base import GradientAttribution, LayerAttribution, attribution, built
from .relevance import LRP

Tensors = Tensor | tuple[Tensor, ...]


def site(layer: Any, of_input: bool, grad_kwargs: dict[str, Any] | None = None) -> Layer:
    """A checked Layer."""
    if isinstance(layer, (list, tuple)) and not layer:
        raise ArgumentTypeError(f"layer: got {layer!r}; expected a layer, or a list of at least one")
    if grad_kwargs is not None and not isinstance(grad_kwargs, Mapping):
        raise ArgumentTypeError(f"grad_kwargs: got {type(grad_kwargs).__name__}; expected a dict")
    options = dict(grad_kwargs or {})
    unused = [bool(options.pop(name, False)) for name in ("allow_unused", "materialize_grads")]
    options.pop("retain_graph", None)
    if any(options.values()):
        names = sorted(name for name, value in options.items() if value)
        raise ArgumentError(
            f"grad_kwargs: got {names}; expected allow_unused or materialize_grads (scores carry no graph)"
        )
    return Layer(layer, bool(of_input), any(unused))


def at(call: Call, where: Layer) -> Call:
    """The call, with scores for layers."""
    call.plan = replace(call.plan, where=where)
    return call


class LayerGradient(LayerAttribution, GradientAttribution):
    """Methods of a layer's gradient."""

    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        GradientAttribution.__init__(self, forward_func)


class LayerActivation(LayerAttribution):
    """What layers hold, without gradient; nothing runs after the last of them. layer: one, or a list."""

    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)

    @attribution
    def attribute(
        self, inputs: Tensors, additional_forward_args: Any = None, attribute_to_layer_input: bool = False
    ) -> Call:
        """Values in the form of what the layers hold; inputs of any type; shared arguments: docs/arguments.md.

        Raises:
            ArgumentError: an argument does not fit, or a layer is not in the model or did not run.
        """
        plan = Plan(Once(), Fold.VALUE, where=site(self.layer, attribute_to_layer_input))
        return Call(plan, self.forward_func, inputs, additional_forward_args=additional_forward_args)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by what the layer holds: they are it."""
        return True


class LayerGradientXActivation(LayerGradient):
    """What layers hold times its gradient.

    Arguments:
        layer: one, or a list.
        multiply_by_inputs: False gives the gradient itself.
        memory_efficient: give the scores on the CPU.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Any,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
        memory_efficient: bool = False,
    ) -> None:
        LayerGradient.__init__(self, forward_func, layer, device_ids)
        self._multiply_by_inputs = multiply_by_inputs
        self._memory_efficient = memory_efficient

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Call:
        """Scores in the form of what the layers hold; inputs of any type; shared arguments: docs/arguments.md.

        Raises:
            ArgumentError: an argument does not fit, or a layer is not in the model or did not run.
        """
        where = site(self.layer, attribute_to_layer_input, grad_kwargs)
        if self._memory_efficient:
            where = replace(where, on_cpu=True)
        plan = Plan(Once(), Fold.TIMES_INPUT if self._multiply_by_inputs else Fold.GRADIENT, where=where)
        return Call(plan, self.forward_func, inputs, None, target, additional_forward_args)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by what the layer holds."""
        return self._multiply_by_inputs


class LayerGradCam(LayerGradient):
    """What a layer holds, weighed by its gradient's mean over places (Selvaraju et al., 2017)."""

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Call:
        """Scores [examples, 1, ...] over the layer's places; shared arguments: docs/arguments.md.

        Arguments:
            relu_attributions: set what is negative to zero.
            attr_dim_summation: sum over channels; False keeps them.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        where = site(self.layer, attribute_to_layer_input, grad_kwargs)
        plan = Plan(Once(), Cam(relu_attributions, attr_dim_summation), where=where)
        return Call(plan, self.forward_func, inputs, None, target, additional_forward_args)


class GuidedGradCam(GradientAttribution):
    """Guided backpropagation, weighed by a layer's GradCam (Selvaraju et al., 2017)."""

    def __init__(self, model: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        GradientAttribution.__init__(self, model)
        self.layer, self.device_ids = layer, device_ids

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        interpolate_mode: str = "nearest",
        attribute_to_layer_input: bool = False,
    ) -> Call:
        """Scores in the form of inputs; shared arguments are described in docs/arguments.md.

        Arguments:
            interpolate_mode: how the layer's scores are resized, as in ``torch.nn.functional.interpolate``.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        fold = Cam(positive=True, guided=interpolate_mode)
        plan = Plan(Once(), fold, where=site(self.layer, attribute_to_layer_input))
        return Call(plan, self.forward_func, inputs, None, target, additional_forward_args)


class LayerLRP(LRP, LayerAttribution):
    """The relevance of what layers hold (Bach et al., 2015). layer: one, or a list."""

    def __init__(self, model: Callable[..., Any], layer: Any) -> None:
        LayerAttribution.__init__(self, model, layer)
        LRP.__init__(self, model)

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        verbose: bool = False,
    ) -> Call:
        """As ``LRP``, with relevance in the form of what the layers hold; of a list also a list of deltas.

        Raises:
            ArgumentError: an argument does not fit, or a layer is not in the model or did not run.
            ArgumentTypeError: the model calls an operator that has no rule.
        """
        given = (inputs, target, additional_forward_args, return_convergence_delta, verbose)
        return at(built(LRP, self, *given), site(self.layer, attribute_to_layer_input))
