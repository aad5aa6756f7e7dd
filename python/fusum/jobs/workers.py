"""``workers = N``: a job in several processes of one machine, each with a share as torchrun's have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

import torch

from ..errors import ArgumentError
from .models import device_of
from .report import Report
from .run import Job, Share, Summary
from .spec import JobError, Spec, build


def run_workers(job: Job, overwrite: bool) -> Summary:
    """Run a job in as many processes as it wants; one that ends early does not stop the others."""
    spec, errors = job.spec, list[str]()
    if ":" in spec.device:
        raise ArgumentError(f"device: got {spec.device!r} for {spec.workers} workers; expected cuda, one for each")
    device_of(spec, spec.workers - 1)  # raises where there are fewer devices
    job.begin(job.baselines(), overwrite, "exclusive")
    before, report, lock = job.folder.rows(), Report(job.left()), threading.Lock()

    def listen(lines: IO[str]) -> None:
        for line in lines:
            with lock:
                said = _said(line)
                if "text" in said:
                    errors.append(said["text"])
                elif "skipped" in said:
                    job.data.skipped.update(said["skipped"])
                elif said:
                    report.explained(said["explained"])
                    if "rows" in said:
                        report.add(said["rows"], said["rejected"])

    processes = [_start(spec, rank) for rank in range(spec.workers)]
    try:
        with ThreadPoolExecutor(spec.workers) as listeners:
            list(listeners.map(listen, [each.stdout for each in processes if each.stdout]))
        codes = [each.wait() for each in processes]
    finally:
        for each in processes:
            each.kill()
        report.close()
    if any(codes):
        why = errors[0] if errors else f"workers: they ended with {codes}"
        raise JobError(f"{why} (the others did their shares; the same command goes on with what is left)")
    return job.summary(report, before)


def _start(spec: Spec, rank: int) -> subprocess.Popen[str]:
    threads = max(1, torch.get_num_threads() // spec.workers)
    paths = [os.path.abspath(path or ".") for path in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-m", "fusum.jobs.workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # control-C is for the process that started it, which ends it
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)},
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps({"spec": spec.as_dict(), "rank": rank, "threads": threads}) + "\n")
        process.stdin.flush()
    return process


def _said(line: str) -> dict[str, Any]:
    """What a worker says in a line; what its model prints goes on to where it belongs."""
    try:
        found = json.loads(line)
        return dict(found["worker"])
    except (ValueError, TypeError, KeyError):
        print(line, end="", flush=True)
        return {}


def tell(**facts: Any) -> None:
    """Say something to the process that started this one."""
    print(json.dumps({"worker": facts}), flush=True)


class _Told(Report):
    """A report that the process that started this one counts."""

    _untold = 0  # rows that are explained

    def _tell(self, more: int, **part: int) -> None:
        if not part:
            self._untold += more
            if self.seconds - self._said <= 1:
                return
        tell(explained=self._untold, **part)
        self._said, self._untold = self.seconds, 0


def main() -> int:
    """A worker: the spec comes on stdin, which stays open as long as the process that started it lives."""
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(given["threads"])
    try:
        spec = build(Spec, given["spec"])
        job = Job(spec, Share(given["rank"], spec.workers, given["rank"]))
        explainer = job.explainer(job.baselines(kept=True))
        job.begin(None, False, None)
        job.work(explainer, _Told(None))
        tell(skipped=job.data.skipped)
    except (JobError, ArgumentError) as error:
        tell(text=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
