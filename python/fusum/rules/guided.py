"""Guided backpropagation and deconvolution: ReLU passes back what is positive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .intercept import Table
from .state import Pass, below


class _Guided(torch.autograd.Function):
    """Where ReLU was positive, only positive gradients pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.where(y > 0, gradient, 0).relu()


class _Deconvolution(torch.autograd.Function):
    """Only positive gradients pass, whatever ReLU was."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.relu()


@contextmanager
def guided(graph: Iterable[Any]) -> Iterator[None]:
    """A context in which a plain graph, given by its nodes, goes back by guided backpropagation."""
    handles = [
        node.register_prehook(_positive) for node in graph if node is not None and node.name() == "ReluBackward0"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _positive(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple([g if g is None else g.relu() for g in gradients])


def _table(function: type[torch.autograd.Function], compiled: int) -> Table:
    def relu(running: Pass, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with below():
            return function.apply(args[0])

    return Table(frozenset(), {"relu": relu}, None, relu=compiled)


TABLES = {False: _table(_Guided, 2), True: _table(_Deconvolution, 3)}
