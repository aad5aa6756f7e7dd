"""Methods that fit a linear model to the output at random coalitions of features.

Arguments that they share:

    inputs, baselines, target, additional_forward_args, feature_mask: as of the other methods that change inputs; also
        features of different inputs are one where they have one number.
    n_samples: how many coalitions of each example the model is evaluated at.
    perturbations_per_eval: of models that mix rows, how many samples are evaluated in one forward, as in captum; of all
        others as many as memory allows, whatever this says.
    return_input_shape: return scores in the form of inputs, float32; else a row [examples, features], whose numbers
        go from the least of feature_mask to the largest.
    show_progress: show a bar.

A model of one number for all examples gets one row of scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..engine.functions import checked_function, checked_model
from ..engine.lime_base import Based
from ..engine.similarity import ExpKernel
from ..engine.surrogate import Local, Shapley
from ..errors import ArgumentError
from ..plan.samples import checked_sampling
from ..plan.spec import Call, Sampled
from ..settings import flag, positive_int
from .base import PerturbationAttribution, attribution, changing, no_future

Tensors = Tensor | tuple[Tensor, ...]


def get_exp_kernel_similarity_function(
    distance_mode: str = "cosine", kernel_width: float = 1.0
) -> Callable[..., float]:
    """A similarity_func: exp(-distance^2 / (2 kernel_width^2)) of original and perturbed inputs, flattened and joined.

    Arguments:
        distance_mode: cosine or euclidean.
        kernel_width: how wide the kernel is, a positive number.

    Raises:
        ArgumentError: another distance_mode, or a width that is not positive.
    """
    return ExpKernel(distance_mode, kernel_width)


class LimeBase(PerturbationAttribution):
    """A model fitted to the output near the inputs, where what is near is up to your functions (Ribeiro et al., 2016).

    All functions get the keyword arguments that ``attribute`` was given beside its own.

    Arguments:
        forward_func: the model, in any format, or a function of its inputs.
        interpretable_model: what is fitted: an object with fit(DataLoader), of batches of rows [n, features], values
            [n] and weights [n], and representation(), the result.
        similarity_func: (inputs, perturbed inputs, row) -> the weight of a sample, a number.
        perturb_func: (inputs) -> a sample; or a generator function of those. It is asked for one at a time.
        perturb_interpretable_space: whether a sample is a row [1, features] of interpretable_model, not perturbed
            inputs.
        from_interp_rep_transform: (row, inputs) -> perturbed inputs, where samples are rows.
        to_interp_rep_transform: (perturbed inputs, inputs) -> row, where they are not.

    Raises:
        ArgumentError: the transformation that samples need is missing.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        interpretable_model: Any,
        similarity_func: Callable[..., Any],
        perturb_func: Callable[..., Any],
        perturb_interpretable_space: bool,
        from_interp_rep_transform: Callable[..., Any] | None,
        to_interp_rep_transform: Callable[..., Any] | None,
    ) -> None:
        PerturbationAttribution.__init__(self, forward_func)
        self.interpretable_model = interpretable_model
        self.similarity_func: Any = similarity_func
        self.perturb_func: Any = perturb_func
        self.perturb_interpretable_space = perturb_interpretable_space
        self.from_interp_rep_transform = from_interp_rep_transform
        self.to_interp_rep_transform = to_interp_rep_transform
        name, transform = self._transform
        if transform is None:
            space = "rows" if perturb_interpretable_space else "perturbed inputs"
            raise ArgumentError(f"{name}: got None; expected a function, as samples are {space}")

    @property
    def _transform(self) -> tuple[str, Callable[..., Any] | None]:
        """The transformation that samples need, with its name."""
        if self.perturb_interpretable_space:
            return "from_interp_rep_transform", self.from_interp_rep_transform
        return "to_interp_rep_transform", self.to_interp_rep_transform

    @attribution
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        n_samples: int = 50,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> Call:
        """What interpretable_model.representation() returns after the fit, for one example or one number for all.

        Arguments:
            kwargs: given to all functions.

        Raises:
            ArgumentError: an argument, or what a function returned, does not fit, named in the message.
        """
        based = Based(
            checked_model(self.interpretable_model),
            checked_function("similarity_func", self.similarity_func),
            checked_function("perturb_func", self.perturb_func),
            checked_function(*self._transform),
            bool(self.perturb_interpretable_space),
            kwargs,
        )
        return changing(
            self,
            Sampled(positive_int("n_samples", n_samples), based, by_input=False),
            *(inputs, None, target, additional_forward_args),
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        )

    attribute_future = no_future

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by inputs: coefficients are not."""
        return False


class Lime(LimeBase):
    """A sparse linear model of the output where some features are their baselines (Ribeiro et al., 2016).

    Features are kept or not with equal chance; the model is scikit-learn's ``Lasso(alpha=0.01)``, fitted for all
    examples at once, without scikit-learn. Functions and models of your own are asked for one sample, or fitted to one
    example, at a time.

    Arguments:
        forward_func: the model, in any format, or a function of its inputs.
        interpretable_model: as of LimeBase; None: the Lasso.
        similarity_func: as of LimeBase; None: ``get_exp_kernel_similarity_function()``.
        perturb_func: as of LimeBase, of rows; features that are not zero are kept. None: fair draws.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        interpretable_model: Any = None,
        similarity_func: Callable[..., Any] | None = None,
        perturb_func: Callable[..., Any] | None = None,
    ) -> None:
        PerturbationAttribution.__init__(self, forward_func)
        self.interpretable_model = interpretable_model
        self.similarity_func: Any = ExpKernel() if similarity_func is None else similarity_func
        self.perturb_func: Any = perturb_func

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 25,
        perturbations_per_eval: int = 1,
        return_input_shape: bool = True,
        show_progress: bool = False,
    ) -> Call:
        """Coefficients in the form of inputs, or one for each feature.

        Raises:
            ArgumentError: an argument, or what a function returned, does not fit, named in the message.
        """
        model, perturb = self.interpretable_model, self.perturb_func
        local = Local(
            checked_function("similarity_func", self.similarity_func),
            None if model is None else checked_model(model),
            None if perturb is None else checked_function("perturb_func", perturb),
        )
        return changing(
            self,
            Sampled(positive_int("n_samples", n_samples), local, flag("return_input_shape", return_input_shape)),
            *(inputs, baselines, target, additional_forward_args),
            feature_mask=feature_mask,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        )


