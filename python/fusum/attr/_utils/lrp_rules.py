"""``captum.attr._utils.lrp_rules``: the rules to set as ``module.rule`` for LRP."""

from ..relevance import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, IdentityRule, PropagationRule

__all__ = ["Alpha1_Beta0_Rule", "EpsilonRule", "GammaRule", "IdentityRule", "PropagationRule"]
