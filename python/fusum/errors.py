"""The errors fusum raises for bad arguments; each names the argument, what came and what was expected."""

from __future__ import annotations


class ArgumentError(ValueError, AssertionError):
    """A bad argument; also an AssertionError, because that is what scripts written for captum catch."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of the wrong type."""


class TargetError(ArgumentError, IndexError):
    """A target that does not fit the output of the model."""


class UnusedError(ArgumentError, RuntimeError):
    """The output does not depend on what it is to be explained by; also a RuntimeError, as autograd's own is."""


class StrictError(RuntimeError):
    """A call would leave the fused path while ``strict`` is on; the message says why it would."""
