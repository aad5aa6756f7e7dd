"""The base classes, and the decorator that turns a plan into an ``attribute`` method."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, ParamSpec

from torch import Tensor
from torch.nn.functional import interpolate

from .. import profile, progress
from ..engine.gradients import compute_gradients
from ..engine.run import convergence_delta, run, run_future
from ..engine.support import why_not_fused
from ..plan.spec import PLAIN, Call, Fold, Gradient, Layer, Once, Plan
from ..settings import flag

P = ParamSpec("P")


def attribution(build: Callable[P, Call]) -> Callable[P, Any]:
    """Make ``attribute`` of a method that builds a Call: the engine runs it.

    It takes ``show_progress``, as a keyword where the method itself does not.
    As in captum, ``attribute.__wrapped__`` runs the same uncounted; ``attribute.build`` is the method itself.
    """
    form = signature(build)
    added = "show_progress" not in form.parameters

    @wraps(build)
    def plain(*args: P.args, **kwargs: P.kwargs) -> Any:
        show = added and flag("show_progress", kwargs.pop("show_progress", False))
        return _run(args[0], build(*args, **kwargs), show)

    vars(plain).pop("__wrapped__")
    vars(plain).update(__signature__=_with_show_progress(form) if added else form, build=build)

    @wraps(plain)
    def attribute(*args: P.args, **kwargs: P.kwargs) -> Any:
        show = added and flag("show_progress", kwargs.pop("show_progress", False))
        call = build(*args, **kwargs)
        if profile.calls is None:
            return _run(args[0], call, show)
        with profile.timed(type(args[0]).__name__, why_not_fused(call.plan)):
            return _run(args[0], call, show)

    vars(attribute)["made"] = attribute
    return attribute


def _with_show_progress(form: Signature) -> Signature:
    last = Parameter("show_progress", Parameter.KEYWORD_ONLY, default=False, annotation="bool")
    return form.replace(parameters=sorted([*form.parameters.values(), last], key=lambda p: p.kind))


def _run(owner: Any, call: Call, show: bool) -> Any:
    with bar(owner, show or call.show_progress):
        return run(call)


def bar(owner: Any, show_progress: Any) -> progress.shown:
    """The context of a call of owner's, with a bar in owner's name if one is to be shown."""
    return progress.shown(f"{owner.get_name()} attribution" if flag("show_progress", show_progress) else None)


def built(method: Any, owner: Any, *args: Any) -> Call:
    """The Call that method's ``attribute`` builds, for an object that need not be one of method."""
    call: Call = method.attribute.build(owner, *args)
    return call


def changing(owner: Any, points: Any, *given: Any, **options: Any) -> Call:
    """The Call of a method that changes inputs, at points of plan.spec.PERTURBING.

    Arguments:
        given: inputs, baselines, target and additional_forward_args.
        options: feature_mask, perturbations_per_eval and show_progress.
    """
    return Call(Plan(points, Fold.CREDIT), owner.forward_func, *given, has_baselines=True, **options)


def has_integers(inputs: Any) -> bool:
    """Whether any of the inputs holds integers, such as token ids, which take neither noise nor points between them."""
    items = inputs if isinstance(inputs, tuple) else (inputs,)
    return any(isinstance(x, Tensor) and not x.is_floating_point() for x in items)


def build_of(method: Any) -> Callable[..., Call] | None:
    """The function that builds a method's Call, or None where its attribute is not one that attribution made."""
    attribute = getattr(type(method), "attribute", None)
    made = getattr(attribute, "made", None)  # a wrapper copies it, but it still names the function that was wrapped
    own = made is attribute is not None and "attribute" not in getattr(method, "__dict__", {})
    return getattr(attribute, "build", None) if own else None


class Attribution(metaclass=ABCMeta):
    """What all methods share: a model, or any function of its inputs, to explain.

    Its metaclass lets classes of an installed captum count as subclasses while fusum stands in for it.
    """

    attribute: Callable[..., Any]
    attribute_future: Callable[..., Any]
    compute_convergence_delta: Callable[..., Any]

    # Base classes are called by name, not through super(): captum's classes call them on objects that are not ours.
    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by inputs (global attribution) or not (local attribution)."""
        return False

    def has_convergence_delta(self) -> bool:
        """Whether the method can return a convergence delta."""
        return False

    @classmethod
    def get_name(cls) -> str:
        """The class name in words: "Integrated Gradients"."""
        return "".join(c if c.islower() or i == 0 else " " + c for i, c in enumerate(cls.__name__))


class GradientAttribution(Attribution):
    """Methods that take gradients; gradient_func may be replaced by a function of the same arguments."""

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        Attribution.__init__(self, forward_func)
        self.gradient_func = compute_gradients

    @property
    def _rule(self) -> Gradient:
        """How this object goes back: the plain gradient, or the function that replaced it."""
        return PLAIN if self.gradient_func is compute_gradients else Gradient(self.gradient_func)

    def compute_convergence_delta(
        self,
        attributions: Tensor | tuple[Tensor, ...],
        start_point: Any,
        end_point: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """Sum of each example's attributions minus f(end_point) - f(start_point): [examples].

        Arguments:
            attributions: scores in the form of end_point.
            start_point: baselines in any form.
            end_point: the inputs.
            target, additional_forward_args: as given to ``attribute``. Without a target f is the sum of its numbers.

        Raises:
            ArgumentError: the arguments do not fit each other.
        """
        where = Layer(self.layer) if isinstance(self, LayerAttribution) else None
        points = Plan(Once(), Fold.GRADIENT, Gradient(compute_gradients), where=where)
        call = Call(
            points, self.forward_func, end_point, start_point, target, additional_forward_args, has_baselines=True
        )
        return convergence_delta(call, attributions)


class PerturbationAttribution(Attribution):
    """Methods that change inputs and watch the output."""

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        Attribution.__init__(self, forward_func)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by inputs: changes of the output are."""
        return True


class InternalAttribution(Attribution):
    """Methods that look at a layer inside the model."""

    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        Attribution.__init__(self, forward_func)
        self.layer = layer
        self.device_ids = device_ids


class LayerAttribution(InternalAttribution):
    """Methods that give scores to a layer's values."""

    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        InternalAttribution.__init__(self, forward_func, layer, device_ids)

    @staticmethod
    def interpolate(
        layer_attribution: Tensor, interpolate_dims: int | tuple[int, ...], interpolate_mode: str = "nearest"
    ) -> Tensor:
        """Resize scores [N, C, ...] to spatial size interpolate_dims, to lay them over an input."""
        return interpolate(layer_attribution, interpolate_dims, mode=interpolate_mode)


class NeuronAttribution(InternalAttribution):
    """Methods that explain one neuron of a layer."""

    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: list[int] | None = None) -> None:
        InternalAttribution.__init__(self, forward_func, layer, device_ids)


def future(attribute: Callable[..., Any]) -> Callable[..., Any]:
    """attribute_future of a class: as its attribute, of a model that returns ``torch.futures.Future``s."""
    build = vars(attribute)["build"]

    @wraps(build)
    def attribute_future(*args: Any, **kwargs: Any) -> Any:
        call = build(*args, **kwargs)
        with bar(args[0], call.show_progress):
            return run_future(call)

    return attribute_future


def no_future(self: Attribution) -> None:
    """Futures are not supported by this method."""
    raise NotImplementedError(f"attribute_future is not implemented for {type(self).__name__}")
