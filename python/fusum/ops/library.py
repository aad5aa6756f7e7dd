"""Loads the compiled library, defines the schemas where it did not load, and registers the reference bodies."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parent.parent
_BUILD_RECORD = _PACKAGE / "_build.json"  # written by setup.py


def schemas() -> list[str]:
    """The schema lines of schema.def."""
    return re.findall(r'^FUSUM_OP\("(.*)"\)', (Path(__file__).with_name("schema.def")).read_text(), re.MULTILINE)


def kernels_loaded() -> bool:
    """Whether the compiled kernels are in use."""
    return _reason is None


def why_not() -> str | None:
    """Why the compiled kernels are not in use, in words; None where they are."""
    return _reason


def register(bodies: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Give every op its reference body and return what the wrappers call, by the op's name."""
    for schema in schemas() if _reason else ():
        _fragment.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for name, body in bodies.items():
        _fragment.impl(name, body, "CompositeExplicitAutograd")
    return {name: getattr(torch.ops.fusum, name).default for name in bodies}


def _load() -> str | None:
    """Load the library; the reason in words where that is not possible or not wanted."""
    if os.environ.get("FUSUM_BACKEND") == "reference":
        return "FUSUM_BACKEND=reference is set"
    record = json.loads(_BUILD_RECORD.read_text()) if _BUILD_RECORD.is_file() else {}
    library = next(filter(Path.is_file, (_PACKAGE / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES)), None)
    if library is None:
        others = ", ".join(sorted(path.name for path in _PACKAGE.glob("_C.*")))
        found = f"only {others}, built for another Python" if others else "none"
        return (
            record.get("reason") or f"no library ({found}): run pip install --no-build-isolation . in the source folder"
        )
    built_for = record.get("torch", torch.__version__)
    if built_for != torch.__version__:
        return (
            f"the library was built for torch {built_for}, but this is torch {torch.__version__}: install fusum again"
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return (
            f"the library does not load ({error}): install fusum again with this Python and torch {torch.__version__}"
        )
    return None


_reason = _load()
_fragment = torch.library.Library("fusum", "FRAGMENT")
