"""LRP's propagation rules, which a user sets on modules as ``module.rule``."""

from __future__ import annotations

from torch import Tensor


class PropagationRule:
    """How relevance goes back through a layer: in the shares of a_i w_ij in its output, which is kept from zero.

    A rule of your own overrides ``weights``.
    """

    STABILITY_FACTOR = 1e-9

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight and bias to share by, in place of the layer's own; new tensors."""
        return weight, bias

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"


class EpsilonRule(PropagationRule):
    """Shares by the layer's own weights (Bach et al., 2015); a larger epsilon absorbs more relevance."""

    def __init__(self, epsilon: float = 1e-9) -> None:
        self.STABILITY_FACTOR = epsilon

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epsilon={self.STABILITY_FACTOR!r})"


class GammaRule(PropagationRule):
    """Positive weights count 1 + gamma times (Montavon et al., 2019)."""

    def __init__(self, gamma: float = 0.25, set_bias_to_zero: bool = False) -> None:
        self.gamma = gamma
        self.set_bias_to_zero = set_bias_to_zero

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """weight + gamma * its positive part."""
        return weight + self.gamma * weight.clamp(min=0), None if self.set_bias_to_zero else bias


class Alpha1_Beta0_Rule(PropagationRule):
    """Only positive weights count (Bach et al., 2015); not for batch norm, whose bias is no bias in this sense."""

    def __init__(self, set_bias_to_zero: bool = False) -> None:
        self.set_bias_to_zero = set_bias_to_zero

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The positive part of weight."""
        return weight.clamp(min=0), None if self.set_bias_to_zero else bias


class IdentityRule(EpsilonRule):
    """Relevance passes a layer whose output has the shape of its input unchanged."""


def as_rule(given: object) -> PropagationRule | None:
    """A rule that a user set on a module: one of these, or captum's own of the same name; None for anything else."""
    if isinstance(given, PropagationRule):
        return given
    kind = type(given)
    match kind.__name__ if kind.__module__.startswith("captum.") else "":
        case "EpsilonRule" | "IdentityRule" as name:
            own = EpsilonRule if name == "EpsilonRule" else IdentityRule
            return own(getattr(given, "STABILITY_FACTOR", 1e-9))
        case "GammaRule":
            return GammaRule(getattr(given, "gamma", 0.25), getattr(given, "set_bias_to_zero", False))
        case "Alpha1_Beta0_Rule":
            return Alpha1_Beta0_Rule(getattr(given, "set_bias_to_zero", False))
    return None
