"""What a user's own functions draw, how alike they say it is, and what a user's own model makes of it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ..errors import ArgumentError, ArgumentTypeError


class Draws:
    """Samples of a perturb_func, be it a function that returns one or a generator of them."""

    def __init__(self, perturb_func: Callable[..., Any], inputs: Any, kwargs: dict[str, Any]) -> None:
        if inspect.isgeneratorfunction(perturb_func):
            self._next = perturb_func(inputs, **kwargs).__next__
        else:
            self._next = lambda: perturb_func(inputs, **kwargs)

    def next(self, so_far: int) -> Any:
        """One more sample; None after the last."""
        try:
            return self._next()
        except StopIteration:
            if so_far == 0:
                raise ArgumentError("perturb_func: ended before its first sample; expected at least one") from None
            text = f"perturb_func ended after {so_far} samples, fewer than n_samples: the model is fitted to those"
            warnings.warn(text, stacklevel=2)
            return None


def checked_row(name: str, row: Any, features: int | None = None) -> Tensor:
    """An interpretable sample [1, features] that a user's function returned."""
    wanted = "a tensor of shape (1, features)" if features is None else f"a tensor of shape (1, {features})"
    if not isinstance(row, Tensor):
        raise ArgumentTypeError(f"{name}: returned {type(row).__name__}; expected {wanted}")
    if row.dim() != 2 or len(row) != 1 or features not in (None, row.shape[1]):
        raise ArgumentError(f"{name}: returned shape {tuple(row.shape)}; expected {wanted}")
    return row


def weight(similarity: Any, device: torch.device) -> Tensor:
    """What a user's similarity_func returned, as a tensor [1]."""
    if not isinstance(similarity, Tensor):
        try:
            return torch.tensor([float(similarity)], device=device)
        except (TypeError, ValueError):
            got = type(similarity).__name__
            raise ArgumentTypeError(f"similarity_func: returned {got}; expected a number, or a tensor of one") from None
    if similarity.numel() != 1:
        got = f"a tensor of shape {tuple(similarity.shape)}"
        raise ArgumentError(f"similarity_func: returned {got}; expected a number, or a tensor of one")
    return similarity.flatten().to(device)


def fitted(model: Any, rows: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """The representation of a user's model, fitted to rows [n, features], values [n] and weights [n]."""
    data = TensorDataset(rows.float(), values.float(), weights.float())
    model.fit(DataLoader(data, batch_size=len(rows)))
    found = model.representation()
    if not isinstance(found, Tensor):
        got = type(found).__name__
        raise ArgumentTypeError(f"interpretable_model: its representation() returned {got}; expected a tensor")
    return found


def checked_model(model: Any) -> Any:
    """model, if it can be fitted to batches of rows, values and weights."""
    if not all(callable(getattr(model, name, None)) for name in ("fit", "representation")):
        got = type(model).__name__
        raise ArgumentTypeError(
            f"interpretable_model: got {got}; expected an object with fit(DataLoader) and representation(), such as "
            "SkLearnLasso(alpha=0.01)"
        )
    return model


def checked_function(name: str, function: Any) -> Callable[..., Any]:
    """function, if it can be called."""
    if not callable(function):
        raise ArgumentTypeError(f"{name}: got {type(function).__name__}; expected a function")
    found: Callable[..., Any] = function
    return found
