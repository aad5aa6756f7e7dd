"""``engine = "ray"``: a job on a Ray cluster. Ray Data hands its tasks to actors, which hold the model.

A task is some units of one file, cut as they are by every other way to run a job. An actor reads them, explains them
and writes their parts. When it dies, Ray starts another and gives it the task again; parts that it had noted are kept,
and others are written once more, with the same rows.
"""

from __future__ import annotations

import json
import os
import secrets
from importlib.util import find_spec
from typing import Any

from ..errors import ArgumentError
from .columns import Unit
from .explain import Explainer
from .output import Folder
from .report import Report
from .run import Job, Share, Summary
from .spec import JobError, Spec, build

_UNITS = 4  # of a task; reading it begins at the beginning of its file or row group


def run_ray(job: Job, overwrite: bool) -> Summary:
    """Run a job in as many actors as it wants workers, on the cluster that Ray finds, or on this machine alone.

    Raises:
        ArgumentError: ray is missing, or the device is one of many.
        JobError: an actor cannot go on; what is written is whole, and the same command goes on from there.
    """
    spec = job.spec
    if find_spec("ray") is None:
        raise ArgumentError("engine: got 'ray', which is not installed: pip install 'fusum[ray]'")
    if ":" in spec.device:
        raise ArgumentError(f"device: got {spec.device!r}; expected cpu or cuda: Ray gives each actor its own")
    job.begin(job.baselines(), overwrite, "exclusive")
    before = _counts(job.folder)
    report = Report(job.left())
    skipped = dict(job.data.skipped)
    try:
        for found in _results(spec, _tasks(job)):
            if "error" in found:
                raise JobError(f"{found['error']} (the same command goes on with what is left)")
            report.explained(found["rows"] - found["rejected"])
            report.add(found["rows"], found["rejected"])
            skipped |= found["skipped"]
        job.folder.sweep()  # of actors that died
    finally:
        report.close()
        job.folder.note(skipped)
    # Counted by what is there: an actor that was given the task of a dead one found some of its parts done.
    rows, rejected, parts = (now - then for now, then in zip(_counts(job.folder), before, strict=True))
    return Summary(spec.output, rows, rejected, parts, report.seconds, before[0], skipped)


def _counts(folder: Folder) -> tuple[int, int, int]:
    """Rows, rejected ones among them, and parts that are done."""
    rejected = folder.rejected()  # which reads what others have noted
    return folder.rows(), rejected, len(folder.done)


def _tasks(job: Job) -> list[dict[str, Any]]:
    """Ranges of the numbers of each source's units; of one whose rows are not known, all."""
    found = []
    for source in job.data.sources:
        units = 1 if source.rows is None else max(1, -(-source.rows // job.data.unit_rows))
        for first in range(0, units, _UNITS):
            last = 2**62 if source.rows is None else first + _UNITS
            found.append({"name": source.name, "group": source.group, "first": first, "last": last})
    return found


def _results(spec: Spec, tasks: list[dict[str, Any]]) -> Any:
    """What came of each task, as soon as it is there."""
    import ray.data

    given = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    given.context.enable_progress_bars = False  # the job has its own
    done = given.map_batches(
        Actor,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_args=(spec.as_dict(), os.getcwd()),
        compute=ray.data.ActorPoolStrategy(size=min(spec.workers, len(tasks)), max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        num_gpus=1 if spec.device == "cuda" else 0,
    )
    for row in done.iter_rows():
        yield json.loads(row["found"])


class Actor:
    """What holds the model; Ray calls it with one task after the other. keys: of the spec. place: where paths begin."""

    def __init__(self, keys: dict[str, Any], place: str) -> None:
        self._keys, self._place = keys, place
        self._share: _ActorsJob | None = None

    def __call__(self, task: dict[str, Any]) -> dict[str, list[str]]:
        """What came of a task: counts, or an error in words."""
        name, (group, first, last) = str(task["name"][0]), (int(task[key][0]) for key in ("group", "first", "last"))
        try:
            done = self._job().do(name, group, range(first, last))
            found = {"rows": done.rows, "rejected": done.rejected, "skipped": done.skipped}
        except (JobError, ArgumentError) as error:
            found = {"error": str(error)}
        return {"found": [json.dumps(found)]}

    def _job(self) -> _ActorsJob:
        """Made at the first task, so that what is wrong is said as what came of it."""
        if self._share is None:
            os.chdir(self._place)
            self._share = _ActorsJob(build(Spec, self._keys))
        return self._share


class _ActorsJob(Job):
    """A job as an actor sees it: each task in turn is its share. Its manifest is its own, by a number drawn for it."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, Share(rank=1 + secrets.randbelow(2**48)))
        self._explainer: Explainer = self.explainer(self.baselines(kept=True))
        self._sources = {(each.name, each.group): each for each in self.data.sources}
        self._first, self._wanted = 0, range(0)
        self.begin(None, False, None)

    def do(self, name: str, group: int, wanted: range) -> Summary:
        """Explain the units of a source whose numbers are wanted."""
        source = self._sources.get((name, group))
        if source is None:
            raise JobError(f"data: {name} was there when the job began, and is not here")
        self.data.sources, self._first, self._wanted = [source], source.index, wanted
        return self.work(self._explainer, _Quiet(None))

    def _mine(self, unit: Unit) -> bool:
        return unit.index - self._first in self._wanted and unit.name not in self.folder.done


class _Quiet(Report):
    """Counts and says nothing: the process that started the job tells how far it is."""

    def _tell(self, more: int, **part: int) -> None:
        pass
