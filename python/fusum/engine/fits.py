"""Linear models fitted to the values of coalitions, in float64, for all examples at once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError

Array = np.ndarray[Any, np.dtype[Any]]

# Below this share of the largest, a Gram matrix's pivot or eigenvalue counts as zero: rows are small integers.
_SINGULAR = 1e-10


def shapley(coalitions: Tensor, changes: Tensor, totals: Tensor, weights: Tensor | None = None) -> Tensor:
    """Least squares for the values of coalitions with scores that sum to a total: float64 [g, k, M].

    Of several solutions that fit equally well, the one of the smallest norm.

    Arguments:
        coalitions: bool ``[g, n, M]``, of g groups, without the empty and the full one.
        changes: ``[g, n, k]``, what each coalition adds to the empty one, in each of k games of a group.
        totals: ``[g, k]``, what the full one adds.
        weights: ``[g, n]``; None: all alike.
    """
    rows, features = coalitions.double(), coalitions.shape[-1]
    mean = totals.double()[:, None] / features
    # A part equal for all features carries the total; what is left sums to zero, and so do its rows.
    sizes = rows.sum(-1, keepdim=True)
    left = changes.double() - sizes * mean
    rows -= sizes / features
    if weights is not None:
        roots = weights.double().sqrt()[..., None]
        rows, left = rows * roots, left * roots
    return (_least_squares(rows, left) + mean).transpose(1, 2)


def _least_squares(rows: Tensor, values: Tensor) -> Tensor:
    """The smallest solutions [g, M, k] of rows [g, n, M], each of which sums to zero, times solution = values."""
    n, features = rows.shape[-2:]
    if n == 0 or features == 1:
        return values.new_zeros(len(rows), features, values.shape[-1])
    across = rows.mT
    if n < features:
        return across @ _solve(rows @ across, values)
    gram = across @ rows
    # The direction that rows lack is filled in, of about the size of the others; no solution has a part in it.
    gram += gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] / features
    return _solve(gram, across @ values)


def _solve(gram: Tensor, values: Tensor) -> Tensor:
    """gram^-1 values, with a pseudo-inverse where a Gram matrix is singular."""
    factors, failed = torch.linalg.cholesky_ex(gram)
    pivots = factors.diagonal(dim1=-2, dim2=-1).amin(-1).square()
    singular = (failed != 0) | ~(pivots > _SINGULAR * gram.diagonal(dim1=-2, dim2=-1).amax(-1))
    if not bool(singular.any()):
        return torch.cholesky_solve(values, factors)
    factors[singular] = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    solved = torch.cholesky_solve(values, factors)
    solved[singular] = torch.linalg.pinv(gram[singular], rtol=_SINGULAR, hermitian=True) @ values[singular]
    return solved


def lasso(
    rows: Tensor, values: Tensor, weights: Tensor, alpha: float = 0.01, tol: float = 1e-4, max_iter: int = 1000
) -> Tensor:
    """The coefficients of scikit-learn's ``Lasso(alpha)`` with sample weights, an intercept aside: float64 [B, M].

    They stop where its own stop: after as many sweeps, not where the objective is least.

    Arguments:
        rows: ``[B, n, M]``, numbers or bool.
        values: ``[B, n]``.
        weights: ``[B, n]``, not negative.

    Raises:
        ArgumentError: an example has no sample of any weight.
    """
    n = rows.shape[1]
    sums = weights.double().sum(1, keepdim=True)
    shares = weights / sums
    roots = (shares * n).sqrt()[..., None]
    both = torch.cat([rows.double(), values.double()[..., None]], -1)
    both -= shares[:, None] @ both
    both *= roots
    moments = both.mT @ both  # of columns with each other, and, last, with the values
    descent = _Descent(moments.permute(1, 2, 0).cpu().numpy(), alpha * n, tol)
    if bool((sums == 0).any()):
        raise ArgumentError("similarity_func: got samples of no weight at all; expected some (is a kernel too narrow?)")
    return torch.from_numpy(descent.run(max_iter)).T.to(rows.device)


class _Descent:
    """Cyclic coordinate descent on many examples, each left alone once it has met scikit-learn's stopping rule.

    Arrays have examples last. best: what each coefficient were best at, given the others and no penalty. pull: what
    a coefficient takes from the best of the others. reach: how far from zero its best has to be for it to be used;
    infinite for features that are ruled out.
    """

    def __init__(self, moments: Array, alpha: float, tol: float) -> None:
        self.alpha, self.tol = alpha, tol
        self.products, self.square = np.ascontiguousarray(moments[:-1, -1]), moments[-1, -1]
        gram = moments[:-1, :-1]
        self.norms = np.ascontiguousarray(gram.diagonal().T)
        divisors = np.where(self.norms > 0, self.norms, 1.0)
        self.pull = gram / divisors
        diagonal = np.arange(len(gram))
        self.pull[diagonal, diagonal] = 0
        self.best = self.products / divisors
        self.coefficients = np.zeros_like(self.best)
        self.reach = np.where(self.norms > 0, alpha / divisors, np.inf)
        self.live = np.arange(moments.shape[-1])
        self.found = np.full_like(self.best, np.nan)

    def run(self, max_iter: int) -> Array:
        """The coefficients [M, B]; NaN where values are not finite."""
        self._retire(~np.isfinite(self.square), np.nan)
        self._check(np.ones(len(self.live), dtype=bool))
        for _ in range(max_iter):
            if not len(self.live):
                return self.found
            before = self.coefficients.copy()
            self._sweep()
            largest = np.abs(self.coefficients).max(0)
            settled = np.abs(self.coefficients - before).max(0) <= self.tol * largest
            settled |= largest == 0
            if settled.any():
                self._check(settled)
        if len(self.live):
            warnings.warn(f"Lasso did not converge in {max_iter} sweeps: use more samples", stacklevel=2)
            self._retire(np.ones(len(self.live), dtype=bool))
        return self.found

    def _sweep(self) -> None:
        """Every coefficient in turn takes its best, less what the penalty takes."""
        best, beyond = self.best, np.empty_like(self.best[0])
        taken = np.empty_like(best)
        for b, coefficient, reach, lower, pull in zip(
            best, self.coefficients, self.reach, -self.reach, self.pull, strict=True
        ):
            np.minimum(b, reach, out=beyond)
            np.maximum(beyond, lower, out=beyond)
            np.subtract(b, beyond, out=beyond)
            np.subtract(beyond, coefficient, out=coefficient)  # for now the step
            np.multiply(pull, coefficient, out=taken)
            np.subtract(best, taken, out=best)
            coefficient[:] = beyond

    def _check(self, settled: Array) -> None:
        """Retire those settled examples whose duality gap is small; of the others rule features out."""
        residual = (self.best - self.coefficients) * self.norms
        with_values = (self.coefficients * self.products).sum(0)
        error = self.square - with_values - (self.coefficients * residual).sum(0)
        steepest = np.maximum(np.abs(residual).max(0), self.alpha)
        scale = self.alpha / steepest
        penalty = self.alpha * np.abs(self.coefficients).sum(0)
        gap = 0.5 * (1 + scale**2) * error + penalty - scale * (self.square - with_values)
        done = settled & (gap <= self.tol * self.square)
        if not done.all():
            radius = np.sqrt(2 * np.abs(gap)) / self.alpha
            out = (1 - np.abs(residual) / steepest) > radius * np.sqrt(self.norms)
            self._rule_out(out & settled & ~done)
        if done.any():
            self._retire(done)

    def _rule_out(self, out: Array) -> None:
        """Features that are zero at the optimum (gap safe screening) are zero from now on."""
        self.reach[out] = np.inf
        removed = np.where(out, self.coefficients, 0.0)
        if removed.any():
            self.coefficients[out] = 0
            self.best += np.einsum("jkb,jb->kb", self.pull, removed)

    def _retire(self, done: Array, value: float | None = None) -> None:
        """Keep the coefficients of examples that are done, and go on without them."""
        self.found[:, self.live[done]] = self.coefficients[:, done] if value is None else value
        left = ~done
        for name in ("products", "square", "norms", "pull", "best", "coefficients", "reach", "live"):
            setattr(self, name, getattr(self, name)[..., left])
