"""Operators that torch computes in one piece, taken apart into those that have rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ArgumentError
from .state import Pass

aten: Any = torch.ops.aten
# One step of a cell: gates of the input and of the state, the state -> the new state; its first tensor is the output.
Cell = Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def attention(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Scaled dot-product attention: products and softmax."""
    query, key, value, mask, dropout, causal = args
    scale = kwargs["scale"]
    if kwargs["enable_gqa"]:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    return _attention(query, key, value, mask, dropout, causal, scale)


def flash_attention(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The CPU's flash attention, as an exported program may name it: (output, log-sums of which nothing is made)."""
    query, key, value, dropout, causal = args
    out = _attention(query, key, value, kwargs["attn_mask"], dropout, causal, kwargs["scale"])
    return out, out.detach().sum(-1).transpose(1, 2)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float | None
) -> Tensor:
    scores = (query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    # Like torch's, a row of which all is masked gives zeros.
    weights = aten._safe_softmax(scores, -1)
    return functional.dropout(weights, dropout) @ value if dropout else weights @ value


def _lstm_cell(gates: Tensor, gates_of_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = (gates + gates_of_state).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru_cell(gates: Tensor, gates_of_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (r, z, n), (r_state, z_state, n_state) = gates.chunk(3, -1), gates_of_state.chunk(3, -1)
    new = (n + (r + r_state).sigmoid() * n_state).tanh()
    update = (z + z_state).sigmoid()
    return (new + update * (state[0] - new),)


def _tanh_cell(gates: Tensor, gates_of_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return ((gates + gates_of_state).tanh(),)


def _relu_cell(gates: Tensor, gates_of_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return ((gates + gates_of_state).relu(),)


_CELLS: dict[str, Cell] = {"lstm": _lstm_cell, "gru": _gru_cell, "rnn_tanh": _tanh_cell, "rnn_relu": _relu_cell}


def recurrent(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """lstm, gru, rnn_tanh, rnn_relu: (x, state, weights, with bias, layers, dropout, train, both ways, batch first)."""
    name = op._schema.name.rpartition("::")[2]
    if op._overloadname != "input":
        raise ArgumentError(f"forward_func: calls {op}; expected padded sequences: a packed one is not supported")
    x, states, weights, bias, layers, dropout, train, both, batch_first = args
    states = tuple(states) if name == "lstm" else (states,)
    directions, per_run = 2 if both else 1, len(weights) // (layers * (2 if both else 1))
    x = x.transpose(0, 1) if batch_first else x
    ends: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        outputs = []
        for run in range(layer * directions, (layer + 1) * directions):
            part = weights[run * per_run : (run + 1) * per_run]
            y, end = _run(_CELLS[name], x, tuple([s[run] for s in states]), part, bias, run % directions == 1)
            outputs.append(y)
            ends.append(end)
        x = torch.cat(outputs, -1) if both else outputs[0]
        if dropout and train and layer < layers - 1:
            x = functional.dropout(x, dropout)
    final = [torch.stack(column) for column in zip(*ends, strict=True)]
    return (x.transpose(0, 1) if batch_first else x, *final)


def _run(
    cell: Cell, x: Tensor, state: tuple[Tensor, ...], weights: Any, bias: bool, backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One direction of one layer over x [steps, rows, features]; the outputs and the last state."""
    w_in, w_state, b_in, b_state, *rest = weights if bias else (*weights[:2], None, None, *weights[2:])
    gates = functional.linear(x, w_in, b_in)
    outputs: list[Tensor] = []
    for step in reversed(range(len(x))) if backwards else range(len(x)):
        hidden = state[0]
        state = cell(gates[step], functional.linear(hidden, w_state, b_state), state)
        if rest:  # an LSTM with projections
            state = (functional.linear(state[0], rest[0]), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def cell(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell: (x, state, weights, biases)."""
    name = op._schema.name.rpartition("::")[2].removesuffix("_cell")
    x, state, w_in, w_state, b_in, b_state = args
    states = tuple(state) if name == "lstm" else (state,)
    found = _CELLS[name](functional.linear(x, w_in, b_in), functional.linear(states[0], w_state, b_state), states)
    return found if name == "lstm" else found[0]