class KernelShap(Lime):
    """Shapley values as coefficients of a linear model (Lundberg and Lee, 2017).

    Their sum is the output at the inputs minus that at the baselines.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        PerturbationAttribution.__init__(self, forward_func)

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensors,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        feature_mask: Any = None,
        n_samples: int = 25,
        perturbations_per_eval: int = 1,
        return_input_shape: bool = True,
        show_progress: bool = False,
        *,
        sampling: str = "kernel",
    ) -> Call:
        """Shapley values, estimated, in the form of inputs, or one for each feature.

        Arguments:
            n_samples: coalitions of each example; those of all and of no features are two of them.
            sampling: "kernel": coalitions drawn anew for each example, as likely as the Shapley kernel weighs them,
                as in captum. The others draw each coalition with its complement, none twice, for all examples at once,
                beside the two that are always there, and are exact from n_samples = 2^features - 2 on. "paired": sizes
                are as likely as the kernel weighs them. "leverage": all sizes are alike (Musco and Witter, 2025).

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        shapley = Shapley(checked_sampling(sampling, positive_int("n_samples", n_samples)))
        return changing(
            self,
            Sampled(n_samples, shapley, flag("return_input_shape", return_input_shape)),
            *(inputs, baselines, target, additional_forward_args),
            feature_mask=feature_mask,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        )
