"""Baselines drawn feature by feature from lists of candidates."""

from __future__ import annotations

import random
from typing import Any

from ..errors import ArgumentError, ArgumentTypeError


class ProductBaselines:
    """Draws one of the combinations of features' candidate values; to call it is to draw.

    Arguments:
        baseline_values: a list of candidates for each feature, in a list, or in a dict under the feature's name. Under
            a tuple of names features are drawn together: a candidate is a tuple with a value for each.

    Raises:
        ArgumentError: a feature has no candidates, or one of them has not a value for each name.
    """

    def __init__(
        self,
        baseline_values: list[list[Any]] | dict[str | tuple[str, ...], list[Any]],
    ) -> None:
        values: Any = baseline_values
        if not isinstance(values, (list, tuple, dict)):
            got = type(values).__name__
            raise ArgumentTypeError(f"baseline_values: got {got}; expected a list or a dict of lists")
        self.dict_keys: list[Any] = list(values) if isinstance(values, dict) else []
        self.baseline_values: list[Any] = list(values.values() if isinstance(values, dict) else values)
        for key, candidates in zip(self.dict_keys or range(len(values)), self.baseline_values, strict=True):
            _check(f"baseline_values[{key!r}]", candidates, len(key) if isinstance(key, tuple) else None)

    def sample(self) -> list[Any] | dict[str, Any]:
        """A value for each feature, by Python's ``random``: in a list, or in a dict under the features' names."""
        drawn = [random.choice(candidates) for candidates in self.baseline_values]
        if not self.dict_keys:
            return drawn
        found: dict[str, Any] = {}
        for key, value in zip(self.dict_keys, drawn, strict=True):
            found.update(zip(key, value, strict=True) if isinstance(key, tuple) else [(key, value)])
        return found

    def __call__(self) -> list[Any] | dict[str, Any]:
        """As sample."""
        return self.sample()


def _check(name: str, candidates: Any, together: int | None) -> None:
    """Raise unless there are candidates; together: of how many features, if their values come in tuples."""
    if isinstance(candidates, (str, dict)) or not hasattr(candidates, "__getitem__"):
        raise ArgumentTypeError(f"{name}: got {type(candidates).__name__}; expected a list of candidates")
    if len(candidates) == 0:
        raise ArgumentError(f"{name}: got no candidate; expected at least one")
    if together is None:
        return
    for i, value in enumerate(candidates):
        if not isinstance(value, (tuple, list)) or len(value) != together:
            raise ArgumentError(f"{name}[{i}]: got {value!r}; expected a tuple of {together} values, one for each name")
