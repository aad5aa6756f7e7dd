"""Puts fusum's classes in place of captum's inside an installed captum, and back."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from . import attr

# (module or class, name, captum's own value) of everything that was replaced.
_replaced: list[tuple[Any, str, Any]] = []


def patch() -> None:
    """Replace captum's classes by fusum's in every module of captum that holds them.

    Call it before `from captum.attr import ...`: names that a script has taken already stay captum's.

    Raises:
        ImportError: captum is not installed.
    """
    if _replaced:
        return
    try:
        captum = importlib.import_module("captum.attr")
    except ModuleNotFoundError as error:
        raise ImportError("fusum.patch: captum is not installed; import fusum.attr instead of captum.attr") from error
    ours = {getattr(captum, name): getattr(attr, name) for name in attr.__all__ if hasattr(captum, name)}
    for theirs, mine in ours.items():
        if hasattr(mine, "register"):
            mine.register(theirs)  # captum's other classes still count as, say, GradientAttribution
    for module in _captum_modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value in ours:
                _replaced.append((module, name, value))
                setattr(module, name, ours[value])


def unpatch() -> None:
    """Give captum its own classes back."""
    while _replaced:
        holder, name, value = _replaced.pop()
        setattr(holder, name, value)


def _captum_modules() -> list[ModuleType]:
    return [m for n, m in list(sys.modules.items()) if n.split(".")[0] == "captum" and isinstance(m, ModuleType)]
