"""Methods that change the backward pass: DeepLift, DeepLiftShap, guided backpropagation, deconvolution, LRP."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError
from ..plan.propagation import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, IdentityRule, PropagationRule, as_rule
from ..plan.spec import Call, Fold, Guided, Once, Pair, Plan, Relevance, Rescale
from .base import GradientAttribution, attribution, no_future
from .gradient import FromBaselines

__all__ = [
    "LRP",
    "Alpha1_Beta0_Rule",
    "Deconvolution",
    "DeepLift",
    "DeepLiftShap",
    "EpsilonRule",
    "GammaRule",
    "GuidedBackprop",
    "IdentityRule",
    "PropagationRule",
]


class DeepLift(FromBaselines):
    """Changes from baselines to inputs, shared out by the multipliers of each operator (Shrikumar et al., 2017).

    Arguments:
        model: the model, in any format, or a function of its inputs.
        multiply_by_inputs: multiply by input minus baseline, so that an example's scores sum to f(input) - f(baseline).
        eps: an operator's derivative is taken where its input differs by no more.
    """

    def __init__(self, model: Callable[..., Any], multiply_by_inputs: bool = True, eps: float = 1e-10) -> None:
        FromBaselines.__init__(self, model, multiply_by_inputs)
        self.model = model
        self.eps = eps

    @attribution
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        custom_attribution_func: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> Call:
        """Scores in the form of inputs, with deltas [examples] if asked for; shared arguments: docs/arguments.md.

        Arguments:
            custom_attribution_func: makes scores of (multipliers), (multipliers, inputs) or (multipliers, inputs,
                baselines), tuples of tensors [examples, ...].

        Raises:
            ArgumentError: an argument does not fit, named in the message.
            StrictError: an operator has no closed rule, and strict is set.
        """
        return self._call(
            Pair(),
            inputs,
            baselines,
            target,
            additional_forward_args,
            return_convergence_delta,
            custom_attribution_func,
        )

    def _call(
        self, points: Pair, inputs: Any, baselines: Any, target: Any, extra: Any, wants_delta: bool, custom: Any
    ) -> Call:
        fold = self._fold if custom is None else _custom(custom)
        plan = Plan(points, fold, Rescale(self.eps, self._rule.function))
        return Call(plan, self.model, inputs, baselines, target, extra, None, wants_delta, has_baselines=True)


class DeepLiftShap(DeepLift):
    """DeepLift's mean over a distribution of baselines: approximate SHAP values (Lundberg and Lee, 2017).

    Arguments:
        model: the model, in any format, or a function of its inputs.
        multiply_by_inputs: multiply by input minus baseline.
    """

    def __init__(self, model: Callable[..., Any], multiply_by_inputs: bool = True) -> None:
        DeepLift.__init__(self, model, multiply_by_inputs=multiply_by_inputs)

    @attribution
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        custom_attribution_func: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> Call:
        """Scores in the form of inputs, with deltas [examples * N] if asked for, an example's side by side.

        Arguments:
            baselines: [N, ...] tensors with N > 1 for all examples, or [examples, N, ...] tensors, or a function of
                inputs, or of nothing, that returns them.
            custom_attribution_func: as in ``DeepLift``, of all pairs [examples * N, ...]; their mean is returned.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
            StrictError: an operator has no closed rule, and strict is set.
        """
        if callable(baselines):
            baselines = baselines(inputs) if inspect.signature(baselines).parameters else baselines()
        points, baselines = _distribution(inputs, baselines)
        return self._call(
            points,
            inputs,
            baselines,
            target,
            additional_forward_args,
            return_convergence_delta,
            custom_attribution_func,
        )


def _distribution(inputs: Any, baselines: Any) -> tuple[Pair, Any]:
    """How many baselines an example has, and all of them in rows."""
    items = baselines if isinstance(baselines, tuple) else (baselines,)
    xs = inputs if isinstance(inputs, tuple) else (inputs,)
    pairs = [(b, x) for b, x in zip(items, xs, strict=False) if isinstance(x, Tensor)]
    expected = "expected a tensor [N, ...] or [examples, N, ...] with N > 1 (DeepLift takes a single baseline)"
    if not pairs or not all(isinstance(b, Tensor) and b.dim() for b, _ in pairs):
        raise ArgumentTypeError(f"baselines: got {', '.join(type(b).__name__ for b in items)}; {expected}")
    own = [b.dim() == x.dim() + 1 for b, x in pairs]
    counts = {b.shape[1] if each else b.shape[0] for (b, _), each in zip(pairs, own, strict=True)}
    if len(counts) > 1 or len(set(own)) > 1 or min(counts) < 2:
        raise ArgumentError(f"baselines: got shapes {[tuple(b.shape) for b, _ in pairs]}; {expected}, the same for all")
    if not own[0]:
        return Pair(many=True), baselines
    for b, x in pairs:
        if b.shape[0] != x.shape[0]:
            raise ArgumentError(f"baselines: got baselines of {b.shape[0]} examples; expected {x.shape[0]}")
    return Pair(many=True, each=counts.pop()), tuple(b.flatten(0, 1) if isinstance(b, Tensor) else b for b in items)


def _custom(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """A user's attribution function as one of multipliers, inputs and baselines."""
    count = len(inspect.signature(function).parameters)
    if not 1 <= count <= 3:
        raise ArgumentError(
            f"custom_attribution_func: got a function of {count} arguments; expected multipliers, or multipliers and "
            "inputs, or multipliers, inputs and baselines"
        )
    return lambda *given: function(*given[:count])


