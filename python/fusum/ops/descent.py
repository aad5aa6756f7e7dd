"""The descent of the op ``lasso`` in NumPy, whose operations on few numbers take less time than torch's."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def fit(rows: Array, values: Array, weights: Array, alpha: float, tol: float, max_iter: int) -> tuple[Array, Array]:
    """The coefficients [B, M] of ``fusum.ops.lasso``, and which examples met the stopping rule, bool [B].

    Arguments:
        rows: float64 ``[B, n, M]``, as all that follow.
        values: ``[B, n]``.
        weights: ``[B, n]``.
        alpha: the penalty.
        tol: of the stopping rule.
        max_iter: sweeps at most.
    """
    n, features = rows.shape[1:]
    both = np.concatenate([rows, values[..., None]], -1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        sums = weights.sum(-1, keepdims=True)[..., None]
        shares = weights[..., None] / sums
        # A plain fit without an intercept is left.
        both = (both - (shares * both).sum(1, keepdims=True)) * np.sqrt(n * shares)
        right = np.isfinite(np.square(both).sum((1, 2)) + n / sums[:, 0, 0])
    both[~right] = 0
    if n > features + 1:  # as many rows have the same products of columns, which are all that counts
        both = np.asarray(np.linalg.qr(both, mode="r"))
    both = np.ascontiguousarray(both.transpose(2, 0, 1))
    descent = _Descent(both[:-1], both[-1], alpha * n, tol)
    converged = descent.run(max_iter)
    descent.found[:, ~right] = np.nan
    return np.ascontiguousarray(descent.found.T), converged


class _Descent:
    """Cyclic coordinate descent on many examples; each is left alone once it has met scikit-learn's stopping rule.

    found: the coefficients [M, B]. used: the coefficients that change, bool [M, B]: not those of examples that are
    done, nor those of features that are constant or ruled out.
    """

    def __init__(self, columns: Array, target: Array, alpha: float, tol: float) -> None:
        self.columns, self.target, self.alpha, self.tol = columns, target, alpha, tol
        self.residual = target.copy()
        self.norms, self.square = np.square(columns).sum(-1), np.square(target).sum(-1)
        self.found = np.zeros_like(self.norms)
        self.used = self.norms > 0

    def run(self, max_iter: int) -> Array:
        """Which examples met the stopping rule within so many sweeps: bool [B]."""
        done = self._stop(np.ones(len(self.target), dtype=bool))
        for left in range(max_iter, 0, -1):
            if done.all():
                break
            settled = self._sweep()
            if left == 1:
                settled[:] = True
            if settled.any():
                done |= self._stop(settled)
        return done

    def _sweep(self) -> Array:
        """Each coefficient in turn takes its best value, given the others. In which examples none has moved much."""
        before = self.found.copy()
        for j in np.flatnonzero(self.used.any(1)):
            column, norm, coefficient = self.columns[j], self.norms[j], self.found[j]
            best = np.einsum("bn,bn->b", column, self.residual) + coefficient * norm
            beyond = best - np.minimum(np.maximum(best, -self.alpha), self.alpha)  # np.clip takes longer
            after = np.divide(beyond, norm, out=coefficient.copy(), where=self.used[j])
            self.residual += (coefficient - after)[:, None] * column
            self.found[j] = after
        change, largest = (np.abs(x).max(0, initial=0) for x in (self.found - before, self.found))
        return np.asarray((largest == 0) | (change <= self.tol * largest))

    def _stop(self, settled: Array) -> Array:
        """Which settled examples have a small duality gap; of the others, rule features out."""
        slopes = np.abs(np.einsum("mbn,bn->mb", self.columns, self.residual))
        steepest = slopes.max(0, initial=self.alpha)
        scale = self.alpha / steepest
        error = np.square(self.residual).sum(-1) * (1 + scale**2) / 2
        gap = error + self.alpha * np.abs(self.found).sum(0) - scale * (self.residual * self.target).sum(-1)
        done = settled & (gap <= self.tol * self.square)
        radius = np.sqrt(2 * np.abs(gap)) / self.alpha
        out = self.used & settled & ~done & (1 - slopes / steepest > radius * np.sqrt(self.norms))
        self.residual += np.einsum("mb,mbn->bn", self.found * out, self.columns)
        self.found[out] = 0
        self.used &= ~(out | done)
        return np.asarray(done)
