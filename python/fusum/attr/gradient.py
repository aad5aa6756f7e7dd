"""Methods that take gradients at the inputs or along a path to them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import ArgumentTypeError
from ..plan.points import line
from ..plan.spec import Call, Fold, Once, Plan, RandomLine
from .base import GradientAttribution, attribution, no_future
from .wrappers import tunnel


class Saliency(GradientAttribution):
    """The gradient of the explained number with respect to each input (Simonyan et al., 2013)."""

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        GradientAttribution.__init__(self, forward_func)

    @attribution
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        abs: bool = True,
        additional_forward_args: Any = None,
    ) -> Call:
        """Gradients in the form of inputs; shared arguments are described in docs/arguments.md.

        Arguments:
            abs: return absolute values.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        plan = Plan(Once(), Fold.ABS if abs else Fold.GRADIENT, self._rule)
        return Call(plan, self.forward_func, inputs, None, target, additional_forward_args)

    attribute_future = no_future


class InputXGradient(GradientAttribution):
    """Input times gradient (Shrikumar et al., 2016)."""

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        GradientAttribution.__init__(self, forward_func)

    @attribution
    def attribute(
        self, inputs: Tensor | tuple[Tensor, ...], target: Any = None, additional_forward_args: Any = None
    ) -> Call:
        """Scores in the form of inputs; shared arguments are described in docs/arguments.md.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        plan = Plan(Once(), Fold.TIMES_INPUT, self._rule)
        return Call(plan, self.forward_func, inputs, None, target, additional_forward_args)

    attribute_future = no_future

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by inputs: they are."""
        return True


class FromBaselines(GradientAttribution):
    """Methods on the way from baselines to inputs: complete, and global or local attributions by choice."""

    def __init__(self, forward_func: Callable[..., Any], multiply_by_inputs: bool = True) -> None:
        GradientAttribution.__init__(self, forward_func)
        self._multiply_by_inputs = multiply_by_inputs
        self._fold = Fold.TIMES_CHANGE if multiply_by_inputs else Fold.GRADIENT

    attribute_future = no_future

    def has_convergence_delta(self) -> bool:
        """Whether the method can return a convergence delta: it can."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by input minus baseline."""
        return self._multiply_by_inputs


class IntegratedGradients(FromBaselines):
    """The gradient averaged along the straight line from baselines to inputs (Sundararajan et al., 2017).

    Arguments:
        forward_func: the model, in any format, or a function of its inputs.
        multiply_by_inputs: multiply by input minus baseline, so that an example's scores sum to f(input) - f(baseline).
    """

    @attribution
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
    ) -> Call:
        """Scores in the form of inputs, with deltas [examples] if asked for; shared arguments: docs/arguments.md.

        Arguments:
            n_steps: points on the line.
            method: riemann_left, riemann_right, riemann_middle, riemann_trapezoid or gausslegendre.
            internal_batch_size: most rows that the model sees at once; None chooses by memory and speed.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        return Call(
            Plan(line(n_steps, method), self._fold, self._rule),
            self.forward_func,
            inputs,
            baselines,
            target,
            additional_forward_args,
            internal_batch_size,
            return_convergence_delta,
            has_baselines=True,
        )


class GradientShap(FromBaselines):
    """Expected gradients over random baselines and random points on the way from them (Lundberg and Lee, 2017).

    Arguments:
        forward_func: the model, in any format, or a function of its inputs.
        multiply_by_inputs: multiply by input minus baseline.
    """

    @attribution
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Any,
        n_samples: int = 5,
        stdevs: float | tuple[float, ...] = 0.0,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Call:
        """Scores in the form of inputs, with deltas [examples * n_samples] if asked for (docs/arguments.md).

        Arguments:
            baselines: the distribution to draw from: [N, ...] tensors, or a function of inputs, or of nothing, that
                returns them.
            n_samples: noisy copies of each example, each with a baseline and a point of its own.
            stdevs: standard deviation of the noise, one number or one for each input.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        if callable(baselines):
            baselines = baselines(inputs) if inspect.signature(baselines).parameters else baselines()
        first = baselines[0] if isinstance(baselines, tuple) and baselines else baselines
        if not isinstance(first, Tensor):
            raise ArgumentTypeError(f"baselines: got {type(first).__name__}; expected a tensor [N, ...] to draw from")
        inner = Call(
            Plan(RandomLine(), self._fold, self._rule),
            self.forward_func,
            inputs,
            baselines,
            target,
            additional_forward_args,
            return_convergence_delta=return_convergence_delta,
            has_baselines=True,
        )
        return tunnel(inner, "smoothgrad", n_samples, None, stdevs, True, samples_name="n_samples")
