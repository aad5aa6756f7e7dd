"""Methods that give scores to what layers hold, from baselines to inputs; shared arguments: ``fusum.attr.layer``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..plan.points import line
from ..plan.spec import Call, Fold, Layer, Plan, RandomLine
from .base import LayerAttribution, attribution, built, has_integers
from .gradient import FromBaselines, GradientShap
from .layer import LayerGradient, Tensors, at, site
from .relevance import DeepLift, DeepLiftShap


class _LayerPath(LayerAttribution, FromBaselines):
    """Methods along a path, for a layer."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Any,
        device_ids: list[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        FromBaselines.__init__(self, forward_func, multiply_by_inputs)


class LayerIntegratedGradients(_LayerPath):
    """The gradient averaged between what layers hold at baselines and at inputs (Sundararajan et al., 2017).

    Arguments:
        layer: one, or a list of which none feeds another.
        multiply_by_inputs: multiply by the change of what the layers hold.
    """

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Call:
        """As ``IntegratedGradients``, with scores in the form of what the layers hold; inputs may be token ids.

        Raises:
            ArgumentError: an argument does not fit, or a layer is not in the model or did not run.
        """
        plan = Plan(line(n_steps, method, inside=True), self._fold)
        call = Call(plan, self.forward_func, inputs, baselines, target, additional_forward_args, has_baselines=True)
        call.internal_batch_size, call.return_convergence_delta = internal_batch_size, return_convergence_delta
        return at(call, site(self.layer, attribute_to_layer_input, grad_kwargs))


class LayerGradientShap(_LayerPath):
    """Expected gradients of a layer over random baselines and random points (Lundberg and Lee, 2017)."""

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any,
        n_samples: int = 5,
        stdevs: float | tuple[float, ...] = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
    ) -> Call:
        """As ``GradientShap``, with scores in the form of what the layer holds; noise goes to the inputs.

        Where inputs are integers, such as token ids, points and noise are of what the layer holds.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        given = (inputs, baselines, n_samples, stdevs, target, additional_forward_args, return_convergence_delta)
        call = at(built(GradientShap, self, *given), site(self.layer, attribute_to_layer_input))
        if has_integers(inputs):
            call.plan = replace(call.plan, points=RandomLine(inside=True))
        return call


class _OnTheWay(LayerGradient):
    """Methods of a layer's gradients on the way from baselines to inputs."""

    def _call(self, fold: Fold, steps: int, method: str, where: Layer, *given: Any) -> Call:
        return at(Call(Plan(line(steps, method), fold), self.forward_func, *given, has_baselines=True), where)


class LayerConductance(_OnTheWay):
    """A layer's gradient times its change, added up on the way from baselines to inputs (Dhamdhere et al., 2018)."""

    def has_convergence_delta(self) -> bool:
        """Whether the method can return a convergence delta: it can."""
        return True

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Call:
        """Scores in the form of what the layer holds; other arguments as of ``IntegratedGradients``.

        Arguments:
            n_steps: changes between points on the line, of which there is one more.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        where = site(self.layer, attribute_to_layer_input, grad_kwargs)
        line(n_steps, method)
        given = (inputs, baselines, target, additional_forward_args, internal_batch_size, return_convergence_delta)
        return self._call(Fold.TIMES_STEPS, n_steps + 1, method, where, *given)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by changes of what the layer holds: they are."""
        return True


class InternalInfluence(_OnTheWay):
    """A layer's gradient averaged on the way from baselines to inputs (Leino et al., 2018)."""

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Call:
        """Scores in the form of what the layer holds; other arguments as of ``IntegratedGradients``.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        where = site(self.layer, attribute_to_layer_input, grad_kwargs)
        given = (inputs, baselines, target, additional_forward_args, internal_batch_size)
        return self._call(Fold.GRADIENT, n_steps, method, where, *given)


class LayerDeepLift(LayerAttribution, DeepLift):
    """Changes of what a layer holds, shared out by DeepLift's multipliers (Shrikumar et al., 2017)."""

    def __init__(self, model: Callable[..., Any], layer: Any, multiply_by_inputs: bool = True) -> None:
        LayerAttribution.__init__(self, model, layer)
        DeepLift.__init__(self, model, multiply_by_inputs)

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        custom_attribution_func: Callable[..., tuple[Tensor, ...]] | None = None,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Call:
        """As ``DeepLift``, with scores in the form of what the layer holds.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        given = (inputs, baselines, target, additional_forward_args, return_convergence_delta, custom_attribution_func)
        return at(built(DeepLift, self, *given), site(self.layer, attribute_to_layer_input, grad_kwargs))


class LayerDeepLiftShap(LayerDeepLift, DeepLiftShap):
    """DeepLift's mean over a distribution of baselines, for a layer (Lundberg and Lee, 2017)."""

    def __init__(self, model: Callable[..., Any], layer: Any, multiply_by_inputs: bool = True) -> None:
        LayerDeepLift.__init__(self, model, layer, multiply_by_inputs)

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        baselines: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        custom_attribution_func: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> Call:
        """As ``DeepLiftShap``, with scores in the form of what the layer holds.

        Raises:
            ArgumentError: an argument does not fit, or the layer is not in the model or did not run.
        """
        given = (inputs, baselines, target, additional_forward_args, return_convergence_delta, custom_attribution_func)
        return at(built(DeepLiftShap, self, *given), site(self.layer, attribute_to_layer_input))
