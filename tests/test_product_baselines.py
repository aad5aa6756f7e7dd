"""Baselines drawn from lists of candidates: captum's draws for the same seed of Python's random."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fusum import ArgumentError, ArgumentTypeError
from fusum.attr import ProductBaselines

LISTS = [[1, 2, 3], ["a", "b"], [None], [0.5, 0.25, 0.125, 0.0]]
NAMED: dict[Any, list[Any]] = {
    "age": [20, 30, 40],
    ("city", "country"): [("Paris", "France"), ("Rome", "Italy"), ("Oslo", "Norway")],
    "name": ["Ann", "Bo"],
    ("one",): [(1,), (2,)],
}


@pytest.mark.parametrize("values", [LISTS, NAMED, [], {}], ids=["lists", "named", "no-lists", "no-names"])
def test_same_draws_as_captum(values: Any) -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose draws are the measure, is not installed")
    ours, theirs = ProductBaselines(values), captum_attr.ProductBaselines(values)
    drawn = []
    for each in (ours, theirs):
        random.seed(3)
        drawn.append([each.sample() if i % 2 else each() for i in range(40)])
    assert drawn[0] == drawn[1]
    assert [list(a) for a in drawn[0]] == [list(b) for b in drawn[1]], "the order of names"
    assert (ours.dict_keys, ours.baseline_values) == (theirs.dict_keys, theirs.baseline_values)


def test_every_combination_comes() -> None:
    random.seed(0)
    product = ProductBaselines([[1, 2], [3, 4, 5]])
    assert {tuple(product()) for _ in range(200)} == {(a, b) for a in (1, 2) for b in (3, 4, 5)}


def test_what_belongs_together_stays_together() -> None:
    random.seed(0)
    product = ProductBaselines(NAMED)
    drawn = [product() for _ in range(100)]
    assert {(d["city"], d["country"]) for d in drawn} == set(NAMED["city", "country"])
    assert all(set(d) == {"age", "city", "country", "name", "one"} for d in drawn)


@pytest.mark.parametrize(
    ("values", "names", "kind"),
    [
        (5, "baseline_values: got int", ArgumentTypeError),
        ("abc", "baseline_values: got str", ArgumentTypeError),
        ([[1], 2], r"baseline_values\[1\]: got int", ArgumentTypeError),
        ([[1], {1, 2}], r"baseline_values\[1\]: got set", ArgumentTypeError),
        ({"a": "xyz"}, r"baseline_values\['a'\]: got str", ArgumentTypeError),
        ([[1], []], r"baseline_values\[1\]: got no candidate", ArgumentError),
        ({"a": [1], "b": []}, r"baseline_values\['b'\]: got no candidate", ArgumentError),
        ({("a", "b"): [(1, 2), (1,)]}, r"baseline_values\[\('a', 'b'\)\]\[1\]: got \(1,\)", ArgumentError),
        ({("a", "b"): [(1, 2), 3]}, r"baseline_values\[\('a', 'b'\)\]\[1\]: got 3", ArgumentError),
    ],
)
def test_refused(values: Any, names: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"^{names}.*; expected"):
        ProductBaselines(values)
