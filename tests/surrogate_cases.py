"""The rows of the case table for linear models fitted to coalitions: class x model x arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from cases import Case, _baselines, _targets
from checkers import flat
from models import noise, tokens
from perturbation_cases import AGGREGATES, MASKS, MIXING, TYPES

METHODS = ("Lime", "KernelShap")
# Forms of arguments for which captum raises, the first two for KernelShap, and what those mean in other words.
ONE_FEATURE = ("one-number", "one-for-all")
RAISES = ("zero-dim", "int32", "uint8")
ALIKE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zero-dim": ({"target": torch.tensor(0)}, {"target": 0}),
    "int32": ({"target": torch.tensor(1, dtype=torch.int32)}, {"target": 1}),
    "uint8": (
        {"feature_mask": torch.tensor([[0, 0, 1, 1, 2, 2, 2, 2]], dtype=torch.uint8)},
        {"feature_mask": torch.tensor([[0, 0, 1, 1, 2, 2, 2, 2]])},
    ),
    "fewer-dimensions": (
        {"feature_mask": torch.tensor([0, 0, 1, 3, 2, 1, 1, 2])},
        {"feature_mask": torch.tensor([[0, 0, 1, 3, 2, 1, 1, 2]])},
    ),
}
MODELS = ("mlp", "cnn", "two_inputs", "number", "column", "tokens", "one_row", "three", "in_a_dict")


def case(name: str, model: str, label: str = "", options: dict[str, Any] | None = None, **arguments: Any) -> Case:
    """A row of a class, with few samples and no baselines unless it has its own."""
    title = f"{name}-{model}{label and '-' + label}"
    return Case(title, (name,), model, {"baselines": None, "n_samples": 20, **arguments}, options or {})


def _every_argument(name: str) -> Iterator[Case]:
    for model, evals in product((*MODELS, "ignores", "mixed", *TYPES), (1, 3)):
        yield case(name, model, f"{evals}-at-once", perturbations_per_eval=evals)
    for form, model, target in _targets():
        if form not in RAISES:
            yield case(name, model, f"target-{form}", target=target)
    for form, model, baselines in _baselines():
        if model != "flat":
            yield case(name, model, f"baselines-{form}", baselines=baselines)
    for (form, model, mask), shape in product(MASKS, (True, False)):
        if form not in RAISES and not (name == "KernelShap" and form in ONE_FEATURE):
            yield case(name, model, f"mask-{form}-{shape}", feature_mask=mask, return_input_shape=shape)
    for n, model in product((1, 2, 3, 5, 8, 9, 10, 60), ("mlp", "one_row", "two_inputs")):
        yield case(name, model, f"{n}-samples", n_samples=n)
    for model, shape in product(MODELS, (True, False)):
        yield case(name, model, f"form-{shape}", return_input_shape=shape)
    yield case(name, "mlp", "tuple-of-one", inputs=(noise(5, 8),))
    yield Case(f"{name}-mlp-defaults", (name,), "mlp", {"baselines": None})


def _every_output(name: str) -> Iterator[Case]:
    """Models of one number for all examples, and such whose rows have to do with each other."""
    each = torch.randint(0, 4, (4, 6), generator=torch.Generator().manual_seed(2))
    for model, shape in product([m for m in AGGREGATES if m != "row_of_batch"], (True, False)):
        yield case(name, model, f"{shape}", return_input_shape=shape)
        yield case(name, model, f"masked-{shape}", return_input_shape=shape, feature_mask=each)
        yield case(name, model, f"baselines-{shape}", return_input_shape=shape, baselines=noise(4, 6, seed=3))
    for model in MIXING:
        yield case(name, model)
        yield case(name, model, "masked", feature_mask=each, baselines=noise(4, 6, seed=3))


def rows_of(name: str) -> list[Case]:
    """All rows of a class, of which captum is the measure."""
    return [*_every_argument(name), *_every_output(name)]


def assert_near(found: Any, expected: Any, tolerance: float) -> None:
    """The same form, dtypes and shapes, and values to a share of the largest."""
    ours, theirs = flat(found), flat(expected)
    assert isinstance(found, tuple) == isinstance(expected, tuple)
    assert [(x.shape, x.dtype) for x in ours] == [(x.shape, x.dtype) for x in theirs]
    largest = max(float(x.abs().max()) for x in theirs)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance * largest, equal_nan=True)


# Functions of users.


def near(original: Any, perturbed: Any, row: Tensor, **kwargs: Any) -> Tensor:
    """A similarity_func of a tensor."""
    return torch.exp(-(original - perturbed).norm() / 2)


def noisy(original: Any, perturbed: Any, row: Tensor, **kwargs: Any) -> float:
    """A similarity_func of a number that draws one, too."""
    return math.exp(-float((original - perturbed).abs().mean())) + 0.01 * torch.rand(()).item()


def few(original: Any, num_interp_features: int, **kwargs: Any) -> Tensor:
    """A perturb_func that keeps few features."""
    return torch.bernoulli(torch.full((1, num_interp_features), 0.3))


def many(original: Any, num_interp_features: int, **kwargs: Any) -> Iterator[Tensor]:
    """A perturb_func that is a generator, of rows that are not 0 or 1."""
    while True:
        yield torch.bernoulli(torch.full((1, num_interp_features), 0.7)) * 2


def short(original: Any, num_interp_features: int, **kwargs: Any) -> Iterator[Tensor]:
    """A generator that ends before n_samples."""
    for _ in range(13):
        yield (torch.rand(1, num_interp_features) > 0.5).long()


FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "near": {"similarity_func": near},
    "noisy": {"similarity_func": noisy},
    "few": {"perturb_func": few},
    "many": {"perturb_func": many},
    "short": {"perturb_func": short},
    "near-few": {"similarity_func": near, "perturb_func": few},
    "noisy-many": {"similarity_func": noisy, "perturb_func": many},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "each": {"target": torch.tensor([0, 1, 2, 0, 1]), "baselines": noise(5, 8, seed=3)},
    "rows": {"baselines": 0.3, "return_input_shape": False, "feature_mask": torch.tensor([[2, 2, 3, 4, 6, 6, 6, 3]])},
    "masks": {"feature_mask": tokens(5, 8, most=4, seed=5) - 1, "perturbations_per_eval": 3},
    "one": {"inputs": noise(1, 8), "return_input_shape": False},
}
