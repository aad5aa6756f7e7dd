"""Linear models fitted to the values of coalitions, in float64, for all examples at once."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .. import ops
from ..errors import ArgumentError

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
    weights = weights.double()
    if bool((weights.sum(1) == 0).any()):
        raise ArgumentError("similarity_func: got samples of no weight at all; expected some (is a kernel too narrow?)")
    found, converged = ops.lasso(rows, values.double(), weights, alpha, tol, max_iter)
    if not bool(converged.all()):
        warnings.warn(f"Lasso did not converge in {max_iter} sweeps: use more samples", stacklevel=2)
    return found
