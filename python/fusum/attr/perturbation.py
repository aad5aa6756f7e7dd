"""Methods that replace features, one at a time, and watch the output.

Arguments that they share:

    inputs: a tensor [examples, ...] or a tuple of those, of any type.
    feature_mask: integers that broadcast to an input, or a tuple of those: elements of one number, also in several
        inputs, are one feature. None: every element is one.
    perturbations_per_eval: of models that mix rows, how many features are changed in one forward, as in captum; of all
        others as many as memory allows, whatever this says.
    show_progress: show a bar.

Scores have the form of inputs where the model returns one number an example, or one is picked by target; else
[numbers, ...] for each input: one row for each number the model returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentTypeError
from ..plan.points import shuffle
from ..plan.spec import Ablate, Call, Permute
from ..plan.windows import slide
from .base import PerturbationAttribution, attribution, changing, future, no_future

Tensors = Tensor | tuple[Tensor, ...]


class FeatureAblation(PerturbationAttribution):
    """What the output loses when a feature is replaced by its baseline."""

    # As in captum: features that an input of fewer rows has elements of score zero.
    _min_examples_per_batch_grouped: int | None = None

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> Call:
        """Scores for inputs; shared arguments are described in docs/arguments.md and docs/perturbation.md.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        unknown("attribute", kwargs)
        return changing(
            self,
            Ablate(self._min_examples_per_batch_grouped or 0),
            *(inputs, baselines, target, additional_forward_args),
            feature_mask=feature_mask,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        )

    attribute_future = future(attribute)


class Occlusion(FeatureAblation):
    """What the output loses when a window that slides over the inputs is replaced (Zeiler and Fergus, 2014)."""

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        sliding_window_shapes: tuple[int, ...] | tuple[tuple[int, ...], ...],
        strides: int | tuple[int, ...] | tuple[int | tuple[int, ...], ...] | None = None,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
    ) -> Call:
        """Scores for inputs, of an element the mean over the windows that hold it; docs/perturbation.md has the rest.

        Arguments:
            sliding_window_shapes: the shape of the window, without the examples, for each input.
            strides: how far it moves at a time, an int or one for each dimension, for each input; None: by 1.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        return changing(
            self,
            slide(sliding_window_shapes, strides, inputs),
            *(inputs, baselines, target, additional_forward_args),
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        )

    attribute_future = no_future


def shuffle_feature(x: Tensor, feature_mask: Tensor) -> Tensor:
    """x [examples, ...] with the elements of a boolean mask shuffled among the examples, not all left in place."""
    return torch.where(feature_mask, x[shuffle(len(x)).to(x.device)], x)


class FeaturePermutation(FeatureAblation):
    """What the output loses when a feature is shuffled among the examples (Fisher et al., 2019).

    Arguments:
        perm_func: takes an input and a feature's boolean mask, and returns the input with that feature shuffled.
    """

    _min_examples_per_batch_grouped: int | None = 2

    def __init__(
        self, forward_func: Callable[..., Any], perm_func: Callable[[Tensor, Tensor], Tensor] = shuffle_feature
    ) -> None:
        FeatureAblation.__init__(self, forward_func)
        if not callable(perm_func):
            raise ArgumentTypeError(f"perm_func: got {type(perm_func).__name__}; expected a function of (input, mask)")
        self.perm_func = perm_func

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> Call:
        """Scores for inputs of at least 2 examples; shared arguments are described in docs/perturbation.md.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        kwargs.pop("baselines", None)  # as in captum: it has none
        unknown("attribute", kwargs)
        return changing(
            self,
            Permute(
                None if self.perm_func is shuffle_feature else self.perm_func,
                self._min_examples_per_batch_grouped or 0,
            ),
            *(inputs, None, target, additional_forward_args),
            feature_mask=feature_mask,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        )

    attribute_future = future(attribute)


def unknown(name: str, kwargs: dict[str, Any]) -> None:
    """Raise where a method was given arguments that it does not have."""
    kwargs.pop("enable_cross_tensor_attribution", None)  # captum 0.8's; to 0.9 inputs may always share features
    if kwargs:
        raise ArgumentTypeError(f"{sorted(kwargs)[0]}: got an argument that {name} does not have")
