"""Explains PyTorch models: the classes of ``captum.attr`` from fused kernels, on models of any format."""

from . import attr
from .errors import ArgumentError, ArgumentTypeError, MissingTargetError, NoGradientError, StrictError, TargetError
from .patch import patch, unpatch
from .settings import config

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "MissingTargetError",
    "NoGradientError",
    "StrictError",
    "TargetError",
    "attr",
    "config",
    "patch",
    "unpatch",
]
