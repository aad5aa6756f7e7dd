"""A method as a frozen value: which points are evaluated, how to go back, how the results become scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import nn


class Fold(Enum):
    """How gradients become scores."""

    GRADIENT = "the gradient itself"
    ABS = "its absolute value"
    TIMES_INPUT = "times the input"
    TIMES_CHANGE = "times input minus baseline"
    TIMES_STEPS = "times the change from each point of a path to the next"
    VALUE = "no gradient: what a layer holds"
    CREDIT = "no gradient: changes of the output, each credited to the features that made it"


@dataclass(frozen=True, slots=True)
class Cam:
    """Gradients averaged over places, times the layer's values, summed over channels, only what is positive kept.

    guided: how the result is resized to weigh guided gradients of the inputs; None: it is itself the scores.
    """

    positive: bool = False
    summed: bool = True
    guided: str | None = None


@dataclass(frozen=True, slots=True)
class Once:
    """The inputs themselves."""


@dataclass(frozen=True, slots=True)
class Line:
    """Points on the straight line from baseline to input: nodes and weights of a quadrature rule on [0, 1].

    inside: from what a layer holds at the baseline to what it holds at the input.
    """

    n_steps: int
    method: str
    inside: bool = False


@dataclass(frozen=True, slots=True)
class RandomLine:
    """One uniformly drawn point on each example's line from baseline to input; inside: as of Line."""

    inside: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """The inputs against baselines: one for each example; or every one of many, which are the same for all examples
    unless each says how many rows of its own an example has.
    """

    many: bool = False
    each: int = 0


@dataclass(frozen=True, slots=True)
class Ablate:
    """Every feature alone replaced by its baseline; least: features of an input of fewer rows score zero."""

    least: int = 0


@dataclass(frozen=True, slots=True)
class Slide:
    """Windows that slide over the inputs, replaced by baselines: a shape and strides for each input."""

    windows: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Permute:
    """Every feature alone shuffled among the examples.

    function: a user's way to shuffle, (input, mask) -> rows. least: features of an input of fewer rows score zero.
    """

    function: Callable[..., Any] | None = None
    least: int = 2


@dataclass(frozen=True, slots=True)
class Orders:
    """Features that join one by one, in random orders; n_samples: how many, None: every one there is.

    antithetic: each second order is the one before it backwards.
    """

    n_samples: int | None
    antithetic: bool = False


@dataclass(frozen=True, slots=True)
class Sampled:
    """Random coalitions, to which a linear model is fitted.

    surrogate: what draws and weighs them and fits, of engine.surrogate or engine.lime_base.
    by_input: scores have the form of the inputs, not one for each feature.
    """

    n_samples: int
    surrogate: Any
    by_input: bool = True

    @property
    def reason(self) -> str | None:
        """Why that does not run fused, or None."""
        reason: str | None = self.surrogate.reason
        return reason


# Points that change inputs and take no gradient.
PERTURBING = (Ablate, Slide, Permute, Orders, Sampled)


@dataclass(frozen=True, slots=True)
class Other:
    """The scores of another method's attribute, called with kwargs; reason: why that does not run fused, or None."""

    attribute: Callable[..., Any]
    kwargs: dict[str, Any]
    wants_gradient: bool
    returns_delta: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class Gradient:
    """The plain gradient; function replaces it where a user set ``gradient_func``."""

    function: Callable[..., Any] | None = None


PLAIN = Gradient()


@dataclass(frozen=True, slots=True)
class Rescale:
    """DeepLift's multipliers: changes from baseline to input in place of derivatives, unless they are below eps."""

    eps: float = 1e-10
    function: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Guided:
    """ReLU passes back what is positive; where it was itself positive, too, unless deconvolution is wanted."""

    deconvolution: bool = False
    function: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Relevance:
    """Layer-wise relevance; modules: names and rules of those that a user set rules on, by id."""

    modules: dict[int, Any] = field(default_factory=dict)
    function: Callable[..., Any] | None = None


Rule = Gradient | Rescale | Guided | Relevance


@dataclass(frozen=True, slots=True)
class Layer:
    """What layers return, or of_input what they take.

    layers: a module or its dotted name, or a list of those. may_be_unused: the output need not depend on any of them.
    on_cpu: their scores go to the CPU.
    """

    layers: Any
    of_input: bool = False
    may_be_unused: bool = False
    on_cpu: bool = False

    @property
    def several(self) -> bool:
        """Whether a list was given, and a list is wanted."""
        return isinstance(self.layers, (list, nn.ModuleList))

    @property
    def all(self) -> tuple[Any, ...]:
        """The layers, also of one that is no list."""
        return tuple(self.layers) if self.several else (self.layers,)


@dataclass(frozen=True, slots=True)
class Neuron:
    """One number an example of what a layer holds: by indices, by slices whose numbers are added up, or by a function.

    conducts: its gradient is weighed by that of the explained output with respect to it.
    """

    layer: Layer
    selector: Any
    conducts: bool = False


@dataclass(frozen=True, slots=True)
class Noise:
    """Copies of every example with Gaussian noise; their scores fold to moments: smoothgrad, smoothgrad_sq, vargrad."""

    kind: str
    samples: int
    partition: int
    stdevs: float | tuple[float, ...]
    draw_baselines: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """points: where the model is evaluated. fold: how results become scores. rule: how to go back. noise: a tunnel.

    where: the layers that get scores, if not the inputs. read: the neuron that is explained, if not the output.
    """

    points: Once | Line | RandomLine | Pair | Ablate | Slide | Permute | Orders | Sampled | Other
    fold: Fold | Cam | Callable[..., Any]
    rule: Rule = PLAIN
    noise: Noise | None = None
    where: Layer | None = None
    read: Neuron | None = None


@dataclass(slots=True)
class Call:
    """A plan with the arguments of one call to it, as the user gave them."""

    plan: Plan
    forward_func: Any
    inputs: Any
    baselines: Any = None
    target: Any = None
    additional_forward_args: Any = None
    internal_batch_size: Any = None
    return_convergence_delta: bool = False
    has_baselines: bool = field(default=False, kw_only=True)
    feature_mask: Any = field(default=None, kw_only=True)
    perturbations_per_eval: Any = field(default=1, kw_only=True)
    show_progress: bool = field(default=False, kw_only=True)
