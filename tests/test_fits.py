"""The fits alone: scikit-learn's Lasso and least squares with a constraint, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

import fusum
from fusum.engine.fits import lasso, shapley

each_backend = pytest.mark.parametrize("backend", ["auto", "reference"])


def drawn(examples: int, n: int, features: int, scale: float = 1.0, used: float = 1.0) -> tuple[Tensor, ...]:
    """Random coalitions, values with an interaction and noise, and weights; used: the share of features that count."""
    g = torch.Generator().manual_seed(examples * n + features)
    rows = torch.rand(examples, n, features, generator=g) < 0.5
    slopes = torch.randn(examples, features, generator=g) * (torch.rand(examples, features, generator=g) < used)
    x = rows.double()
    values = (x @ slopes.double()[..., None])[..., 0] + 0.5 * x[..., 0] * x[..., 1] + 3
    values += 0.3 * torch.randn(examples, n, generator=g, dtype=torch.float64)
    return rows, scale * values, torch.exp(-(torch.rand(examples, n, generator=g, dtype=torch.float64) ** 2))


def sklearns(rows: Tensor, values: Tensor, weights: Tensor, dtype: type = np.float64, **options: float) -> Tensor:
    """The coefficients of scikit-learn's Lasso, example by example."""
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn, which is the measure, is not installed")
    found = []
    for x, y, w in zip(rows, values, weights, strict=True):
        given = [each.numpy().astype(dtype) for each in (x, y, w)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = linear.Lasso(**{"alpha": 0.01, **options}).fit(given[0], given[1], sample_weight=given[2])
        found.append(torch.as_tensor(fitted.coef_, dtype=torch.float64))
    return torch.stack(found)


SIZES = [
    (16, 200, 8, 1.0, 1.0),
    (16, 200, 8, 0.02, 1.0),
    (16, 50, 8, 100.0, 1.0),
    (16, 25, 8, 0.05, 1.0),
    (4, 200, 50, 1.0, 0.2),
    (4, 200, 50, 0.05, 0.2),
    (2, 400, 200, 1.0, 0.3),
    (3, 10, 8, 1.0, 1.0),
    (5, 3, 8, 1.0, 1.0),
    (5, 1, 8, 1.0, 1.0),
    (3, 20, 30, 1.0, 1.0),
    (7, 30, 2, 1.0, 1.0),
    (2, 20, 200, 1.0, 0.02),
    (1, 3, 2001, 1.0, 0.01),
]


@pytest.mark.parametrize(("examples", "n", "features", "scale", "used"), SIZES)
def test_lasso_is_that_of_scikit_learn(examples: int, n: int, features: int, scale: float, used: float) -> None:
    """After as many sweeps: those that have not converged would differ otherwise."""
    given = drawn(examples, n, features, scale, used)
    expected = sklearns(*given)
    largest = max(float(expected.abs().max()), 1e-12)
    for backend in ("auto", "reference"):
        with fusum.config(backend=backend):
            torch.testing.assert_close(lasso(*given), expected, rtol=0, atol=1e-10 * largest)
    torch.testing.assert_close(lasso(*given), sklearns(*given, dtype=np.float32), rtol=0, atol=5e-6 * largest)


@pytest.mark.parametrize("options", [{"alpha": 0.3}, {"alpha": 1e-4}, {"tol": 1e-8}, {"tol": 0.1}, {"max_iter": 3}])
@pytest.mark.filterwarnings("ignore:Lasso did not converge")
def test_lasso_of_other_options(options: dict[str, float]) -> None:
    given = drawn(8, 60, 12)
    expected = sklearns(*given, **options)
    for backend in ("auto", "reference"):
        with fusum.config(backend=backend):
            torch.testing.assert_close(lasso(*given, **options), expected, rtol=0, atol=1e-10)


def test_lasso_at_its_optimum() -> None:
    """Coefficients have the slope of the penalty, and slopes of those at zero are smaller."""
    rows, values, weights = drawn(8, 100, 12, used=0.4)
    found = lasso(rows, values, weights, alpha=0.1, tol=1e-14)
    shares = weights / weights.sum(1, keepdim=True)
    x = rows.double() - shares[:, None] @ rows.double()
    y = values - (shares * values).sum(1, keepdim=True)
    slopes = ((shares * (y - (x @ found[..., None])[..., 0]))[:, None] @ x)[:, 0]
    used = found != 0
    assert used.any()
    assert (~used).any()
    torch.testing.assert_close(slopes[used], 0.1 * found[used].sign(), rtol=0, atol=1e-6)
    assert bool((slopes[~used].abs() <= 0.1 + 1e-6).all())


@each_backend
def test_lasso_of_examples_does_not_depend_on_others(backend: str) -> None:
    given = drawn(6, 40, 9)
    with fusum.config(backend=backend):
        alone = torch.cat([lasso(*[each[i : i + 1] for each in given]) for i in range(6)])
        torch.testing.assert_close(lasso(*given), alone, rtol=0, atol=1e-13)


@each_backend
def test_lasso_of_columns_that_do_not_vary(backend: str) -> None:
    rows, values, weights = drawn(3, 40, 6)
    rows[:, :, 2] = True
    rows[0, :, 3] = False
    with fusum.config(backend=backend):
        found = lasso(rows, values, weights)
        assert bool((lasso(rows, torch.full_like(values, 2.0), weights) == 0).all())
    assert bool((found[:, 2] == 0).all())
    assert found[0, 3] == 0
    torch.testing.assert_close(found, sklearns(rows, values, weights), rtol=0, atol=1e-10)


@each_backend
@pytest.mark.parametrize("number", [torch.nan, torch.inf, 1e200])
def test_lasso_of_numbers_that_are_not_finite(number: float, backend: str) -> None:
    """Nor are the squares of some that are."""
    rows, values, weights = drawn(4, 40, 6)
    expected = lasso(rows, values, weights)
    rows = rows.double()
    values[1, 7] = rows[3, 5, 2] = number
    with fusum.config(backend=backend):
        found = lasso(rows, values, weights)
    assert bool(found[[1, 3]].isnan().all())
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=0, atol=1e-13)


