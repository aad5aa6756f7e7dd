"""The examples of docs/differences.md hold."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("captum.attr", reason="captum, which the examples compare with, is not installed")

PAGE = Path(__file__).resolve().parent.parent / "docs" / "differences.md"
BLOCK = re.compile(r"^#+ (?P<title>.+?)$|^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """(title of the section, code) of every block, after as many empty lines as stand before it on the page."""
    page, title, found = PAGE.read_text(), "", []
    for match in BLOCK.finditer(page):
        title = match["title"] or title
        if match["code"]:
            found.append((title, "\n" * page.count("\n", 0, match.start("code")) + match["code"]))
    return found


def test_every_difference_has_an_example() -> None:
    titles = re.findall(r"^### (.+)$", PAGE.read_text(), re.MULTILINE)
    assert len(titles) > 15
    assert set(titles) == {title for title, _ in examples()[1:]}
    assert all("assert " in code for _, code in examples()[1:])


def test_the_examples_run() -> None:
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        for _, code in examples():
            exec(compile(code, str(PAGE), "exec"), names)
