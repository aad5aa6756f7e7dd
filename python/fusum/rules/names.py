"""Lists of operators, from operators.txt."""

from __future__ import annotations

from functools import cache
from pathlib import Path


def operators(kind: str) -> frozenset[str]:
    """The names of all operators of a kind."""
    return frozenset(_sections()[kind])


@cache
def _sections() -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("operators.txt").read_text().splitlines():
        if line.startswith("["):
            names = sections[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            names.extend(line.split())
    return sections
