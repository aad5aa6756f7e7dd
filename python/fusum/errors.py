"""The errors fusum raises for bad arguments; each names the argument, what came and what was expected."""

from __future__ import annotations


class ArgumentError(ValueError, AssertionError):
    """A bad argument; also an AssertionError, because that is what scripts written for captum catch."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of the wrong type."""


class TargetError(ArgumentError, IndexError, RuntimeError):
    """A target outside the model's output, or a neuron outside its layer; torch's own error of it is one of these."""


class MissingTargetError(TargetError, TypeError):
    """No target where an output has several numbers; also a TypeError, as Python's own of a missing argument is."""


class NoGradientError(ArgumentError, RuntimeError):
    """The output does not depend on what is explained; also a RuntimeError, as autograd's own error is."""


class StrictError(RuntimeError):
    """A call would leave the fused path while ``strict`` is on; the message says why it would."""
