"""Fixtures of several files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import Tensor

from fusum import ops
from fusum.engine import cpu


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """By the name of an op: the rows of each of its calls from then on."""

    def count(name: str) -> list[int]:
        seen, op = list[int](), getattr(ops, name)

        def call(points: Tensor, *rest: Any) -> Any:
            seen.append(len(points))
            return op(points, *rest)

        monkeypatch.setattr(ops, name, call)
        return seen

    return count


@pytest.fixture
def never_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no test had called torch.compile, after which operators are called as they are."""
    monkeypatch.setattr(cpu, "_has_compiled", lambda: False)


@pytest.fixture
def ours() -> Iterator[Callable[..., Any]]:
    """Calls a function whose operators are called in our own way."""
    call = ops.compiled.Call()
    call.enter()

    def within(function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        with ops.compiled.OurWay(plainly=True):
            return function(*args, **keywords)

    yield within
    call.leave()
