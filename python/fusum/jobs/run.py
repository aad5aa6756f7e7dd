"""A job from beginning to end: reading, computing and writing overlap, each in a thread of its own."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from ..errors import ArgumentError
from .baselines import baselines_of, is_file, packed
from .columns import Rows, Unit
from .data import Data
from .explain import Explainer, Found
from .models import device_of, file_hash, model_hash
from .output import Folder
from .report import Report
from .spec import JobError, Spec

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """A process's part of the work: a unit is its own where index % world == rank. local: its number on its machine."""

    rank: int = 0
    world: int = 1
    local: int | None = None

    @staticmethod
    def of_torchrun() -> Share | None:
        """The share of a process that torchrun started."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return None
        return Share(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@dataclass(frozen=True)
class Summary:
    """What a run did. rows: read by it, rejected ones among them. before: rows that earlier runs had read.

    skipped: files that could not be read, and why. columns: of the output and their types, where nothing was written.
    """

    output: str
    rows: int
    rejected: int
    parts: int
    seconds: float
    before: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def rows_per_second(self) -> float:
        """Of this run."""
        return self.rows / self.seconds if self.seconds else 0.0


def run(spec: Spec, *, dry_run: bool = False, overwrite: bool = False) -> Summary:
    """Explain all rows of a job, or those that an earlier run of it left; under torchrun this process's share.

    Arguments:
        dry_run: check everything and explain one batch; write nothing.
        overwrite: remove what an earlier job has left in the folder, whatever job it was.

    Raises:
        ArgumentError: a key does not fit, before anything is written.
        JobError: the job cannot start or go on; what is written is whole, and the same call goes on from there.
    """
    share = Share.of_torchrun()
    if share is not None and (overwrite or spec.workers > 1 or spec.engine == "ray"):
        name = "overwrite" if overwrite else "workers" if spec.workers > 1 else "engine"
        raise ArgumentError(f"{name}: not under torchrun, whose processes share the folder and the work")
    job = Job(spec, share or Share())
    job.folder.check(overwrite)
    if dry_run:
        return job.try_out()
    if spec.engine == "ray":
        from .ray import run_ray

        return run_ray(job, overwrite)
    if spec.workers > 1:
        from .workers import run_workers

        return run_workers(job, overwrite)
    baselines = job.baselines()
    explainer = job.explainer(baselines)
    job.begin(baselines, overwrite, "exclusive" if share is None else "shared")
    return job.work(explainer, Report(job.left()))


class Job:
    """A job in one process: its data, its folder, its share."""

    def __init__(self, spec: Spec, share: Share) -> None:
        self.spec, self.share = spec, share
        self.data = Data(spec)
        hashes = {"model": model_hash(spec)}
        if is_file(spec):
            hashes["baselines"] = file_hash(str(spec.baselines), "baselines")
        self._facts = {"model_sha256": hashes["model"]}
        cut = {**spec.as_dict(), "rows_per_part": self.data.unit_rows}
        what = {"spec": cut, "hashes": hashes, "stamps": self.data.stamps}
        self.folder = Folder(spec.output, what, share.rank)

    @cached_property
    def device(self) -> torch.device:
        """Where this process computes, if it does; raises where there is none such."""
        return device_of(self.spec, self.share.local)

    def baselines(self, kept: bool = False) -> Any:
        """The job's baselines; those that are kept in the folder if units were done with them, or as kept says."""
        file = self.folder.kept("baselines.npz") if kept or self.folder.done else None
        return baselines_of(self.spec, (table for _, table in self.data.units(lambda _: True)), file)

    def explainer(self, baselines: Any) -> Explainer:
        """An Explainer that has seen the data's first rows that fit."""
        explainer = Explainer(self.spec, self.device, baselines, self._facts)
        reason = "there is none"
        for unit, table in self.data.units(lambda _: True):
            if explainer.acquaint(table, unit):
                return explainer
            reason = explainer.prepare(table, unit).rejected["reason"][0]
        raise JobError(f"data: no row of {self.spec.data} can be explained: {reason}")

    def begin(self, baselines: Any, overwrite: bool, lock: str | None) -> None:
        """Make the folder, or go on in it."""
        self.folder.begin(overwrite, lock)
        if isinstance(baselines, tuple):
            self.folder.keep("baselines.npz", packed(baselines))

    def left(self) -> int | None:
        """How many rows of this process's share are to be read, if that is known."""
        return self.data.rows(self._mine)

    def work(self, explainer: Explainer, report: Report) -> Summary:
        """Explain what is left of this process's share."""
        before = self.folder.rows()
        pending: deque[Future[None]] = deque()
        try:
            self._stop_if_rejected()
            with ThreadPoolExecutor(1) as writer, closing(ahead(self._prepared(explainer))) as units:
                for unit, rows in units:
                    found = self._explained(explainer, report, unit, rows)
                    pending.append(writer.submit(self._write, explainer, report, unit, rows, found))
                    while len(pending) > 1:
                        pending.popleft().result()
                while pending:
                    pending.popleft().result()
        finally:
            report.close()
            self.folder.note(self.data.skipped)
        return self.summary(report, before)

    def summary(self, report: Report, before: int) -> Summary:
        """What a report says; before: rows that had been done."""
        counts = report.rows, report.rejected, report.parts, report.seconds
        return Summary(self.spec.output, *counts, before, dict(self.data.skipped))

    def try_out(self) -> Summary:
        """Explain a few rows and write nothing."""
        explainer, report = self.explainer(self.baselines()), Report(None)
        for unit, table in self.data.units(lambda _: True):
            found, rejected = explainer(table.slice(0, 256), unit)
            if found.num_rows:
                columns = {each.name: str(each.type) for each in found.schema}
                report.rows, report.rejected = found.num_rows + rejected.num_rows, rejected.num_rows
                return replace(self.summary(report, 0), columns=columns)
        raise AssertionError("the explainer has seen rows that fit")

    def _mine(self, unit: Unit) -> bool:
        return unit.index % self.share.world == self.share.rank and unit.name not in self.folder.done

    def _prepared(self, explainer: Explainer) -> Iterator[tuple[Unit, Rows]]:
        for unit, table in self.data.units(self._mine):
            yield unit, explainer.prepare(table, unit)

    def _explained(self, explainer: Explainer, report: Report, unit: Unit, rows: Rows) -> list[Found]:
        try:
            return explainer.explain(rows, report.explained)
        except Exception as error:  # a model may raise anything
            text = f"{type(error).__name__}: {error}"
            raise JobError(f"rows from number {unit.first} of {unit.source} cannot be explained: {text}") from error

    def _write(self, explainer: Explainer, report: Report, unit: Unit, rows: Rows, found: list[Found]) -> None:
        self.folder.write(unit, explainer.table(rows, found), rows.rejected)
        report.add(rows.total, rows.rejected.num_rows)
        if rows.rejected.num_rows:
            self._stop_if_rejected()

    def _stop_if_rejected(self) -> None:
        most = self.spec.max_rejected
        if most is not None and (found := self.folder.rejected()) > most:
            where = f"{self.folder.path}/rejected says why"
            raise JobError(f"max_rejected: {found} rows were rejected; expected {most} at most; {where}")


def ahead(items: Iterator[T]) -> Generator[T]:
    """The same items, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            yield item
