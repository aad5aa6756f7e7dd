"""Which number of an example's output is explained."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index as as_int
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, MissingTargetError, TargetError


@dataclass(slots=True)
class Target:
    """raw: as given. column: one index for all examples. rows: one for each, [examples, k]. bounds: their ranges."""

    raw: Any = None
    column: tuple[int, ...] = ()
    rows: Tensor | None = None
    bounds: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def of(raw: Any, examples: int) -> Target:
        """A checked Target from any of captum's forms: int, tuple, tensor, list of ints, list of tuples."""
        if raw is None:
            return _NONE
        if isinstance(raw, Tensor):
            return _of_tensor(raw, examples)
        if isinstance(raw, list):
            return _of_list(raw, examples)
        return Target(raw, _indices("target", raw))

    def check(self, out: Tensor) -> None:
        """Raise unless this target picks one number from each row of out."""
        column = tuple([(c, c) for c in self.column])
        if self.rows is not None or self.column or out.numel() != len(out):
            _check_bounds(self.raw, self.bounds if self.rows is not None else column, out)

    def select(self, out: Tensor, rows: Tensor | None) -> Tensor:
        """As pick, but all of out without a target, and an index may leave dimensions: [R, ...]."""
        if rows is None and not self.column:
            return out
        sizes, bounds = out.shape[1:], self.bounds if rows is not None else tuple([(c, c) for c in self.column])
        self.check(out.reshape(*out.shape[: len(bounds) + 1], -1)[..., 0] if len(sizes) > len(bounds) else out)
        index: tuple[Any, ...] = (slice(None), *self.column)
        if rows is not None:
            _check_rows(self.raw, rows, out)
            index = (torch.arange(len(out), device=out.device), *rows.unbind(1))
        return out[index]

    def pick(self, out: Tensor, rows: Tensor | None) -> Tensor:
        """The R explained numbers of out [R, ...], in any shape; rows: this target's rows for these, if any."""
        if rows is None:
            if not self.column and out.numel() == len(out):
                return out
            _check_bounds(self.raw, tuple([(c, c) for c in self.column]), out)
            index: Any = (slice(None), *self.column)
            return out[index]
        _check_bounds(self.raw, self.bounds, out)
        _check_rows(self.raw, rows, out)
        flat = torch.zeros_like(rows[:, 0])
        for part, size in zip(rows.unbind(1), out.shape[1:], strict=False):
            flat = flat * size + part % size
        return out.reshape(len(out), -1).gather(1, flat[:, None])


_NONE = Target()


def _of_tensor(raw: Tensor, examples: int) -> Target:
    if raw.is_floating_point() or raw.is_complex() or raw.dtype == torch.bool:
        raise ArgumentTypeError(f"target: got a tensor of {raw.dtype}; expected integers")
    if raw.numel() == 1:
        return Target(raw, (int(raw.item()),))
    if raw.dim() != 1 or len(raw) != examples:
        raise ArgumentError(f"target: got a tensor of shape {tuple(raw.shape)}; expected one number, or ({examples},)")
    raw = raw.detach()
    low, high = torch.stack([raw.min(), raw.max()]).tolist()
    return Target(raw, rows=raw.long()[:, None], bounds=((low, high),))


def _of_list(raw: list[Any], examples: int) -> Target:
    if len(raw) != examples:
        raise ArgumentError(f"target: got a list of {len(raw)}; expected one for each of the {examples} examples")
    rows = [_indices(f"target[{i}]", item) for i, item in enumerate(raw)]
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ArgumentError(f"target[{i}]: got {len(row)} indices; expected {len(rows[0])}, as in target[0]")
    return Target(raw, rows=torch.tensor(rows), bounds=tuple((min(c), max(c)) for c in zip(*rows, strict=True)))


def _indices(name: str, raw: Any) -> tuple[int, ...]:
    items = raw if isinstance(raw, tuple) else (raw,)
    if not items or any(isinstance(item, bool) or not hasattr(item, "__index__") for item in items):
        raise ArgumentTypeError(
            f"{name}: got {_short(raw)} ({type(raw).__name__}); expected an integer or a tuple of integers"
        )
    try:
        return tuple(as_int(item) for item in items)
    except TypeError:  # an array of several numbers has __index__, too
        raise ArgumentTypeError(f"{name}: got {_short(raw)}; expected an integer or a tuple of integers") from None


def _check_bounds(raw: Any, bounds: tuple[tuple[int, int], ...], out: Tensor) -> None:
    sizes = out.shape[1:]
    if len(bounds) > len(sizes):
        raise TargetError(f"target: got {_for(raw, out)}; expected at most {len(sizes)} indices")
    for (low, high), size in zip(bounds, sizes, strict=False):
        if low < -size or high >= size:
            worst = high if high >= size else low
            raise TargetError(f"target: got index {worst} in {_for(raw, out)}; expected {-size} to {size - 1}")
    left = sizes[len(bounds) :]
    if left.numel() != 1:
        missing = f"expected an index of one number of each example, but {tuple(left)} are left"
        kind = MissingTargetError if raw is None else TargetError
        raise kind(f"target: got {_for(raw, out)}; {missing}")


def _check_rows(raw: Any, rows: Tensor, out: Tensor) -> None:
    if len(rows) != len(out):
        raise TargetError(f"target: got {_for(raw, out)}; expected one index for all examples, as the output is of all")


def _for(raw: Any, out: Tensor) -> str:
    return f"{_short(raw)} for an output of shape {tuple(out.shape)}"


def _short(raw: Any) -> str:
    text = "no target" if raw is None else repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."
