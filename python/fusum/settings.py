"""Settings that belong to no single method, one set a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

from .errors import ArgumentError, ArgumentTypeError

BACKENDS = ("auto", "reference")
_UNITS = {"kb": 2**10, "mb": 2**20, "gb": 2**30}


@dataclass(frozen=True, slots=True)
class Settings:
    """max_rows: most rows a model sees at once. memory: bytes for a chunk's activations. None: automatic."""

    max_rows: int | None = None
    memory: int | None = None
    backend: str = "auto"
    strict: bool = False


def positive_int(name: str, value: Any) -> int:
    """value as an int of at least 1, or an error that names the argument."""
    if type(value) is int and value > 0:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ArgumentTypeError(f"{name}: got {value!r} ({type(value).__name__}); expected an integer of at least 1")
    number = int(value.__index__())
    if number < 1:
        raise ArgumentError(f"{name}: got {number}; expected an integer of at least 1")
    return number


def _optional_rows(value: Any) -> int | None:
    return None if value is None else positive_int("max_rows", value)


def _bytes(value: Any) -> int | None:
    if isinstance(value, str) and value[-2:].lower() in _UNITS:
        try:
            value = int(float(value[:-2]) * _UNITS[value[-2:].lower()])
        except (ValueError, OverflowError):
            raise ArgumentError(f'memory: got {value!r}; expected bytes or text such as "512MB"') from None
    return None if value is None else positive_int("memory", value)


def _backend(value: Any) -> str:
    if value not in BACKENDS:
        raise ArgumentError(f"backend: got {value!r}; expected one of {list(BACKENDS)}")
    return str(value)


def flag(name: str, value: Any) -> bool:
    """value if it is a bool, or an error that names the argument."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name}: got {value!r} ({type(value).__name__}); expected True or False")
    return value


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "max_rows": _optional_rows,
    "memory": _bytes,
    "backend": _backend,
    "strict": partial(flag, "strict"),
}


def _from_environment() -> Settings:
    backend = os.environ.get("FUSUM_BACKEND") or "auto"
    if backend not in BACKENDS:
        raise ArgumentError(f"FUSUM_BACKEND: got {backend!r}; expected one of {list(BACKENDS)}")
    return Settings(backend=backend, strict=os.environ.get("FUSUM_STRICT", "") not in ("", "0"))


class _PerThread(threading.local):
    settings = _from_environment()


_thread = _PerThread()


def current() -> Settings:
    """The calling thread's settings."""
    return _thread.settings


class config:
    """Set options for the calling thread, at once; used in a ``with`` statement, the old values return at its end.

    Arguments:
        max_rows: most rows (examples x points) that a model sees at once; None chooses automatically.
        memory: for the activations of one chunk, in bytes or as text such as "512MB"; None chooses automatically.
        backend: "auto" (compiled kernels where they are built) or "reference" (pure PyTorch).
        strict: raise where a call would leave the fused path, instead of taking the slower one.

    Raises:
        ArgumentError: an unknown option or a value out of range.
    """

    def __init__(self, **options: Any) -> None:
        self._before = _thread.settings
        unknown = sorted(set(options) - set(Settings.__slots__))
        if unknown:
            raise ArgumentError(
                f"config: got unknown option {unknown[0]!r}; expected one of {list(Settings.__slots__)}"
            )
        checked: dict[str, Any] = {name: _CHECKS[name](value) for name, value in options.items()}
        _thread.settings = replace(self._before, **checked)

    def __enter__(self) -> Settings:
        return _thread.settings

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _thread.settings = self._before
