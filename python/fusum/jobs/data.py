"""Where rows come from: files, cut into units of work that are the same however often and by whomever they are read."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ..errors import ArgumentError
from .columns import Columns, Unit
from .spec import JobError, Spec

FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "ipc", ".feather": "ipc", ".ipc": "ipc", ".csv": "csv",
}  # fmt: skip
# A unit has about so many bytes of inputs, but no more than so many rows; token ids count as so many bytes a row.
_UNIT_BYTES, _UNIT_ROWS, _TOKEN_BYTES = 2**26, 2**14, 2**16
_BUFFER_BYTES = 2**17  # read at once of a Parquet file's column


@dataclass(frozen=True)
class Source:
    """A file, or a row group of a Parquet file. name: its path below the data's folder. first: its first row's number.

    rows: None if not known before it is read.
    """

    index: int
    path: str
    name: str
    group: int
    first: int
    rows: int | None
    fragment: Any = field(repr=False, compare=False)


class Data:
    """A job's files. skipped: those that cannot be read, and why. stamps: size and time of change of the others.

    Raises:
        ArgumentError: there is no file.
        JobError: one cannot be read, or has not the columns.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.sources: list[Source] = []
        self.skipped: dict[str, str] = {}
        self.stamps: dict[str, list[int]] = {}
        self.unit_rows = 0
        for path, name in _files(spec.data):
            try:
                stat = os.stat(path)
                groups = self._open(path)
            except (pa.ArrowException, OSError, ArgumentError) as error:
                self._skip(path, error)
                continue
            self.stamps[name] = [stat.st_size, stat.st_mtime_ns]
            first = 0
            for i, (rows, fragment) in enumerate(groups):
                self.sources.append(Source(len(self.sources), path, name, i, first, rows, fragment))
                first += rows or 0
        if not self.stamps:
            raise JobError(f"data: no file can be read, such as {next(iter(self.skipped.items()))}")

    def rows(self, wanted: Callable[[Unit], bool]) -> int | None:
        """The number of rows of units that are wanted, if it is known."""
        count = 0
        for source in self.sources:
            if source.rows is None:
                return None
            for start in range(0, source.rows, self.unit_rows):
                if wanted(self._unit(source, start // self.unit_rows)):
                    count += min(self.unit_rows, source.rows - start)
        return count

    def units(self, wanted: Callable[[Unit], bool]) -> Iterator[tuple[Unit, Any]]:
        """Units that are wanted and their rows, in order."""
        for source in self.sources:
            try:
                yield from self._read(source, wanted)
            except (pa.ArrowException, OSError) as error:
                self._skip(source.path, error)

    def _open(self, path: str) -> list[tuple[int | None, Any]]:
        """(rows, fragment) of each row group of a file, or of all of it."""
        kind = format_of(path)
        fragment = next(ds.dataset(path, format=self._csv() if kind == "csv" else kind).get_fragments())
        schema = fragment.physical_schema
        Columns(self.spec).check(schema)
        self.unit_rows = self.unit_rows or _unit_rows(self.spec, schema)
        if kind == "parquet":
            return [(each.row_groups[0].num_rows, each) for each in fragment.split_by_row_group()]
        return [(fragment.count_rows() if kind == "ipc" else None, fragment)]

    def _csv(self) -> Any:
        """CSV's numbers are read as such throughout, whatever the first rows look like."""
        numbers = [name for each in self.spec.inputs if each.dtype != "int64" for name in each.columns]
        types = {name: pa.float64() for name in numbers if name != self.spec.id}
        return ds.CsvFileFormat(convert_options=pyarrow.csv.ConvertOptions(column_types=types))

    def _skip(self, path: str, error: BaseException) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        if self.spec.unreadable == "fail":
            raise JobError(f'data: {path} cannot be read: {reason} (unreadable = "skip" goes on without it)') from error
        self.skipped[path] = reason

    def _unit(self, source: Source, number: int) -> Unit:
        stem = re.sub(r"[^\w-]", "_", os.path.splitext(os.path.basename(source.name))[0])[:60]
        digest = hashlib.sha256(source.name.encode()).hexdigest()[:10]
        name = f"{stem}-{digest}-{source.group:05d}-{number:05d}"
        return Unit(name, source.name, source.first + number * self.unit_rows, source.index + number)

    def _read(self, source: Source, wanted: Callable[[Unit], bool]) -> Iterator[tuple[Unit, Any]]:
        size, last = self.unit_rows, None
        if source.rows is not None:
            numbers = [i for i in range(-(-source.rows // size)) if wanted(self._unit(source, i))]
            if not numbers:
                return
            last = numbers[-1]
        for number, table in enumerate(_cut(source.fragment, self.spec.columns, size)):
            unit = self._unit(source, number)
            if wanted(unit):
                yield unit, table
            if number == last:
                return


def format_of(path: str) -> str | None:
    """What pyarrow calls a file's format, told by its ending; None for others."""
    return FORMATS.get(os.path.splitext(path)[1].lower())


def _batches(fragment: Any, columns: list[str], size: int) -> Iterator[Any]:
    """A fragment's rows, of which few are in memory at once: a scanner would hold all of a Parquet file's row group."""
    if not isinstance(fragment, ds.ParquetFileFragment):
        yield from fragment.to_batches(columns=columns, batch_size=size, batch_readahead=1, fragment_readahead=1)
        return
    groups = [each.id for each in fragment.row_groups]
    with fragment.open() as opened:
        file = pq.ParquetFile(opened, metadata=fragment.metadata, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        yield from file.iter_batches(batch_size=size, row_groups=groups, columns=columns, use_threads=False)


def _cut(fragment: Any, columns: list[str], size: int) -> Iterator[Any]:
    """A fragment's rows in tables of size rows, and what is left."""
    held, pending = 0, []
    for batch in _batches(fragment, columns, size):
        while batch.num_rows:
            head = batch.slice(0, size - held)
            batch = batch.slice(head.num_rows)
            pending.append(head)
            held += head.num_rows
            if held == size:
                yield pa.Table.from_batches(pending)
                held, pending = 0, []
    if held:
        yield pa.Table.from_batches(pending)


def _files(data: str) -> list[tuple[str, str]]:
    """Paths of files, and what they are called below the folder of data, in order."""
    if os.path.isdir(data):
        root, paths = data, glob.glob(os.path.join(glob.escape(data), "**", "*"), recursive=True)
        paths = [p for p in paths if format_of(p)]
    elif os.path.isfile(data):
        root, paths = os.path.dirname(data), [data]
    else:
        root, paths = os.path.dirname(re.split(r"[*?\[]", data)[0]), glob.glob(data, recursive=True)
    found = sorted((os.path.relpath(p, root or "."), p) for p in paths if os.path.isfile(p))
    found = [(name, path) for name, path in found if not os.path.basename(name).startswith((".", "_"))]
    strange = [path for _, path in found if format_of(path) is None]
    if strange or not found:
        got = strange[0] if strange else f"{data}, where there is no file"
        raise ArgumentError(f"data: got {got}; expected a file, folder or glob of {sorted(FORMATS)}")
    return [(path, name) for name, path in found]


def _unit_rows(spec: Spec, schema: Any) -> int:
    """How many rows make a unit of work, from the spec and the types of columns alone."""
    if isinstance(spec.rows_per_part, int):
        return spec.rows_per_part
    width = 0
    for each in spec.inputs:
        sizes = [getattr(schema.field(name).type, "list_size", 1) for name in each.columns]
        width += _TOKEN_BYTES if each.vocabulary else 4 * (prod(each.shape) if each.shape else sum(sizes))
    return max(1, min(_UNIT_ROWS, _UNIT_BYTES // width))
