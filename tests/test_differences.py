"""The examples of the pages in docs hold."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("captum.attr", reason="captum, which the examples compare with, is not installed")

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "differences.md"
BLOCK = re.compile(r"^#+ (?P<title>.+?)$|^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> list[tuple[str, str]]:
    """(title of the section, code) of every block, after as many empty lines as stand before it on the page."""
    text, title, found = page.read_text(), "", []
    for match in BLOCK.finditer(text):
        title = match["title"] or title
        if match["code"]:
            found.append((title, "\n" * text.count("\n", 0, match.start("code")) + match["code"]))
    return found


def test_every_difference_has_an_example() -> None:
    titles = re.findall(r"^### (.+)$", PAGE.read_text(), re.MULTILINE)
    assert len(titles) > 15
    assert set(titles) == {title for title, _ in examples(PAGE)[1:]}
    assert all("assert " in code for _, code in examples(PAGE)[1:])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript
@pytest.mark.parametrize("name", ["differences.md", "layers.md", "perturbation.md"])
def test_the_examples_run(name: str) -> None:
    names: dict[str, Any] = {}
    blocks = examples(DOCS / name)
    assert blocks
    with warnings.catch_warnings():
        for _, code in blocks:
            exec(compile(code, str(DOCS / name), "exec"), names)
