"""Samples of the op ``perceptron``, and what it gives by hand: one number after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from ops_samples import Sample, normal, stack


def _perceptron() -> Iterator[Sample]:
    """Networks of quarters, so that sums are exact; the smooth activations in float64 where changes are compared."""
    for dtype, rows, outputs in product((torch.float64, torch.float32), (0, 1, 3, 300), (1, 2)):
        names = ["relu", "none", "relu"] if dtype == torch.float32 else ["tanh", "silu", "gelu", "relu", "sigmoid"]
        widths = [4, *range(5, 4 + len(names)), outputs]
        layers = [(normal((b, a), dtype, 20 + b), normal((b,), dtype, 30 + b)) for a, b in pairwise(widths)]
        points, weights, biases = (_quarters(t) for t in ([normal((rows, 4), dtype, 40)], *zip(*layers, strict=True)))
        columns = {"one column": torch.tensor([outputs - 1]), "columns": torch.arange(rows) % outputs}
        references = {"none": None, "one": _quarters([normal((1, 4), dtype, 41)])[0], "each": points[0].flip(1)}
        for (kind, column), (compared, reference) in product(columns.items(), references.items()):
            name = f"{str(dtype)[6:]}, {rows} rows of {outputs}, {kind}, references: {compared}"
            yield Sample("perceptron", name, (points[0], reference, weights, biases, names, column, 1e-10))
        name = f"{str(dtype)[6:]}, {rows} rows of {outputs}"
        yield Sample("perceptron_outputs", name, (points[0], weights, biases, names))


def _quarters(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [(4 * t).round() / 4 for t in tensors]


def _phi(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Each activation and its slope.
_ACTIVATIONS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "none": (lambda x: x, lambda x: 1.0),
    "relu": (lambda x: max(x, 0.0), lambda x: float(x > 0)),
    "tanh": (math.tanh, lambda x: 1 - math.tanh(x) ** 2),
    "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x))),
    "silu": (lambda x: x * _sigmoid(x), lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x)))),
    "gelu": (lambda x: x * _phi(x), lambda x: _phi(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
}


def _layers_by_hand(row: Tensor, weights: list[Tensor], biases: list[Tensor], names: list[str]) -> list[list[float]]:
    """What each layer returns before its activation, and at last the output."""
    held, y = [], row.double()
    for weight, bias, name in zip(weights, biases, names, strict=True):
        held.append((weight.double() @ y + bias.double()).tolist())
        y = torch.tensor([_ACTIVATIONS[name][0](x) for x in held[-1]], dtype=torch.float64)
    return [*held, y.tolist()]


def _multiplier_by_hand(name: str, x: float, x_ref: float | None, dtype: torch.dtype) -> float:
    function, slope = _ACTIVATIONS[name]
    if x_ref is None or abs(x - x_ref) <= max(1e-10, 4 * torch.finfo(dtype).eps * max(abs(x), abs(x_ref))):
        return slope(x)
    return (function(x) - function(x_ref)) / (x - x_ref)


def network_by_hand(
    points: Tensor,
    references: Tensor | None,
    weights: list[Tensor],
    biases: list[Tensor],
    names: list[str],
    columns: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    found, reached, ends = [], [], []
    for r, row in enumerate(points):
        column = int(columns[r if len(columns) > 1 else 0])
        held = _layers_by_hand(row, weights, biases, names)
        reference = None if references is None else references[r if len(references) > 1 else 0]
        compared = None if reference is None else _layers_by_hand(reference, weights, biases, names)
        gradient = torch.eye(len(weights[-1]), dtype=torch.float64)[column]
        for i in reversed(range(len(weights))):
            others = [None] * len(held[i]) if compared is None else compared[i]
            rates = [_multiplier_by_hand(names[i], *pair, points.dtype) for pair in zip(held[i], others, strict=True)]
            gradient = (gradient * torch.tensor(rates, dtype=torch.float64)) @ weights[i].double()
        found.append(gradient)
        reached.append(held[-1][column])
        ends += [] if compared is None else [compared[-1][column]]
    if references is not None and len(references) == len(columns) == 1:  # one for all
        ends = [_layers_by_hand(references[0], weights, biases, names)[-1][int(columns[0])]]
    return stack(found, points), *(torch.tensor(each, dtype=torch.float64) for each in (reached, ends))


def outputs_by_hand(points: Tensor, weights: list[Tensor], biases: list[Tensor], names: list[str]) -> Tensor:
    rows = [_layers_by_hand(row, weights, biases, names)[-1] for row in points]
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), len(weights[-1]))


BY_HAND: dict[str, Callable[..., Any]] = {"perceptron": network_by_hand, "perceptron_outputs": outputs_by_hand}
NETWORKS = tuple(_perceptron())
_WEIGHTS, _BIASES = [torch.randn(50, 30), torch.randn(2, 50)], [torch.randn(50), torch.randn(2)]
_NETWORK = _WEIGHTS, _BIASES, ["relu", "sigmoid"]
LARGE_NETWORKS = (
    Sample("perceptron", "large", (torch.randn(999, 30), torch.randn(1, 30), *_NETWORK, torch.tensor([1]), 1e-10)),
    Sample("perceptron_outputs", "large", (torch.randn(999, 30), *_NETWORK)),
)
X, INDEX, ONE = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
REFUSED_NETWORKS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("perceptron_outputs", "points", (X.half(), [X], [X[:, 0]], ["relu"])),
    ("perceptron_outputs", "activations", (X, [X], [X[:, 0]], ["step"])),
    ("perceptron", "points", (X.half(), None, [X], [X[:, 0]], ["relu"], ONE, 0.0)),
    ("perceptron", "points", (X[None], None, [X], [X[:, 0]], ["relu"], ONE, 0.0)),
    ("perceptron", "references", (X, X[:2], [X], [X[:, 0]], ["relu"], ONE, 0.0)),
    ("perceptron", "references", (X, X.double(), [X], [X[:, 0]], ["relu"], ONE, 0.0)),
    ("perceptron", "weights", (X, None, [], [], [], ONE, 0.0)),
    ("perceptron", "weights", (X, None, [X], [X[:, 0]], ["relu", "relu"], ONE, 0.0)),
    ("perceptron", "weights", (X, None, [X.t()], [X[0]], ["relu"], ONE, 0.0)),
    ("perceptron", "weights", (X, None, [X.double()], [X[:, 0]], ["relu"], ONE, 0.0)),
    ("perceptron", "biases", (X, None, [X], [X[0]], ["relu"], ONE, 0.0)),
    ("perceptron", "activations", (X, None, [X], [X[:, 0]], ["step"], ONE, 0.0)),
    ("perceptron", "columns", (X, None, [X], [X[:, 0]], ["relu"], ONE.int(), 0.0)),
    ("perceptron", "columns", (X, None, [X], [X[:, 0]], ["relu"], INDEX[:3], 0.0)),
]
OUTSIDE_NETWORKS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("perceptron", "columns", (X, None, [X], [X[:, 0]], ["relu"], INDEX + 4, 0.0)),
    ("perceptron", "columns", (X, None, [X], [X[:, 0]], ["relu"], ONE - 1, 0.0)),
]
