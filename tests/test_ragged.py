"""Inputs of other numbers of rows than the first, or of no elements: captum's scores in captum's forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fusum.attr
from cases import seed
from checkers import assert_same
from perturbation_cases import MASKED

captum_attr = pytest.importorskip("captum.attr", reason="captum, whose scores are the measure, is not installed")

# captum warns of masks, fusum of inputs that cannot be shuffled.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SURROGATES = ("Lime", "KernelShap")
A, B = torch.tensor([[1.0, -2.0, 3.0], [2.0, -1.0, 3.0]]), torch.tensor([1.0, 7.0, 2.0, 4.0])
EMPTY = torch.tensor([])


def summed(a: Tensor, b: Tensor) -> Tensor:
    """One number for inputs of any numbers of rows, whose order matters."""
    return (a.cumsum(0) * torch.tensor([3.0, 1.0, 2.0])).sum() + (b.cumsum(0) ** 2).sum()


def joined(a: Tensor, b: Tensor) -> Tensor:
    """A number for each row of both."""
    x = torch.cat([a, b], 1)
    return x @ torch.arange(1.0, 1 + x.shape[1])


def both(name: str, model: Callable[..., Tensor], inputs: tuple[Tensor, ...], **arguments: Any) -> Any:
    """fusum's scores, which are captum's."""

    def found(attr: Any) -> Any:
        seed()
        return getattr(attr, name)(model).attribute(inputs, **arguments)

    ours = found(fusum.attr)
    assert_same(ours, found(captum_attr), rtol=1e-4, atol=1e-4)
    return ours


FEATURES = {
    "elements": None,
    "own": (torch.tensor([[0, 1, 2]]), torch.tensor([3])),
    "shared": (torch.tensor([[0, 1, 2]]), torch.tensor([0])),
}


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("name", [*MASKED, *SURROGATES])
@pytest.mark.parametrize("rows", [1, 2])
def test_other_numbers_of_rows(name: str, features: str, rows: int) -> None:
    a, b = both(name, summed, (A[:rows], B), feature_mask=FEATURES[features])
    assert a.shape == (1, 3)
    assert b.shape == ((4,) if name in SURROGATES and rows == 1 else (1,))


@pytest.mark.parametrize("features", ["own", "shared"])
@pytest.mark.parametrize("name", ["FeatureAblation", "FeaturePermutation", *SURROGATES])
def test_an_input_without_rows_scores_zero(name: str, features: str) -> None:
    _, b = both(name, summed, (A, EMPTY), feature_mask=FEATURES[features])
    assert not b.any()


@pytest.mark.parametrize("mask", [None, [0, 1, 1]], ids=str)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", [*MASKED, *SURROGATES])
def test_rows_without_elements(name: str, rows: int, mask: Any) -> None:
    if name == "ShapleyValues" and mask:
        pytest.skip("captum raises an error of torch")
    masks = mask and (torch.tensor([mask]), torch.tensor([[]], dtype=torch.int64))
    a, b = both(name, joined, (A[:rows], torch.zeros(rows, 0)), feature_mask=masks)
    assert (a.shape, b.shape) == ((rows, 3), (rows, 0))


def test_a_group_that_cannot_be_shuffled_as_a_whole_is_not_shuffled() -> None:
    """Of a feature that one of its inputs has in a single row, the others' rows stay, too, and nothing is drawn."""
    masks = (torch.tensor([[0, 1, 2]]), torch.tensor([2]))
    a, b = both("FeaturePermutation", summed, (A[:1], B), feature_mask=masks)
    assert not a.any()
    assert not b.any()


@pytest.mark.parametrize("least", [2, 3])
@pytest.mark.parametrize("name", ["FeatureAblation", "FeaturePermutation"])
def test_the_least_number_of_rows_can_be_set_as_in_captum(name: str, least: int) -> None:
    def found(attr: Any) -> Any:
        method = getattr(attr, name)(summed)
        method._min_examples_per_batch_grouped = least
        seed()
        return method.attribute((B[:, None] * A[:1], B[:2]), feature_mask=(torch.tensor([[0, 1, 2]]), torch.tensor(0)))

    a, b = found(fusum.attr)
    assert_same((a, b), found(captum_attr))
    assert a[:, 1:].all()
    assert bool(a[:, 0].any()) == bool(b.any()) == (least == 2)
