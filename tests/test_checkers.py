"""Every checker of checkers.py passes a right answer and fails a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

import checkers
import fusum
from fusum import ArgumentError, ArgumentTypeError
from models import Recorder, noise, subject

X = noise(3, 2)
NAN = torch.tensor([[torch.nan, 1.0], [1.0, 1.0]])


def fails(check: Callable[[], Any]) -> None:
    with pytest.raises(AssertionError):
        check()


def test_flat() -> None:
    assert checkers.flat(X) == (X,)
    assert checkers.flat(((X, None), X)) == (X, None, X)


def test_assert_same() -> None:
    checkers.assert_same(X, X.clone())
    checkers.assert_same(X, X + 1e-7)
    checkers.assert_same((NAN, None), (NAN.clone(), None))


@pytest.mark.parametrize(
    "wrong",
    [X + 1e-4, X.double(), X[:2], X[None], (X,), (X, X), None, X * torch.nan],
    ids=["value", "dtype", "rows", "rank", "tuple", "pair", "none", "nan"],
)
def test_assert_same_fails(wrong: Any) -> None:
    fails(lambda: checkers.assert_same(wrong, X))
    fails(lambda: checkers.assert_same(X, wrong))


def test_assert_same_fails_in_a_later_tensor() -> None:
    fails(lambda: checkers.assert_same((X, X), (X, -X)))
    fails(lambda: checkers.assert_same((X, None), (X, X)))


def test_assert_identical() -> None:
    checkers.assert_identical(X, X.clone())
    fails(lambda: checkers.assert_identical(X, torch.nextafter(X, X + 1)))


def test_assert_complete() -> None:
    checkers.assert_complete((X, X), 2 * X.sum(1), 1e-6)
    checkers.assert_complete(X[:, 0], X[:, 0], 1e-6)
    fails(lambda: checkers.assert_complete((X, X), X.sum(1), 1e-6))
    fails(lambda: checkers.assert_complete(X, X.sum(1) + torch.tensor([0, 1e-3, 0]), 1e-6))


def test_assert_no_graph() -> None:
    checkers.assert_no_graph((X, None))
    fails(lambda: checkers.assert_no_graph((X, X.clone().requires_grad_() * 2)))
    fails(lambda: checkers.assert_no_graph(X.clone().requires_grad_()))


def test_assert_nan_exactly_at() -> None:
    checkers.assert_nan_exactly_at(NAN, NAN)
    fails(lambda: checkers.assert_nan_exactly_at(torch.zeros(2, 2), NAN))
    fails(lambda: checkers.assert_nan_exactly_at(torch.full((2, 2), torch.nan), NAN))
    fails(lambda: checkers.assert_nan_exactly_at(torch.zeros(2, 2), torch.zeros(2, 2)))


def test_assert_rows_within() -> None:
    checkers.assert_rows_within([1, 3, 2], 3)
    fails(lambda: checkers.assert_rows_within([1, 4, 2], 3))
    fails(lambda: checkers.assert_rows_within([], 3))


def raiser(error: Exception) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


GOOD = ArgumentTypeError("n_steps: got 'a'; expected an integer")


def test_assert_refused() -> None:
    checkers.assert_refused(raiser(GOOD), "n_steps", [])
    checkers.assert_refused(raiser(GOOD), "n_steps", [5], ArgumentTypeError)


@pytest.mark.parametrize(
    "call",
    [
        lambda: None,
        raiser(ValueError("n_steps: got 'a'; expected an integer")),
        raiser(ArgumentError("got 'a' for n_steps; expected an integer")),
        raiser(ArgumentError("n_steps: expected an integer")),
        raiser(ArgumentError("n_steps: got 'a'")),
    ],
    ids=["nothing", "another-kind", "name-not-first", "not-what-came", "not-what-was-expected"],
)
def test_assert_refused_fails(call: Callable[[], Any]) -> None:
    fails(lambda: checkers.assert_refused(call, "n_steps", []))


def test_assert_refused_fails_on_the_kind_and_on_work() -> None:
    rows: list[int] = []

    def works_first() -> None:
        rows.append(5)
        raise GOOD

    fails(lambda: checkers.assert_refused(works_first, "n_steps", rows))
    fails(lambda: checkers.assert_refused(raiser(ArgumentError(str(GOOD))), "n_steps", [], ArgumentTypeError))


def disturb_value(model: nn.Module, x: torch.Tensor) -> None:
    x.add_(1)


def disturb_flag(model: nn.Module, x: torch.Tensor) -> None:
    x.requires_grad_()


def disturb_grad(model: nn.Module, x: torch.Tensor) -> None:
    next(model.parameters()).grad = torch.zeros_like(next(model.parameters()))


def accumulate_grad(model: nn.Module, x: torch.Tensor) -> None:
    list(model.parameters())[1].grad.add_(1)  # type: ignore[union-attr]


def disturb_weight(model: nn.Module, x: torch.Tensor) -> None:
    next(model.parameters()).data.mul_(2)


def leave_hook(model: nn.Module, x: torch.Tensor) -> None:
    model[0].register_forward_hook(lambda *_: None)  # type: ignore[index]


def leave_attribute(model: nn.Module, x: torch.Tensor) -> None:
    model[1].saved = x  # type: ignore[index]


def switch_to_training(model: nn.Module, x: torch.Tensor) -> None:
    model.train()


def keep_settings(model: nn.Module, x: torch.Tensor) -> None:
    fusum.config(max_rows=3)


def keep_jit_setting(model: nn.Module, x: torch.Tensor) -> None:
    torch._C._set_graph_executor_optimize(False)


def keep_grad_mode(model: nn.Module, x: torch.Tensor) -> None:
    torch.set_grad_enabled(False)


DISTURBANCES = [
    disturb_value,
    disturb_flag,
    disturb_grad,
    accumulate_grad,
    disturb_weight,
    leave_hook,
    leave_attribute,
    switch_to_training,
    keep_settings,
    keep_jit_setting,
    keep_grad_mode,
]


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda disturb: disturb.__name__)
def test_untouched(disturb: Callable[[nn.Module, torch.Tensor], None]) -> None:
    model, x = deepcopy(subject("mlp").module), X.clone()
    bias = list(model.parameters())[1]
    bias.grad = torch.zeros_like(bias)
    with checkers.untouched(model, x):
        x.sum()
    try:
        with pytest.raises(AssertionError), checkers.untouched(model, x):
            disturb(model, x)
    finally:
        fusum.config(max_rows=None)
        torch._C._set_graph_executor_optimize(True)
        torch.set_grad_enabled(True)


def test_recorder() -> None:
    model = Recorder(nn.Identity(), capacity=2)
    assert model(X[:2]) is not None
    with pytest.raises(torch.OutOfMemoryError):
        model(X)
    assert model.rows == [2, 3]
