"""Methods around other methods."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from ..plan.spec import PERTURBING, Call, Fold, Line, Noise, Other, Pair, Plan
from ..settings import positive_int
from .base import Attribution, GradientAttribution, attribution, build_of, has_integers, no_future

KINDS = ("smoothgrad", "smoothgrad_sq", "vargrad")


def tunnel(
    inner: Call,
    nt_type: Any,
    nt_samples: Any,
    nt_samples_batch_size: Any,
    stdevs: Any,
    draw_baselines: bool,
    samples_name: str = "nt_samples",
) -> Call:
    """inner with noise around it, its options checked."""
    if nt_type not in KINDS:
        raise ArgumentError(f"nt_type: got {nt_type!r}; expected one of {list(KINDS)}")
    samples = positive_int(samples_name, nt_samples)
    batch = samples if nt_samples_batch_size is None else positive_int("nt_samples_batch_size", nt_samples_batch_size)
    for stdev in stdevs if isinstance(stdevs, tuple) else (stdevs,):
        if not isinstance(stdev, Real):
            got = f"{stdev!r} ({type(stdev).__name__})"
            raise ArgumentTypeError(f"stdevs: got {got}; expected a number or a tuple of numbers")
        if not float(stdev) >= 0:
            raise ArgumentError(f"stdevs: got {stdev}; expected at least 0")
    noise = Noise(nt_type, samples, min(samples, batch), stdevs, draw_baselines)
    inner.plan = replace(inner.plan, noise=noise)
    return inner


class NoiseTunnel(Attribution):
    """Another method's scores on noisy copies of each example, folded over the copies.

    Their mean is SmoothGrad (Smilkov et al., 2017), their variance VarGrad (Adebayo et al., 2018).

    Arguments:
        attribution_method: any method with ``attribute``, of fusum, of captum or your own.
    """

    def __init__(self, attribution_method: Attribution) -> None:
        if not callable(getattr(attribution_method, "attribute", None)):
            got = type(attribution_method).__name__
            raise ArgumentTypeError(f"attribution_method: got {got}; expected a method object, such as Saliency(model)")
        self.attribution_method = attribution_method
        self.is_delta_supported = attribution_method.has_convergence_delta()
        self._multiply_by_inputs = attribution_method.multiplies_by_inputs
        self.is_gradient_method = isinstance(attribution_method, GradientAttribution)
        Attribution.__init__(self, attribution_method.forward_func)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by inputs: as the inner method's are."""
        return self._multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """Whether the inner method can return a convergence delta."""
        return self.is_delta_supported

    @attribution
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        nt_type: str = "smoothgrad",
        nt_samples: int = 5,
        nt_samples_batch_size: int | None = None,
        stdevs: float | tuple[float, ...] = 1.0,
        draw_baseline_from_distrib: bool = False,
        **kwargs: Any,
    ) -> Call:
        """Scores in the form of the inner method's, with deltas [examples * nt_samples] if it returns them.

        Arguments:
            nt_type: smoothgrad (mean), smoothgrad_sq (mean square) or vargrad (variance).
            nt_samples: noisy copies of each example.
            nt_samples_batch_size: copies of each example drawn at a time; None draws all at once.
            stdevs: standard deviation of the noise, one number or one for each input.
            draw_baseline_from_distrib: draw each copy's baseline from the rows of ``baselines``.
            kwargs: arguments of the inner method's ``attribute``.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        inner = self._inner(inputs, kwargs)
        return tunnel(inner, nt_type, nt_samples, nt_samples_batch_size, stdevs, draw_baseline_from_distrib)

    def _inner(self, inputs: Any, kwargs: dict[str, Any]) -> Call:
        method = self.attribution_method
        build = build_of(method)
        if build is not None:
            call = build(method, inputs, **kwargs)
            if _takes_noise(call):
                return call
        uncounted = getattr(method.attribute, "__wrapped__", None)
        other = Other(
            method.attribute if uncounted is None else partial(uncounted, method),
            kwargs,
            wants_gradient=self.is_gradient_method,
            returns_delta=self.is_delta_supported and bool(kwargs.get("return_convergence_delta")),
            reason=None
            if build
            else f"NoiseTunnel calls {type(method).__name__}.attribute, which is not a plan of fusum's",
        )
        return Call(Plan(other, Fold.GRADIENT), self.forward_func, inputs)

    attribute_future = no_future


def _takes_noise(call: Call) -> bool:
    """Whether a plan may hold the noise: it has none yet, and means by its inputs and baselines what captum does."""
    points = call.plan.points
    if isinstance(points, Line) and points.inside:
        # Noise goes to what the layer holds only where the inputs, such as token ids, do not take it.
        return has_integers(call.inputs)
    apart = isinstance(points, PERTURBING) or (isinstance(points, Pair) and points.many)
    return call.plan.noise is None and not apart
