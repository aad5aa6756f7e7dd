"""Loads the compiled library, defines the schemas where it did not load, and registers the reference bodies."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Callable, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parent.parent
_TAGS = {  # as in csrc/ops/schema.cpp
    "FUSUM_OP": (torch.Tag.pt2_compliant_tag,),
    "FUSUM_RANDOM_OP": (torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded),
}
_BUILD_RECORD = _PACKAGE / "_build.json"  # written by setup.py


def schemas() -> dict[str, tuple[torch.Tag, ...]]:
    """The schema lines of schema.def, each with the tags of its op."""
    text = Path(__file__).with_name("schema.def").read_text()
    return {schema: _TAGS[kind] for kind, schema in re.findall(r'^(FUSUM_\w+)\("(.*)"\)', text, re.MULTILINE)}


def kernels_loaded() -> bool:
    """Whether the compiled kernels are in use."""
    return _reason is None


def why_not() -> str | None:
    """Why the compiled kernels are not in use, in words; None where they are."""
    return _reason


def register(bodies: Mapping[str, Callable[..., Any]]) -> None:
    """Give every op its reference body, which kernels override."""
    for schema, tags in schemas().items() if _reason else ():
        _fragment.define(schema, tags=tags)
    for name, body in bodies.items():
        _fragment.impl(name, body, "CompositeExplicitAutograd")


def _load() -> str | None:
    """Load the library; the reason in words where that is not possible or not wanted."""
    if os.environ.get("FUSUM_BACKEND") == "reference":
        return "FUSUM_BACKEND=reference is set"
    record = json.loads(_BUILD_RECORD.read_text()) if _BUILD_RECORD.is_file() else {}
    if record.get("reason"):
        return str(record["reason"])
    library = next(filter(Path.is_file, (_PACKAGE / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES)), None)
    if library is None:
        others = ", ".join(sorted(path.name for path in _PACKAGE.glob("_C.*")))
        found = f"{others} is for another Python" if others else "no library was built"
        return f"{found}: run pip install --no-build-isolation . in the source folder"
    here = torch.__version__
    built_for = record.get("torch", here)
    if built_for != here:
        return f"the library was built for torch {built_for}, but this is torch {here}: install fusum again"
    try:
        # Not torch.ops.load_library: the library is a Python module, too.
        modules.append(importlib.import_module("fusum._C"))
    except ImportError as error:
        return f"the library does not load with torch {here} ({error}): install fusum again"
    return None


modules: list[ModuleType] = []  # fusum._C, if it is in use
_reason = _load()
_fragment = torch.library.Library("fusum", "FRAGMENT")
