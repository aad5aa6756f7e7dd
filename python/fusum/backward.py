"""Autograd's engine, called directly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_engine: Any = torch.autograd.Variable._execution_engine


def run_backward(
    y: Tensor, root: Tensor, inputs: Sequence[Tensor], keep_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients of y with respect to inputs, weighted by root; None for an input that y does not depend on.

    What ``torch.autograd.grad(y, inputs, root)`` does, without its Python layers: those take 100 microseconds here and
    import torch's symbolic shapes at the first call (a second, 36 MB).
    """
    found: tuple[Tensor | None, ...] = _engine.run_backward(
        (y,), (root,), keep_graph, False, tuple(inputs), True, accumulate_grad=False
    )
    return found
