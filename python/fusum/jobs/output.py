"""The output folder: parts that are there as a whole or not at all, and manifests of the units that are done."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .columns import Unit
from .spec import JobError, changes

# Columns of few values, of which a dictionary gains; of others it takes longer than all the rest, and space.
_FEW = ("target", "source", "reason")


class Folder:
    """An output folder as one process of a job sees it; each has a manifest of its own.

    Arguments:
        job: what makes the job: spec, hashes of files, stamps of data.
        rank: the number of this process.
    """

    def __init__(self, path: str, job: dict[str, Any], rank: int = 0) -> None:
        self.path, self.rank, self._job = Path(path), rank, job
        self.done: dict[str, dict[str, Any]] = {}
        self._own: dict[str, dict[str, Any]] = {}
        self._written = 0.0

    def check(self, overwrite: bool) -> None:
        """Raise JobError, saying what changed, where this folder has parts of another job, or files of no job."""
        if not self.path.exists():
            return
        try:
            kept, parts = self.kept("job.json"), any((self.path / "parts").glob("*"))
            if not overwrite:
                self._load()
            found = changes_of(json.loads(kept), self._job) if parts and kept and not overwrite else []
        except (OSError, ValueError) as error:
            raise JobError(f"output: {self.path} cannot be read: {error}") from error
        if parts and kept is None:
            raise JobError(f"output: {self.path} has parts, but no job.json; expected a folder of a job, or a new one")
        if found:
            what = "; ".join(found)
            raise JobError(f"output: {self.path} holds another job: {what}; expected --overwrite or another folder")

    def begin(self, overwrite: bool, lock: str | None) -> None:
        """Make the folder, or go on in it, or begin anew.

        lock: keeps others out of it; "exclusive", or "shared" with others of torchrun, or none as a worker.
        """
        try:
            for name in ("parts", "rejected"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            if lock is not None:
                self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held while this object lives
                fcntl.flock(self._lock, (fcntl.LOCK_EX if lock == "exclusive" else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            if overwrite:
                for each in [*self.path.glob("parts/*"), *self.path.glob("rejected/*"), *self.path.glob("manifest-*")]:
                    each.unlink()
            if lock == "exclusive":
                self.sweep()
        except BlockingIOError:
            raise JobError(f"output: another process is at work in {self.path}") from None
        except OSError as error:
            raise _failed(self.path, error) from error
        self._load()
        if lock is not None:
            self.keep("job.json", json.dumps(self._job, indent=1).encode())

    def sweep(self) -> None:
        """Remove what processes left that were killed as they wrote; none may be at it."""
        for each in self.path.rglob(".*.tmp"):
            each.unlink()

    def write(self, unit: Unit, table: Any, rejected: Any) -> None:
        """Write the files of a unit and note it as done."""
        if rejected.num_rows:
            self._write_table(self.path / "rejected" / f"{unit.name}.parquet", rejected)
        self._write_table(self.path / "parts" / f"{unit.name}.parquet", table)
        done = {"source": unit.source, "rows": table.num_rows, "rejected": rejected.num_rows}
        self.done[unit.name] = self._own[unit.name] = done
        if time.monotonic() - self._written > 1:  # a unit that is not noted is done again, with the same result
            self.note()

    def note(self, skipped: Mapping[str, str] | None = None) -> None:
        """Write the manifest."""
        self.keep(f"manifest-{self.rank}.json", json.dumps({"units": self._own, "skipped": skipped or {}}).encode())
        self._written = time.monotonic()

    def rows(self) -> int:
        """How many rows the units had that are done."""
        return sum(each["rows"] + each["rejected"] for each in self.done.values())

    def rejected(self) -> int:
        """How many rows were rejected by all processes, of others as far as they have noted it."""
        self._load()
        return sum(each["rejected"] for each in self.done.values())

    def keep(self, name: str, content: bytes) -> None:
        """Write a file of this folder, atomically."""
        whole(self.path / name, lambda file: file.write(content), self.rank)

    def kept(self, name: str) -> bytes | None:
        """The content of a file of this folder, if it is there."""
        path = self.path / name
        return path.read_bytes() if path.exists() else None

    def _load(self) -> None:
        for path in self.path.glob("manifest-*.json"):
            units = json.loads(path.read_bytes())["units"]
            self.done.update(units)
            if path.name == f"manifest-{self.rank}.json":
                self._own = {**units, **self._own}

    def _write_table(self, path: Path, table: Any) -> None:
        size = max(1, table.num_rows)
        whole(path, lambda file: pq.write_table(table, file, row_group_size=size, use_dictionary=_FEW), self.rank)


def changes_of(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two jobs, in words; files that came to the data are no change."""
    found = changes(old["spec"], new["spec"])
    found += [f"the file of {n} has changed" for n in new["hashes"] if old["hashes"].get(n) != new["hashes"][n]]
    gone = [n for n in old["stamps"] if n not in new["stamps"]]
    other = [n for n, stamp in new["stamps"].items() if old["stamps"].get(n, stamp) != stamp]
    return found + [f"data: {n} is gone" for n in gone] + [f"data: {n} has changed" for n in other]


def whole(path: Path, write: Callable[[Any], Any], rank: int) -> None:
    """Let write fill a file that appears under its name when all of it is on the disk; raises JobError.

    rank: of this process; another may write the same file at the same time.
    """
    temporary = path.with_name(f".{path.name}.{rank}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _failed(path, error) from error


def _failed(path: Path, error: OSError) -> JobError:
    what = error.strerror or str(error)
    advice = "the parts that are there are whole, and the same command goes on from them"
    return JobError(f"output: {path} cannot be written: {what}; {advice}")
