"""Nodes, weights and every random draw; draws follow captum's order, so that the same seeds give the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from ..settings import positive_int
from .features import Features
from .spec import Line

METHODS = ("riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid", "gausslegendre")


def line(n_steps: object, method: object, inside: bool = False) -> Line:
    """A checked Line: n_steps points by the quadrature rule named method."""
    if not isinstance(method, str):
        raise ArgumentTypeError(f"method: got {method!r} ({type(method).__name__}); expected one of {list(METHODS)}")
    if method not in METHODS:
        raise ArgumentError(f"method: got {method!r}; expected one of {list(METHODS)}")
    steps = positive_int("n_steps", n_steps)
    if method == "riemann_trapezoid" and steps < 2:
        raise ArgumentError(f"n_steps: got {steps}; expected at least 2, as riemann_trapezoid uses both ends")
    return Line(steps, method, inside)


@lru_cache(maxsize=128)
def quadrature(method: str, n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes in [0, 1] and weights that sum to 1."""
    if method == "gausslegendre":
        nodes, weights = np.polynomial.legendre.leggauss(n)
        return tuple((0.5 * (1 + nodes)).tolist()), tuple((0.5 * weights).tolist())
    if method == "riemann_trapezoid":
        inner = np.full(n, 1 / (n - 1))
        inner[[0, -1]] /= 2
        return tuple(np.linspace(0, 1, n).tolist()), tuple(inner.tolist())
    shift = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[method]
    return tuple(((np.arange(n) + shift) / n).tolist()), (1 / n,) * n


@lru_cache(maxsize=128)
def quadrature_tensors(method: str, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The nodes and weights as float64 tensors on a device."""
    with torch.inference_mode(False):
        nodes, weights = (torch.tensor(values, dtype=torch.float64) for values in quadrature(method, n))
        return nodes.to(device), weights.to(device)


def coefficients(examples: int, device: torch.device) -> Tensor:
    """A uniform position on the line for every example: float64 [examples]."""
    return _move(np.random.uniform(0.0, 1.0, examples), device)


def noise(inputs: tuple[Tensor | None, ...], samples: int) -> tuple[Tensor | None, ...]:
    """Standard normal noise for samples copies of every example, one draw an input in order: [B * samples, ...]."""
    return tuple(None if x is None else _normal(x, samples) for x in inputs)


def _normal(x: Tensor, samples: int) -> Tensor:
    # In the default dtype, whatever the input's: the stream of numbers depends on it.
    drawn = torch.empty((x.shape[0] * samples, *x.shape[1:]), device=x.device).normal_()
    return drawn if drawn.dtype == torch.float32 else drawn.to(x.dtype)


def choices(rows: int, draws: int, device: torch.device) -> Tensor:
    """Which of rows baselines each of draws copies takes: int64 [draws]."""
    # What np.random.choice(rows, draws) draws, without its checks.
    return _move(np.random.randint(0, rows, draws, dtype=np.int64), device)


def orders(features: Features, n_samples: int, antithetic: bool) -> Tensor:
    """Random orders of features, int64 [n_samples, count]; antithetic: each second is the one before it backwards."""
    drawn = n_samples - n_samples // 2 if antithetic else n_samples
    numbers = torch.stack([torch.randperm(features.total) for _ in range(drawn)])
    place = torch.full((features.total,), -1).scatter_(0, features.labels, torch.arange(features.count))
    found = place[numbers]
    found = found[found >= 0].view(drawn, features.count)
    return torch.stack([found, found.flip(1)], 1).flatten(0, 1)[:n_samples] if antithetic else found


def shuffles(features: Features, sizes: Sequence[int], per_eval: int, still: Tensor) -> list[Tensor]:
    """For each input of so many rows, whose row each feature takes: int64 [count, rows]; all their own if still."""
    found = [torch.arange(n).repeat(features.count, 1) for n in sizes]
    for i, j in shuffled(features, len(sizes), per_eval, still):
        found[i][j] = shuffle(sizes[i])
    return found


def shuffle(rows: int) -> Tensor:
    """A random order of rows that does not leave all in place, unless there is but one: int64 [rows]."""
    unmoved = torch.arange(rows)
    order = unmoved
    while rows > 1 and torch.equal(order, unmoved):
        order = torch.randperm(rows)
    return order


def shuffled(
    features: Features, inputs: int, per_eval: int, still: Tensor, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, int]]:
    """(input, feature) in the order in which captum shuffles: so many features at once, then their inputs.

    still: features that are left as they are, bool [count].
    """
    held, stays = [features.held_by(i).tolist() for i in range(inputs)], still.tolist()
    stop = features.count if stop is None else stop
    for first in range(start, stop, per_eval):
        group = [j for j in range(first, min(first + per_eval, stop)) if not stays[j]]
        yield from ((i, j) for i in range(inputs) if any(held[i][k] for k in group) for j in group)


def _move(drawn: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(drawn)
    return tensor if device.type == "cpu" else tensor.to(device)
