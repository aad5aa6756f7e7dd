"""The ops: thin typed wrappers over ``torch.ops.fusum``, which runs compiled kernels or, failing those, ``reference``.

The operand ``(baselines, index)`` is the same everywhere: baselines is a 0-dim tensor (one number for everything),
``[1, ...]`` (one row for every row) or ``[N, ...]``; with index (int64 ``[R]``) row r uses ``baselines[index[r]]``,
without it ``baselines[r]``. No op is differentiable. Wrong shapes, dtypes or devices raise ``ValueError`` and name the
argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..settings import current
from . import reference
from .library import kernels_loaded, modules, register, why_not
from .network import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
    "coalition_rows",
    "draw_coalitions",
    "kernels_loaded",
    "lasso",
    "moments",
    "noisy_copies",
    "path_points",
    "path_sum",
    "perceptron",
    "perceptron_outputs",
    "random_points",
    "rescale",
    "times_change",
    "why_not",
]

register(reference.BODIES)
compiled: Any = modules[0] if modules else None  # fusum._C, for the rules
_fused: Any = torch.ops.fusum
_path_points: Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor] = _fused.path_points.default
_path_sum: Callable[[Tensor, Tensor, Tensor], None] = _fused.path_sum.default
_times_change: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = _fused.times_change.default
_random_points: Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor] = _fused.random_points.default
_noisy_copies: Callable[[Tensor, Tensor, float, int, int], Tensor] = _fused.noisy_copies.default
_moments: Callable[[Tensor, Tensor | None, Tensor, int, int], None] = _fused.moments.default
_rescale: Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, float], Tensor]
_rescale = _fused.rescale.default
_coalition_rows: Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor], Tensor]
_coalition_rows = _fused.coalition_rows.default
_draw_coalitions: Callable[[Tensor, int], Tensor] = _fused.draw_coalitions.default
_perceptron: Callable[
    [Tensor, Tensor | None, Sequence[Tensor], Sequence[Tensor], Sequence[str], Tensor, float],
    tuple[Tensor, Tensor, Tensor],
]
_perceptron = _fused.perceptron.default
_perceptron_outputs: Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[str]], Tensor]
_perceptron_outputs = _fused.perceptron_outputs.default
_lasso: Callable[[Tensor, Tensor, Tensor, float, float, int], tuple[Tensor, Tensor]] = _fused.lasso.default


def path_points(inputs: Tensor, baselines: Tensor, index: Tensor | None, alphas: Tensor) -> Tensor:
    """Points on the straight line from each baseline to its input.

    Arguments:
        inputs: ``[B, ...]``, floating point.
        baselines: the baselines operand, of the dtype and device of inputs.
        index: the rows of baselines, or None.
        alphas: float64 ``[n]``, on the CPU or the device of inputs; 0 is the baseline, 1 the input.

    Returns:
        ``[n * B, ...]`` in the dtype of inputs; row ``p * B + b`` is ``base_b + alphas[p] * (inputs[b] - base_b)``.
    """
    if current().backend == "reference":
        return reference.path_points(inputs, baselines, index, alphas)
    return _path_points(inputs, baselines, index, alphas)


def path_sum(total: Tensor, gradients: Tensor, weights: Tensor) -> None:
    """Add a weighted sum of gradients along a path to total, in place.

    The kernels sum over the points in order, starting from total: how points are cut into calls changes no bit.

    Arguments:
        total: ``[B, ...]``, float32 or float64, changed in place.
        gradients: ``[n * B, ...]``, floating point, ordered as the rows of ``path_points``.
        weights: float64 ``[n]``, on the CPU or the device of total.
    """
    if current().backend == "reference":
        reference.path_sum(total, gradients, weights)
    else:
        _path_sum(total, gradients, weights)


def times_change(gradients: Tensor, inputs: Tensor, baselines: Tensor, index: Tensor | None) -> Tensor:
    """gradients * (inputs - baselines).

    Arguments:
        gradients: ``[R, ...]``, the dtype of inputs, or float32 where inputs are bfloat16 or float16.
        inputs: ``[R, ...]``, floating point.
        baselines: the baselines operand, of the dtype and device of inputs.
        index: the rows of baselines, or None.

    Returns:
        A new tensor ``[R, ...]`` in the dtype of gradients.
    """
    if current().backend == "reference":
        return reference.times_change(gradients, inputs, baselines, index)
    return _times_change(gradients, inputs, baselines, index)


def random_points(inputs: Tensor, baselines: Tensor, index: Tensor | None, coefficients: Tensor) -> Tensor:
    """One point on the line between each input and its baseline.

    Arguments:
        inputs: ``[R, ...]``, floating point.
        baselines: the baselines operand, of the dtype and device of inputs.
        index: the rows of baselines, or None.
        coefficients: ``[R]``, float64 or the dtype of inputs; 0 is the baseline, 1 the input.

    Returns:
        ``[R, ...]`` in the dtype of inputs: ``c * inputs + (1 - c) * base``.
    """
    if current().backend == "reference":
        return reference.random_points(inputs, baselines, index, coefficients)
    return _random_points(inputs, baselines, index, coefficients)


def noisy_copies(inputs: Tensor, noise: Tensor, stdev: float, samples: int, start: int) -> Tensor:
    """Copies of each input with scaled noise, from row start of the whole ``[B * samples, ...]``.

    Arguments:
        inputs: ``[B, ...]``, floating point.
        noise: ``[R, ...]``, float32 or the dtype of inputs, of unit scale.
        stdev: the factor of the noise.
        samples: copies of each example, at least 1.
        start: the first row wanted, at least 0.

    Returns:
        ``[R, ...]`` in the dtype of inputs; row r is ``inputs[(start + r) // samples] + stdev * noise[r]``.
    """
    if current().backend == "reference":
        return reference.noisy_copies(inputs, noise, stdev, samples, start)
    return _noisy_copies(inputs, noise, stdev, samples, start)


def moments(total: Tensor, squares: Tensor | None, values: Tensor, samples: int, start: int) -> None:
    """Add each example's rows, and their squares, to running sums, in place and in the order of the rows.

    Arguments:
        total: ``[B, ...]``, float32 or float64; row r of values is added to ``total[(start + r) // samples]``.
        squares: like total, gets the squares; None where they are not wanted.
        values: ``[R, ...]``, floating point.
        samples: rows of each example, at least 1.
        start: the place of the first row in the whole ``[B * samples, ...]``, at least 0.
    """
    if current().backend == "reference":
        reference.moments(total, squares, values, samples, start)
    else:
        _moments(total, squares, values, samples, start)


def rescale(
    gradients: Tensor,
    x: Tensor,
    x_ref: Tensor,
    y: Tensor | None,
    y_ref: Tensor | None,
    slope: Tensor | None,
    eps: float,
) -> Tensor:
    """The rescale rule of DeepLIFT (Shrikumar et al., 2017) for one elementwise operator y(x).

    The multiplier is (y - y_ref) / (x - x_ref). Where the difference of x is at most eps, or four times the rounding of
    the larger of the two in the dtype of x, it is slope. NaN in x or x_ref gives NaN; infinities that agree take slope.

    Arguments:
        gradients: any shape, floating point; every other operand broadcasts to it and is not written out.
        x: the operator's input for the example, floating point.
        x_ref: its input for the baseline, of the dtype and device of x.
        y: its output for the example, of the dtype and device of x; None, with y_ref and slope, is ReLU.
        y_ref: its output for the baseline.
        slope: its derivative at x.
        eps: at least 0.

    Returns:
        A new tensor gradients * multiplier in the shape, dtype and, where that is dense, memory format of gradients.
    """
    if current().backend == "reference":
        return reference.rescale(gradients, x, x_ref, y, y_ref, slope, eps)
    return _rescale(gradients, x, x_ref, y, y_ref, slope, eps)


def coalition_rows(
    inputs: Tensor,
    baselines: Tensor,
    index: Tensor | None,
    features: Tensor,
    coalitions: Tensor,
    which: Tensor,
    examples: Tensor,
) -> Tensor:
    """Rows of a model's input in which the features of a coalition are an example's and the others its baseline's.

    Values of index, features, which or examples that are out of range raise ``IndexError`` on the CPU.

    Arguments:
        inputs: ``[B, ...]``, any dtype.
        baselines: the baselines operand, of the dtype and device of inputs; without index, row r uses
            ``baselines[examples[r]]``.
        index: int64 ``[R]``, the rows of baselines, or None.
        features: int32 ``[1, ...]`` or ``[B, ...]``, shaped like inputs: the feature, from 0 to M - 1, of each element.
        coalitions: bool ``[C, M]``, the features that each coalition has.
        which: int64 ``[R]``, the coalition of each row.
        examples: int64 ``[R]``, the example of each row.

    Returns:
        ``[R, ...]`` in the dtype of inputs: each element is ``inputs[examples[r]]``'s where ``coalitions[which[r]]``
        has its feature, else the baseline's.
    """
    if current().backend == "reference":
        return reference.coalition_rows(inputs, baselines, index, features, coalitions, which, examples)
    return _coalition_rows(inputs, baselines, index, features, coalitions, which, examples)


def draw_coalitions(probabilities: Tensor, count: int) -> Tensor:
    """Random coalitions of M features, drawn from torch's default generator: a size, then features of equal chances.

    Each takes from the generator what ``Categorical(probabilities).sample()`` and ``torch.randn(M)`` take.

    Arguments:
        probabilities: float32 or float64 ``[M]`` on the CPU, at least 0 and not all 0: entry s is in proportion to the
            probability of s features.
        count: how many coalitions, at least 0.

    Returns:
        bool ``[count, M]``.
    """
    if current().backend == "reference":
        return reference.draw_coalitions(probabilities, count)
    return _draw_coalitions(probabilities, count)


def lasso(
    rows: Tensor, values: Tensor, weights: Tensor, alpha: float, tol: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """Linear models with an intercept and a penalty on the size of the coefficients, one for each of B examples.

    The coefficients are least in (the weighted mean of squared errors) / 2 + alpha * (the sum of their sizes), to what
    scikit-learn's ``Lasso`` leaves: they stop where its own stop, after as many sweeps of cyclic coordinate descent.

    Arguments:
        rows: ``[B, n, M]``, n samples of M features, of any real dtype or bool.
        values: float64 ``[B, n]``, what the samples' values are.
        weights: float64 ``[B, n]``, at least 0, of any scale.
        alpha: the penalty, above 0.
        tol: a sweep that changes coefficients by at most tol of the largest, and a duality gap of at most tol times the
            squares of the values, end it.
        max_iter: sweeps at most.

    Returns:
        The coefficients without the intercepts, float64 ``[B, M]``, and which examples converged, bool ``[B]``.
        Coefficients of an example with a number that is not finite, or without any weight, are NaN.
    """
    if current().backend == "reference":
        return reference.lasso(rows, values, weights, alpha, tol, max_iter)
    return _lasso(rows, values, weights, alpha, tol, max_iter)


def perceptron(
    points: Tensor,
    references: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activations: Sequence[str],
    columns: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One output of a multilayer perceptron at each of R points, and its gradients or its multipliers there.

    Arguments:
        points: ``[R, F]``, floating point.
        references: ``[1, F]`` or ``[R, F]``, what multipliers by the rescale rule compare with; None: gradients.
        weights: a matrix for each layer, ``[out, in]``, in the dtype of points.
        biases: a vector for each, ``[out]``.
        activations: what follows each: one of ``none``, ``relu``, ``tanh``, ``sigmoid``, ``silu``, ``gelu``.
        columns: int64 ``[1]`` or ``[R]``, the output of each point. One out of range raises ``IndexError`` on the CPU.
        eps: as of ``rescale``.

    Returns:
        ``[R, F]``; the outputs, ``[R]``; those of the references at columns, ``[0]`` without any, ``[1]`` or ``[R]``.
    """
    if current().backend == "reference":
        return reference.perceptron(points, references, weights, biases, activations, columns, eps)
    return _perceptron(points, references, weights, biases, activations, columns, eps)


def perceptron_outputs(
    points: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activations: Sequence[str]
) -> Tensor:
    """All outputs of a multilayer perceptron, ``[R, C]`` at ``[R, F]`` points; arguments as of ``perceptron``."""
    if current().backend == "reference":
        return reference.perceptron_outputs(points, weights, biases, activations)
    return _perceptron_outputs(points, weights, biases, activations)
