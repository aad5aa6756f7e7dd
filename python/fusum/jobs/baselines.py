"""The baselines of a job: a number, means of columns, some rows of the data, or rows of a file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch

from ..errors import ArgumentError
from .columns import Columns, fitting
from .data import FORMATS, format_of
from .spec import JobError, Spec

Arrays = list[Any]  # one for each explained input, [rows, ...]


def baselines_of(spec: Spec, tables: Iterable[Any], kept: bytes | None = None) -> Any:
    """None, a number, or a tensor [rows, ...] for each explained input.

    Arguments:
        tables: all of the data; means and samples are made of its rows that fit, in one pass.
        kept: what ``packed`` made of them before, which spares the pass.

    Raises:
        ArgumentError, JobError: a file, or the data, does not hold such rows.
    """
    if not isinstance(spec.baselines, str):
        return spec.baselines
    if kept is not None:
        with np.load(io.BytesIO(kept)) as file:
            arrays = [file[name] for name in file.files]
    elif spec.baselines == "mean":
        arrays = _means(_fitting(spec, table) for table in tables)
    elif spec.baselines.startswith("sample:"):
        arrays = _sample((_fitting(spec, table) for table in tables), int(spec.baselines[7:]), spec.seed)
    else:
        arrays = _file(spec)
    return tuple(torch.from_numpy(each).to(getattr(torch, spec.dtype)) for each in arrays)


def packed(baselines: tuple[torch.Tensor, ...]) -> bytes:
    """Baselines as the bytes of a file."""
    buffer = io.BytesIO()
    np.savez(buffer, *[(x.float() if x.dtype == torch.bfloat16 else x).numpy() for x in baselines])
    return buffer.getvalue()


def is_file(spec: Spec) -> bool:
    """Whether baselines are rows of a file."""
    text = spec.baselines
    return isinstance(text, str) and text != "mean" and not text.startswith("sample:")


def _fitting(spec: Spec, table: Any) -> Arrays:
    arrays, reasons = Columns(spec).arrays(table)
    return [a[fitting(table, reasons)] for a, each in zip(arrays, spec.inputs, strict=True) if each.explain]


def _means(parts: Iterable[Arrays]) -> Arrays:
    totals, count = None, 0
    for part in parts:
        sums = [a.sum(0, dtype=np.float64) for a in part]
        totals = sums if totals is None else [t + s for t, s in zip(totals, sums, strict=True)]
        count += len(part[0])
    if totals is None or not count:
        raise JobError('baselines: got "mean", but no row of the data fits')
    return [(t / count)[None] for t in totals]


def _sample(parts: Iterable[Arrays], wanted: int, seed: int) -> Arrays:
    """The rows that drew the smallest of random numbers."""
    draw, numbers, kept = np.random.default_rng(seed), np.empty(0), None
    for part in parts:
        numbers = np.concatenate([numbers, draw.random(len(part[0]))])
        kept = part if kept is None else [np.concatenate(pair) for pair in zip(kept, part, strict=True)]
        least = np.sort(np.argsort(numbers, kind="stable")[:wanted])
        numbers, kept = numbers[least], [a[least] for a in kept]
    if kept is None or len(numbers) < wanted:
        raise JobError(f"baselines: got sample:{wanted}, but only {len(numbers)} rows of the data fit")
    return kept


def _file(spec: Spec) -> Arrays:
    path = str(spec.baselines)
    kind = format_of(path)
    if kind is None or not os.path.isfile(path):
        expected = f'"mean", "sample:K" or a file of {sorted(FORMATS)}'
        raise ArgumentError(f"baselines: got {path!r}; expected a number, {expected}")
    try:
        table = ds.dataset(path, format=kind).to_table()
        arrays, reasons = Columns(spec).arrays(table)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ArgumentError(f"baselines: {path}: {error}") from None
    if reasons or not table.num_rows:
        row, reason = min(reasons.items(), default=(0, "there is none"))
        raise ArgumentError(f"baselines: {path}, row {row}: {reason}")
    return [a for a, each in zip(arrays, spec.inputs, strict=True) if each.explain]
