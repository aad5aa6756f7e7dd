"""The rules once more, for one example: NumPy matrices written from the formulas, to hold the results against.

A twin of DeepLift gives the matrix J of an operator for one pair of points: y - y' = J (x - x').
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
Function = Callable[[Tensor], Tensor]
Twin = Callable[[Array, Array], Array]


def array(x: Tensor) -> Array:
    return x.detach().numpy().astype(np.float64)


def slopes(function: Callable[[Array], Array], x: Array, ref: Array) -> Array:
    """dy / dx element by element; no element may equal its baseline."""
    assert (x != ref).all()
    return (function(x) - function(ref)) / (x - ref)


def elementwise(function: Function) -> Twin:
    return lambda x, ref: np.diag(slopes(of_torch(function), x, ref))


def of_torch(function: Function) -> Callable[[Array], Array]:
    return lambda x: array(function(torch.from_numpy(x)[None])[0])  # some take one number a channel


def dense(layer: nn.Linear) -> tuple[Array, Array]:
    weight = array(layer.weight)
    return weight, np.zeros(len(weight)) if layer.bias is None else array(layer.bias)


def mlp(layers: Sequence[nn.Linear], activation: Function, x: Array, ref: Array) -> Array:
    """J of linear layers with an activation between each two."""
    weight, bias = dense(layers[0])
    whole, x, ref = weight, weight @ x + bias, weight @ ref + bias
    for layer in layers[1:]:
        weight, bias = dense(layer)
        whole = weight @ np.diag(slopes(of_torch(activation), x, ref)) @ whole
        x, ref = (weight @ array(activation(torch.from_numpy(z))) + bias for z in (x, ref))
    return whole


def around(model: nn.Module, body: Twin, x: Array, ref: Array) -> Array:
    """J of a model of operators.Around, body being J of its operator on the flattened hidden tensor."""
    (first, bias), (last, _) = dense(model.before), dense(model.after)
    return last @ body(first @ x + bias, first @ ref + bias) @ first


def softmax(x: Array, ref: Array) -> Array:
    """exp of log_softmax: so nothing grows beyond the changes themselves, also where all of x rises."""
    logs = [z - np.log(np.exp(z).sum()) for z in (x, ref)]
    return np.diag(slopes(np.exp, *logs)) @ log_softmax(x, ref)


def log_softmax(x: Array, ref: Array) -> Array:
    return np.eye(len(x)) - np.ones((len(x), 1)) * logsumexp(x, ref)


def logsumexp(x: Array, ref: Array) -> Array:
    s, s_ref = np.exp(x).sum(), np.exp(ref).sum()
    return (np.log(s) - np.log(s_ref)) / (s - s_ref) * slopes(np.exp, x, ref)[None]


def norm(x: Array, ref: Array, eps: float, centred: bool) -> Array:
    """Layer norm, or RMS norm where it is not centred, without weights."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n if centred else np.eye(n)
    d, d_ref = centre @ x, centre @ ref
    v, v_ref = (d**2).mean() + eps, (d_ref**2).mean() + eps
    q, q_ref = v**-0.5, v_ref**-0.5
    through = np.outer(d + d_ref, d + d_ref) / 2 / n * (q - q_ref) / (v - v_ref)
    return (np.eye(n) * (q + q_ref) / 2 + through) @ centre


def blocks(each: Twin, count: int) -> Twin:
    """J of an operator that works on count equal parts of its input, each by itself."""

    def whole(x: Array, ref: Array) -> Array:
        parts = [each(a, b) for a, b in zip(x.reshape(count, -1), ref.reshape(count, -1), strict=True)]
        rows, columns = parts[0].shape
        out = np.zeros((count, rows, count, columns))
        for i, part in enumerate(parts):
            out[i, :, i] = part
        return out.reshape(count * rows, count * columns)

    return whole


def gate(x: Array, ref: Array) -> Array:
    """First half times second half."""
    (a, b), (a_ref, b_ref) = x.reshape(2, -1), ref.reshape(2, -1)
    return np.hstack([np.diag(b + b_ref) / 2, np.diag(a + a_ref) / 2])


def quotient(x: Array, ref: Array) -> Array:
    """First half divided by second half: times 1 / b, which is rescaled."""
    (a, b), (a_ref, b_ref) = x.reshape(2, -1), ref.reshape(2, -1)
    return np.hstack([np.diag(1 / b + 1 / b_ref) / 2, -np.diag((a + a_ref) / 2 / (b * b_ref))])


