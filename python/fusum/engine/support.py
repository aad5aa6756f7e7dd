"""Why a call cannot take the fused path, in words; decided before it runs, never by catching an error."""

from __future__ import annotations

from collections.abc import Iterable

from .. import ops
from ..errors import StrictError
from ..plan.spec import Other, Plan, Sampled
from ..settings import current

REPLACED_GRADIENT = "gradient_func was replaced, so its own way of taking gradients is called"


def why_not_fused(plan: Plan) -> str | None:
    """The reason why this plan would not run fused, or None where it does."""
    if plan.rule.function is not None:
        return REPLACED_GRADIENT
    if isinstance(plan.points, (Other, Sampled)) and plan.points.reason is not None:
        return plan.points.reason
    return without_kernels()


def without_kernels() -> str | None:
    """The reason why the calling thread runs reference ops, or None where it runs kernels."""
    if current().backend == "reference":
        return 'the reference ops were asked for (backend="reference")'
    return None if ops.kernels_loaded() else ops.why_not()


def insist(plan: Plan) -> None:
    """Raise where this plan would not run fused: what ``strict`` asks for."""
    reason = why_not_fused(plan)
    if reason is not None:
        raise StrictError(f"strict: this call would leave the fused path: {reason}")


def some(names: Iterable[str], most: int = 20) -> str:
    """A list of names for a message, cut short."""
    listed = [name for name in names if name]
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "") or "no layer at all"
