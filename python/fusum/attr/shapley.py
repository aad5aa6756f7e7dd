"""Shapley values: what features add to the output, averaged over the orders in which they may join."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..plan.spec import Call, Orders
from ..settings import flag, positive_int
from .base import PerturbationAttribution, attribution, changing, future

Tensors = Tensor | tuple[Tensor, ...]


class ShapleyValueSampling(PerturbationAttribution):
    """Shapley values by random orders of the features (Castro et al., 2009)."""

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 25,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
        *,
        antithetic: bool = False,
    ) -> Call:
        """Scores [*shape of the output, ...] for inputs; shared arguments are described in docs/perturbation.md.

        Arguments:
            n_samples: how many orders.
            antithetic: every second order is the one before it backwards (Mitchell et al., 2022), which lessens the
                variance where features interact little.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        return changing(
            self,
            Orders(positive_int("n_samples", n_samples), flag("antithetic", antithetic)),
            *(inputs, baselines, target, additional_forward_args),
            feature_mask=feature_mask,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        )

    attribute_future = future(attribute)


class ShapleyValues(ShapleyValueSampling):
    """Shapley values by their definition: every coalition is evaluated once, 2^features in all (Shapley, 1953)."""

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
    ) -> Call:
        """Scores [*shape of the output, ...] for inputs; shared arguments are described in docs/perturbation.md.

        Raises:
            ArgumentError: an argument does not fit, or there are too many features, named in the message.
        """
        return changing(
            self,
            Orders(None),
            *(inputs, baselines, target, additional_forward_args),
            feature_mask=feature_mask,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        )

    attribute_future = future(attribute)