class _ReluRule(GradientAttribution):
    """Methods that change what ReLU passes back."""

    _deconvolution: bool

    def __init__(self, model: Callable[..., Any]) -> None:
        GradientAttribution.__init__(self, model)
        self.model = model

    @attribution
    def attribute(
        self, inputs: Tensor | tuple[Tensor, ...], target: Any = None, additional_forward_args: Any = None
    ) -> Call:
        """Scores in the form of inputs; shared arguments are described in docs/arguments.md.

        Raises:
            ArgumentError: an argument does not fit, named in the message.
        """
        rule = Guided(self._deconvolution, self._rule.function)
        return Call(Plan(Once(), Fold.GRADIENT, rule), self.model, inputs, None, target, additional_forward_args)

    attribute_future = no_future


class GuidedBackprop(_ReluRule):
    """The gradient, of which ReLU passes what is positive where it was itself positive (Springenberg et al., 2014)."""

    _deconvolution = False


class Deconvolution(_ReluRule):
    """The gradient, of which ReLU passes what is positive, whatever its own value (Zeiler and Fergus, 2014)."""

    _deconvolution = True


class LRP(GradientAttribution):
    """Layer-wise relevance propagation: the output, shared out layer by layer (Bach et al., 2015).

    A module's rule is its attribute ``rule``, where that is set, else EpsilonRule.

    Arguments:
        model: the model, in any format, or a function of its inputs; rules other than the default need a module.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        GradientAttribution.__init__(self, model)
        self.model = model
        self._check_rules()

    @attribution
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        verbose: bool = False,
    ) -> Call:
        """Relevance in the form of inputs, with deltas [examples] if asked for; shared arguments: docs/arguments.md.

        Arguments:
            verbose: print the rule of each layer, and the layer and its name.

        Raises:
            ArgumentError: an argument, or a module's rule, does not fit, named in the message.
            ArgumentTypeError: the model calls an operator that has no rule.
        """
        rule = Relevance(self._check_rules(verbose), self._rule.function)
        plan = Plan(Once(), Fold.TIMES_INPUT, rule)
        return Call(plan, self.model, inputs, None, target, additional_forward_args, None, return_convergence_delta)

    attribute_future = no_future

    def has_convergence_delta(self) -> bool:
        """Whether the method can return a convergence delta: it can."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether scores are multiplied by inputs: relevance is."""
        return True

    def compute_convergence_delta(  # type: ignore[override]
        self, attributions: Tensor | tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        """The explained output minus the sum of each example's relevance: [examples].

        Arguments:
            attributions: relevance in the form of inputs.
            output: the explained number of each example, [examples].
        """
        items = attributions if isinstance(attributions, tuple) else (attributions,)
        return output.flatten() - sum(a.flatten(1).sum(1) if a.dim() > 1 else a for a in items)

    def _check_rules(self, verbose: bool = False) -> dict[int, tuple[str, PropagationRule]]:
        """Names and rules of the modules that a user set rules on, by id."""
        found: dict[int, tuple[str, PropagationRule]] = {}
        if not isinstance(self.model, nn.Module) or isinstance(self.model, torch.jit.ScriptModule):
            return found
        for name, module in self.model.named_modules():
            given = getattr(module, "rule", None)
            rule = as_rule(given)
            if given is not None and rule is None:
                got = type(given).__name__
                raise ArgumentTypeError(f"rule: got {got} on module {name!r}; expected a PropagationRule")
            if rule is not None:
                found[id(module)] = (name, rule)
            passes = type(module).__module__ in ("torch.nn.modules.activation", "torch.nn.modules.dropout")
            if verbose and not passes and not any(True for _ in module.children()):
                print(f"Applied {rule or EpsilonRule()} on layer {module}" + f" ({name})" * bool(name))
        return found
