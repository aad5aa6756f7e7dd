"""From columns of a table to tensors: rows that fit, batch by batch, and those that do not, with the reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..errors import ArgumentError
from .spec import Input, Spec

Reasons = dict[int, str]
_TOKEN_ROWS = 64  # rows of like length that are batched together


@dataclass(frozen=True)
class Unit:
    """A unit of work. name: also of its files; it depends on nothing else. first: number of its first row in source."""

    name: str
    source: str
    first: int
    index: int


@dataclass
class Ragged:
    """Lists of token ids: row r is values[starts[r] : starts[r] + lengths[r]]."""

    values: Any
    starts: Any
    lengths: Any

    def padded(self, rows: Any, each: Input) -> tuple[Any, Any]:
        """Ids of some rows, padded to the longest [rows, length], and where they are none of padding."""
        lengths = self.lengths[rows]
        there = np.arange(each.longest if each.static and each.longest else lengths.max()) < lengths[:, None]
        ids = np.full(there.shape, each.pad, np.int64)
        ids[there] = np.concatenate([self.values[self.starts[r] : self.starts[r] + self.lengths[r]] for r in rows])
        return ids, there


@dataclass
class Batch:
    """Rows given to a method at once. rows: their places in the unit. padded: the length of token ids, or 0.

    tensors: the first ones (explained) are inputs, the next ones (more) additional arguments; then a target for each
    row, if columns say so. ready: the event of their arrival on the device.
    """

    rows: Any
    tensors: list[Tensor]
    explained: int
    more: int
    padded: int
    seed: int
    ready: Any = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What is explained."""
        return tuple(self.tensors[: self.explained])

    @property
    def extra(self) -> tuple[Tensor, ...]:
        """What the model takes besides."""
        return tuple(self.tensors[self.explained : self.explained + self.more])

    @property
    def target(self) -> Tensor | None:
        """Which number of the output is explained, if a column says so."""
        return self.tensors[-1] if len(self.tensors) > self.explained + self.more else None


@dataclass
class Rows:
    """A unit's rows: ids of those that fit, their batches, the others with reasons, and lengths of token ids."""

    total: int
    ids: Any
    batches: list[Batch]
    rejected: Any
    lengths: Any


class Columns:
    """The mapping of a spec."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._tokens = next((i for i, each in enumerate(spec.inputs) if each.vocabulary), None)
        self._target = spec.target_column

    def check(self, schema: Any) -> None:
        """Raise ArgumentError where columns are missing or of types that do not fit."""
        for name in self.spec.columns:
            if name not in schema.names:
                raise ArgumentError(f"there is no column {name!r}, but {schema.names}")
        for i, each in enumerate(self.spec.inputs):
            for name in each.columns:
                wanted = _wanted(schema.field(name).type, each, self._dtype(each))
                if wanted:
                    raise ArgumentError(f"inputs[{i}]: column {name!r} is {schema.field(name).type}; expected {wanted}")
        if self._target is not None and not pa.types.is_integer(schema.field(self._target).type):
            got = schema.field(self._target).type
            raise ArgumentError(f"target: column {self._target!r} is {got}; expected integers")

    def arrays(self, table: Any) -> tuple[list[Any], Reasons]:
        """An array [rows, ...], or Ragged, for each input, and why rows do not fit: those hold anything."""
        reasons: Reasons = {}
        found: list[Any] = []
        for each in self.spec.inputs:
            columns = [table[name].combine_chunks() for name in each.columns]
            kind = np.dtype("float32" if self._dtype(each) == "bfloat16" else self._dtype(each))
            if each.vocabulary:
                found.append(_tokens(columns[0], each, reasons))
                continue
            values = (_lists if _is_list(columns[0].type) else _scalars)(columns, each, kind, reasons)
            found.append(values if each.shape is None else values.reshape(len(values), *each.shape))
        return found, reasons

    def rows(self, table: Any, unit: Unit, classes: int | None, step: int | None = None) -> Rows:
        """The rows of a unit. classes: how many targets there are. step: rows of a batch; None: as the spec says."""
        arrays, reasons = self.arrays(table)
        ids = table[self.spec.id].combine_chunks()
        targets = None
        if self._target is not None:
            targets = _targets(table[self._target].combine_chunks(), self._target, classes, reasons)
        _note(reasons, _nulls(ids), lambda _: f"{self.spec.id}: null")
        good, bad = fitting(table, reasons), sorted(reasons)
        rejected = {
            "id": ids.take(pa.array(bad, pa.int64())),
            "source": pa.array([unit.source] * len(bad), pa.string()),
            "row": pa.array([unit.first + r for r in bad], pa.int64()),
            "reason": pa.array([reasons[r] for r in bad], pa.string()),
        }
        batches = list(self._batches(arrays, targets, good, unit.name, step))
        lengths = None if self._tokens is None else arrays[self._tokens].lengths[good]
        return Rows(table.num_rows, ids.take(pa.array(good)), batches, pa.table(rejected), lengths)

    def _dtype(self, each: Input) -> str:
        return each.dtype or ("int64" if each.vocabulary else self.spec.dtype)

    def _batches(self, arrays: list[Any], targets: Any, good: Any, name: str, step: Any) -> Iterator[Batch]:
        places, step = np.arange(len(good)), step or self.spec.batch
        if self._tokens is not None:
            places = np.argsort(arrays[self._tokens].lengths[good], kind="stable")
        if step == "auto":
            step = len(good) if self._tokens is None else _TOKEN_ROWS
        for start in range(0, len(good), step or 1):
            digest = hashlib.sha256(f"{self.spec.seed}/{name}/{start}".encode()).digest()
            chosen = places[start : start + step]
            yield self._batch(arrays, targets, chosen, good[chosen], int.from_bytes(digest[:4], "big"))

    def _batch(self, arrays: list[Any], targets: Any, places: Any, rows: Any, seed: int) -> Batch:
        inputs: list[Tensor] = []
        extra: list[Tensor] = []
        padded = 0
        for array, each in zip(arrays, self.spec.inputs, strict=True):
            kept = inputs if each.explain else extra
            if isinstance(array, Ragged):
                ids, there = array.padded(rows, each)
                padded = padded or ids.shape[1]
                kept.append(torch.from_numpy(ids))
                extra += [torch.from_numpy(there).long()] if each.mask else []
            else:
                kept.append(torch.from_numpy(array[rows]).to(getattr(torch, self._dtype(each))))
        target = [] if targets is None else [torch.from_numpy(targets[rows])]
        return Batch(places, [*inputs, *extra, *target], len(inputs), len(extra), padded, seed)


def fitting(table: Any, reasons: Reasons) -> Any:
    """The numbers of rows that have no reason to be rejected."""
    return np.setdiff1d(np.arange(table.num_rows), np.fromiter(reasons, np.int64, len(reasons)), True)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _wanted(kind: Any, each: Input, dtype: str) -> str | None:
    """What a column of another type should be."""
    values = kind.value_type if _is_list(kind) else kind
    whole = pa.types.is_integer(values) or pa.types.is_boolean(values)
    if each.vocabulary and not _is_list(kind):
        return "lists of token ids"
    if _is_list(kind) and len(each.columns) > 1:
        return f"numbers, as of the {len(each.columns)} columns that are stacked"
    if _is_list(kind) and not (each.vocabulary or each.shape or pa.types.is_fixed_size_list(kind)):
        return "fixed-size lists, or lists together with shape"
    if not _is_list(kind) and each.shape and prod(each.shape) != len(each.columns):
        return f"one of {prod(each.shape)}, as shape is {each.shape}"
    if dtype == "int64":
        return None if whole else "integers"
    return None if whole or pa.types.is_floating(values) or pa.types.is_decimal(values) else "numbers"


def _nulls(values: Any) -> Any:
    return np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)) if values.null_count else ()


def _note(reasons: Reasons, rows: Iterable[int], say: Callable[[int], str]) -> None:
    for row in rows:
        reasons.setdefault(int(row), say(int(row)))


def _numbers(values: Any, kind: Any) -> Any:
    """An Arrow array as NumPy's, of nulls 0; numbers too large for kind become infinite."""
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    if values.null_count:
        values = values.fill_null(pa.scalar(0).cast(values.type))
    with np.errstate(over="ignore"):
        return values.to_numpy(zero_copy_only=False).astype(kind, copy=False)


