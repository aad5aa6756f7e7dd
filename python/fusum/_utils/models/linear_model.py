"""``captum._utils.models.linear_model``: scikit-learn's linear models, to give to Lime as interpretable_model."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...errors import ArgumentError

__all__ = ["SkLearnLasso", "SkLearnLinearModel", "SkLearnLinearRegression", "SkLearnRidge"]


class SkLearnLinearModel:
    """A linear model of scikit-learn, fitted to tensors.

    Arguments:
        sklearn_module: its name in scikit-learn, such as "linear_model.Ridge".
        kwargs: given to its constructor.
    """

    def __init__(self, sklearn_module: str, **kwargs: Any) -> None:
        self.sklearn_module, self.construct_kwargs = sklearn_module, kwargs
        self.linear: nn.Linear | None = None

    def fit(self, train_data: DataLoader[Any], **kwargs: Any) -> None:
        """Fit to batches of rows [n, features], values [n] and, if there are three, weights [n].

        Arguments:
            kwargs: given to ``fit`` of scikit-learn's model.

        Raises:
            ImportError: scikit-learn is not installed.
        """
        model = self._class()(**self.construct_kwargs)
        columns = [torch.cat(parts).cpu().numpy() for parts in zip(*train_data, strict=True)]
        if len(columns) not in (2, 3):
            raise ArgumentError(f"train_data: got batches of {len(columns)}; expected rows, values and weights")
        weights = {"sample_weight": columns[2]} if len(columns) == 3 else {}
        model.fit(columns[0], columns[1], **weights, **kwargs)
        weight, bias = torch.as_tensor(model.coef_).float(), torch.as_tensor(model.intercept_).float()
        weight = weight if weight.dim() > 1 else weight[None]
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        self.linear.weight.data = weight
        self.linear.bias.data = bias.expand(len(weight)).clone()

    def representation(self) -> Tensor:
        """The coefficients: [outputs, features]."""
        return self._fitted.weight.detach()

    def bias(self) -> Tensor:
        """The intercept: [outputs]."""
        return self._fitted.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        """The values [n, outputs] of rows [n, features]."""
        found: Tensor = self._fitted(x)
        return found

    @property
    def _fitted(self) -> nn.Linear:
        if self.linear is None:
            raise RuntimeError(f"{type(self).__name__}: fit comes first")
        return self.linear

    def _class(self) -> Any:
        module, _, name = f"sklearn.{self.sklearn_module}".rpartition(".")
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            text = f"{type(self).__name__}: scikit-learn is not installed (Lime's default model does without it)"
            raise ImportError(text) from error


class SkLearnLasso(SkLearnLinearModel):
    """``sklearn.linear_model.Lasso``, of its keyword arguments."""

    def __init__(self, **kwargs: Any) -> None:
        SkLearnLinearModel.__init__(self, "linear_model.Lasso", **kwargs)


class SkLearnRidge(SkLearnLinearModel):
    """``sklearn.linear_model.Ridge``, of its keyword arguments."""

    def __init__(self, **kwargs: Any) -> None:
        SkLearnLinearModel.__init__(self, "linear_model.Ridge", **kwargs)


class SkLearnLinearRegression(SkLearnLinearModel):
    """``sklearn.linear_model.LinearRegression``, of its keyword arguments."""

    def __init__(self, **kwargs: Any) -> None:
        SkLearnLinearModel.__init__(self, "linear_model.LinearRegression", **kwargs)