def after(function: Function, body: Twin) -> Twin:
    """J of a body whose second half of inputs goes through an elementwise function."""

    def whole(x: Array, ref: Array) -> Array:
        half, through = len(x) // 2, of_torch(function)
        first = np.eye(len(x))
        first[half:, half:] = np.diag(slopes(through, x[half:], ref[half:]))
        return body(*(np.concatenate([z[:half], through(z[half:])]) for z in (x, ref))) @ first

    return whole


def attention(x: Array, ref: Array, tokens: int, keep: Array | None = None) -> Array:
    """Queries, keys and values are all x [tokens, width]; keep: [tokens, tokens], 0 where a key is not to be seen."""
    x, ref = x.reshape(tokens, -1), ref.reshape(tokens, -1)
    width = x.shape[1]
    mean, scale, eye = (x + ref) / 2, width**-0.5, np.eye(tokens)
    seen = np.ones((tokens, tokens)) if keep is None else keep
    scores, probabilities, steep = [], [], np.zeros((tokens, tokens, tokens))
    for z in (x, ref):
        scores.append(scale * z @ z.T)
        e = np.exp(scores[-1]) * seen
        probabilities.append(e / e.sum(1, keepdims=True))
    for t in range(tokens):
        keys = np.flatnonzero(seen[t])
        if len(keys) == 1:  # the probability is 1 whatever the score
            continue
        steep[np.ix_([t], keys, keys)] = softmax(scores[0][t, keys], scores[1][t, keys])
    # d score[t, s] = scale * (d x[t] . mean[s] + mean[t] . d x[s]), the queries' part and the keys' part.
    d_scores = scale * (np.einsum("tu,sw->tsuw", eye, mean) + np.einsum("su,tw->tsuw", eye, mean))
    d_probabilities = np.einsum("tsr,truw->tsuw", steep, d_scores)
    values = np.einsum("tu,wv->twuv", sum(probabilities) / 2, np.eye(width))
    return (np.einsum("tsuv,sw->twuv", d_probabilities, mean) + values).reshape(x.size, x.size)


@dataclass(frozen=True)
class Window:
    """A max-pool over one axis of a channel, or over two."""

    size: tuple[int, ...]
    kernel: int
    stride: int
    padding: int = 0
    dilation: int = 1

    def places(self) -> list[list[int]]:
        """The flat positions of each window in torch's order, those of the padding left out."""
        reach = self.dilation * (self.kernel - 1)
        starts = [range(-self.padding, n + self.padding - reach, self.stride) for n in self.size]
        found = []
        for corner in product(*starts):
            offsets = product(range(0, reach + 1, self.dilation), repeat=len(corner))
            at = [tuple(c + o for c, o in zip(corner, offset, strict=True)) for offset in offsets]
            inside = [p for p in at if all(0 <= i < n for i, n in zip(p, self.size, strict=True))]
            found.append([int(np.ravel_multi_index(p, self.size)) for p in inside])
        return found

    def max_pool(self, x: Array, ref: Array) -> Array:
        """A rise goes to the winner of the example, a fall to the winner of the baseline."""
        places = self.places()
        out = np.zeros((len(places), len(x)))
        for row, window in enumerate(places):
            i, j = (window[int(np.argmax(z[window]))] for z in (x, ref))
            change = x[i] - ref[j]
            winner = i if change > 0 else j
            out[row, winner] = change / (x[winner] - ref[winner])
        return out


@dataclass(frozen=True)
class Relevance:
    """How LRP changes the weights and bias of a dense layer on the way back."""

    epsilon: float = 1e-9
    gamma: float = 0.0
    positive: bool = False
    without_bias: bool = False

    def back(self, layer: nn.Linear, x: Array, relevance: Array) -> Array:
        weight, bias = dense(layer)
        weight = weight.clip(min=0) if self.positive else weight + self.gamma * weight.clip(min=0)
        z = weight @ x + (0 if self.without_bias else bias)
        z = z + self.epsilon * np.where(z < 0, -1, 1)
        return x * (weight.T @ (relevance / z))


def lrp(layers: Sequence[nn.Linear], rules: Sequence[Relevance], activation: Function, x: Array, target: int) -> Array:
    """Relevance of an MLP with an activation between each two layers."""
    entering = [x]
    for layer in layers[:-1]:
        weight, bias = dense(layer)
        entering.append(of_torch(activation)(weight @ entering[-1] + bias))
    weight, bias = dense(layers[-1])
    out = weight @ entering[-1] + bias
    relevance = np.where(np.arange(len(out)) == target, out, 0)
    for layer, rule, z in zip(layers[::-1], rules[::-1], entering[::-1], strict=True):
        relevance = rule.back(layer, z, relevance)
    return relevance
