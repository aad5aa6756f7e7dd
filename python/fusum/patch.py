"""Puts fusum's classes in place of captum's inside an installed captum, and back."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import wraps
from types import FunctionType, ModuleType
from typing import Any

from . import attr, profile
from .engine.model import one_by_one

# (module or class, name, captum's own value) of everything that was replaced.
_replaced: list[tuple[Any, str, Any]] = []


def patch() -> None:
    """Replace captum's classes by fusum's in every module of captum that holds them.

    A module whose own method inherits from a class keeps that one, for the method uses what is inside it.
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
    for place in ("lime", "dataloader_attr"):  # what captum's users take from inside it
        inner, theirs = (importlib.import_module(f"{root}.attr._core.{place}") for root in ("fusum", "captum"))
        ours |= {getattr(theirs, name): getattr(inner, name) for name in inner.__all__}
    for theirs, mine in ours.items():
        if hasattr(mine, "register"):
            mine.register(theirs)  # captum's other classes still count as, say, GradientAttribution
    one_by_one.add(captum.LLMAttribution)
    for module in _captum_modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, (type, FunctionType)) and value in ours and not _is_built_on(value, module, ours):
                _replaced.append((module, name, value))
                setattr(module, name, ours[value])
            if isinstance(value, type) and value.__module__ == module.__name__:
                _extend_tuples(value, ours)


def _extend_tuples(owner: type, ours: dict[Any, Any]) -> None:
    """Let a class of captum's that lists the classes it works with work with ours, too."""
    for name, value in list(vars(owner).items()):
        more = tuple([ours[c] for c in value if isinstance(c, type) and c in ours]) if isinstance(value, tuple) else ()
        if more:
            _replaced.append((owner, name, value))
            setattr(owner, name, (*value, *more))


def _is_built_on(theirs: Any, module: ModuleType, ours: dict[Any, Any]) -> bool:
    """Whether a method that stays captum's own inherits from this one, of whose inside it makes use, in its module."""
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    return "attribute" in vars(theirs) and any(theirs in c.__bases__ and c not in ours for c in classes)


def watch() -> None:
    """Let the profile count captum's classes that fusum does not replace; unpatch ends it."""
    captum = importlib.import_module("captum.attr")
    for theirs in {value for value in vars(captum).values() if isinstance(value, type)}:
        attribute = vars(theirs).get("attribute")
        if callable(attribute) and not theirs.__module__.startswith("fusum."):
            _replaced.append((theirs, "attribute", attribute))
            setattr(theirs, "attribute", _counted(attribute))  # noqa: B010


def _counted(attribute: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(attribute)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = type(self).__name__
        with profile.timed(name, f"captum's own {name} runs: fusum does not replace it"):
            return attribute(self, *args, **kwargs)

    # Other methods of captum call __wrapped__ to go uncounted.
    vars(counted)["__wrapped__"] = getattr(attribute, "__wrapped__", attribute)
    return counted


def unpatch() -> None:
    """Give captum its own classes back; its objects still count as instances of fusum's classes."""
    while _replaced:
        holder, name, value = _replaced.pop()
        setattr(holder, name, value)
    one_by_one.clear()


def _captum_modules() -> list[ModuleType]:
    return [m for n, m in list(sys.modules.items()) if n.split(".")[0] == "captum" and isinstance(m, ModuleType)]