@each_backend
def test_lasso_warns_where_scikit_learn_does(backend: str) -> None:
    """Also where the last sweep allowed is the one that converges, though it changes much."""
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn, which is the measure, is not installed")
    rows, values, weights = drawn(1, 60, 12)

    def warns(fit: Callable[[], object]) -> bool:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fit()
        return any("did not converge" in str(each.message) for each in said)

    found, expected = [], []
    for sweeps in range(8, 13):
        model = linear.Lasso(alpha=0.01, max_iter=sweeps)
        expected.append(warns(partial(model.fit, rows[0].numpy(), values[0].numpy(), weights[0].numpy())))
        with fusum.config(backend=backend):
            found.append(warns(partial(lasso, rows, values, weights, max_iter=sweeps)))
    assert found == expected == [True, True, True, False, False]  # with sweeps to spare it makes 12


def test_lasso_says_that_it_stops_early() -> None:
    with pytest.warns(UserWarning, match="did not converge in 2 sweeps"):
        lasso(*drawn(3, 20, 12), max_iter=2)


def test_lasso_wants_weights() -> None:
    rows, values, weights = drawn(3, 40, 6)
    weights[1] = 0
    with pytest.raises(fusum.ArgumentError, match="no weight at all"):
        lasso(rows, values, weights)


# Least squares with a constraint.


def changes(groups: int, n: int, features: int, games: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(groups * n + features)
    rows = torch.rand(groups, n, features, generator=g) < 0.5
    noise = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((groups, n, games), (groups, games))]
    return rows, noise[0], noise[1]