def _scalars(columns: list[Any], each: Input, kind: Any, reasons: Reasons) -> Any:
    out = np.empty((len(columns[0]), len(columns)), kind)
    for j, (values, name) in enumerate(zip(columns, each.columns, strict=True)):
        _note(reasons, _nulls(values), lambda _, name=name: f"{name}: null")  # type: ignore[misc]
        out[:, j] = _numbers(values, kind)
    for row, j in np.argwhere(~np.isfinite(out)).tolist():
        reasons.setdefault(row, f"{each.columns[j]}: {columns[j][row]}; expected a finite {kind}")
    return out


def _well_sized(column: Any, name: str, least: int, most: int, reasons: Reasons) -> tuple[Any, Any]:
    """The lengths of lists, of those that do not fit 0, and the values of those that do."""
    lengths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    fits = (lengths >= least) & (lengths <= most)
    expected = least if least == most else f"{least} to {most}"

    def say(row: int) -> str:
        return f"{name}: null" if lengths[row] < 0 else f"{name}: a list of {lengths[row]}; expected {expected}"

    _note(reasons, np.flatnonzero(~fits), say)
    lengths = np.where(fits, lengths, 0)
    flat = column.filter(pa.array(fits)).flatten()
    row_of = np.repeat(np.arange(len(lengths)), lengths) if flat.null_count else ()
    _note(reasons, [row_of[place] for place in _nulls(flat)], lambda _: f"{name}: null in the list")
    return lengths, flat


def _lists(columns: list[Any], each: Input, kind: Any, reasons: Reasons) -> Any:
    size, name = prod(each.shape) if each.shape else columns[0].type.list_size, each.columns[0]
    lengths, flat = _well_sized(columns[0], name, size, size, reasons)
    out = np.zeros((len(lengths), size), kind)
    out[lengths > 0] = _numbers(flat, kind).reshape(-1, size)
    for row, j in np.argwhere(~np.isfinite(out)).tolist():
        reasons.setdefault(row, f"{name}: {out[row, j]} in the list; expected finite {kind}")
    return out


def _tokens(column: Any, each: Input, reasons: Reasons) -> Ragged:
    most, name = (each.vocabulary or 0) - 1, each.columns[0]
    lengths, flat = _well_sized(column, name, 1, each.longest or 2**31 - 1, reasons)
    values = _numbers(flat, np.int64)
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    for place in np.flatnonzero((values < 0) | (values > most)):
        reasons.setdefault(int(row_of[place]), f"{name}: id {values[place]}; expected 0 to {most}")
    return Ragged(values, np.cumsum(lengths) - lengths, lengths)


def _targets(column: Any, name: str, classes: int | None, reasons: Reasons) -> Any:
    _note(reasons, _nulls(column), lambda _: f"{name}: null")
    values = _numbers(column, np.int64)
    if classes is not None:
        outside = np.flatnonzero((values < 0) | (values >= classes))
        _note(reasons, outside, lambda row: f"{name}: {values[row]}; expected 0 to {classes - 1}")
    return values