def by_definition(rows: Tensor, values: Tensor, totals: Tensor, weights: Tensor | None = None) -> Tensor:
    """The smallest of the solutions with the sum wanted, group by group and game by game, by pseudo-inverses."""
    groups, _, features = rows.shape
    ones = torch.ones(features, 1, dtype=torch.float64)
    basis = torch.linalg.svd(ones).U[:, 1:]  # of the vectors whose sum is zero
    found = torch.empty(groups, totals.shape[1], features, dtype=torch.float64)
    for g in range(groups):
        roots = torch.ones(len(rows[g]), 1).double() if weights is None else weights[g].sqrt()[:, None]
        x = rows[g].double()
        for k, total in enumerate(totals[g]):
            mean = total / features * ones
            left = values[g, :, k : k + 1] - x @ mean
            found[g, k] = (mean + basis @ (torch.linalg.pinv(roots * x @ basis, atol=1e-9) @ (roots * left)))[:, 0]
    return found


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("groups", "n", "features", "games"),
    [
        (4, 60, 8, 1),
        (1, 60, 8, 5),
        (4, 7, 8, 1),
        (4, 6, 8, 2),
        (4, 3, 8, 1),
        (2, 1, 8, 1),
        (3, 12, 40, 2),
        (2, 90, 40, 1),
    ],
)
def test_shapley_by_pseudo_inverses(groups: int, n: int, features: int, games: int, weighted: bool) -> None:
    rows, values, totals = changes(groups, n, features, games)
    weights = torch.rand(groups, n, generator=torch.Generator().manual_seed(1)).double() + 0.1 if weighted else None
    found = shapley(rows, values, totals, weights)
    torch.testing.assert_close(found, by_definition(rows, values, totals, weights), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.sum(-1), totals, rtol=0, atol=1e-10)


def test_shapley_where_some_matrices_are_singular() -> None:
    """Repeated rows, empty and full ones, and features that always come together."""
    rows, values, totals = changes(5, 40, 8)
    rows[1] = rows[1, :1]
    rows[2, :, 3] = rows[2, :, 5]
    rows[3, :20], rows[3, 20:] = True, False
    found = shapley(rows, values, totals)
    torch.testing.assert_close(found, by_definition(rows, values, totals), rtol=1e-8, atol=1e-8)


def test_shapley_of_no_coalitions_and_of_one_feature() -> None:
    totals = torch.tensor([[3.0], [-1.0]])
    none = torch.zeros(2, 0, 4, dtype=torch.bool)
    torch.testing.assert_close(
        shapley(none, torch.zeros(2, 0, 1), totals), totals[..., None].expand(2, 1, 4).double() / 4
    )
    one = torch.ones(2, 3, 1, dtype=torch.bool)
    torch.testing.assert_close(shapley(one, torch.zeros(2, 3, 1), totals), totals[..., None].double())


@pytest.mark.parametrize(("n", "features"), [(60, 8), (9, 8), (7, 8), (3, 8), (300, 100), (50, 100), (50, 784)])
def test_shapley_is_the_limit_of_large_weights(n: int, features: int) -> None:
    """Of what captum asks scikit-learn for: a weight of a million on the empty and the full coalition."""
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn, which is the measure, is not installed")
    rows, values, totals = changes(3, n, features)
    found = shapley(rows, values, totals)[:, 0]
    ends = torch.stack([torch.zeros(features), torch.ones(features)]).double()
    for g in range(3):
        x = torch.cat([ends, rows[g].double()]).numpy()
        y = torch.cat([torch.zeros(1), totals[g], values[g, :, 0]]).numpy()
        weights = np.array([1e8, 1e8, *np.ones(n)])
        coefficients = linear.LinearRegression(tol=1e-12).fit(x, y, sample_weight=weights).coef_
        torch.testing.assert_close(found[g], torch.as_tensor(coefficients), rtol=0, atol=1e-5)
