"""The same rows by every way to run a job: killed and resumed, in several workers, under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow, which reads the data of jobs, is not installed")
pytest.importorskip("tqdm", reason="tqdm, which jobs need, is not installed")

import torch  # noqa: E402

import fusum  # noqa: E402
import fusum.jobs.workers  # noqa: E402
from fusum.jobs import JobError, Spec, run  # noqa: E402
from fusum.jobs.report import Report  # noqa: E402
from fusum.jobs.run import Job, Share  # noqa: E402
from job_cases import VOCABULARY, flags, output, scores, spec, words, write  # noqa: E402

HERE = Path(__file__).parent
# Draws of all kinds: of baselines, of noise, of points.
RANDOM: dict[str, Any] = {
    "method": "GradientShap", "baselines": "sample:6", "arguments": {"stdevs": 0.2}, "rows_per_part": 20, "seed": 7,
}  # fmt: skip
TOKENS: dict[str, Any] = {
    "inputs": {"columns": "tokens", "vocabulary": VOCABULARY}, "method": "LayerIntegratedGradients",
    "layer": "embedding", "baselines": 0, "arguments": {"n_steps": 5}, "rows_per_part": 20, "batch": 4,
}  # fmt: skip


def job(folder: Path, kind: str, **keys: Any) -> Spec:
    """A job of three files, in parts of 20 rows."""
    if not (folder / "rows").exists():
        for i, rows in enumerate((130, 45, 90)):
            write(folder / "rows" / f"{i}.parquet", rows, seed=i)
    if kind == "random":
        return spec(folder, **{**RANDOM, **keys})
    if not (folder / "words.pt").exists():
        torch.jit.script(words()).save(str(folder / "words.pt"))
    return spec(folder, **{"model": str(folder / "words.pt"), **TOKENS, **keys})


def same(found: Path, expected: Path, exactly: bool = True) -> None:
    """The rows of two output folders are the same, and the same in each file."""
    names = [sorted(path.name for path in (folder / "parts").glob("*")) for folder in (found, expected)]
    assert names[0] == names[1]
    tables = [output(folder) for folder in (found, expected)]
    if exactly:
        assert tables[0].equals(tables[1])
    assert tables[0]["id"].equals(tables[1]["id"])
    torch.testing.assert_close(*[torch.from_numpy(t["attributions"].combine_chunks().flatten().to_numpy().copy())
                                 for t in tables], rtol=1e-4, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("kind", ["random", "tokens"])
def test_a_job_killed_many_times_gives_the_output_of_one_that_was_not(tmp_path: Path, kind: str) -> None:
    run(job(tmp_path, kind, rows_per_part=10, output=str(tmp_path / "whole")))
    again = job(tmp_path, kind, rows_per_part=10)
    command = [sys.executable, str(HERE / "job_killer.py"), json.dumps(again.as_dict()), "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    ended = json.loads(done.stdout)
    assert ended["code"] == 0, done.stderr
    assert ended["kills"] >= 10
    same(tmp_path / "out", tmp_path / "whole")
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert run(again).parts == 0


def test_two_workers_give_the_output_of_one(tmp_path: Path) -> None:
    kind = "tokens"
    run(job(tmp_path, kind, output=str(tmp_path / "one")))
    summary = run(job(tmp_path, kind, workers=2))
    assert (summary.rows, summary.parts) == (265, 16)
    same(tmp_path / "out", tmp_path / "one", exactly=False)
    assert {path.name for path in (tmp_path / "out").glob("manifest-*")} == {"manifest-0.json", "manifest-1.json"}
    assert run(job(tmp_path, kind)).parts == 0  # one worker sees what two have done


def test_a_worker_that_is_killed_leaves_a_folder_that_goes_on(tmp_path: Path) -> None:
    slow = {"arguments": {"n_samples": 500, "stdevs": 0.1}}
    run(job(tmp_path, "random", output=str(tmp_path / "whole"), **slow))
    again = job(tmp_path, "random", workers=2, **slow)

    def kill() -> None:
        while not list((tmp_path / "out").glob("parts/*.parquet")):
            time.sleep(0.01)
        listed = ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())]
        children = subprocess.run(listed, capture_output=True, text=True).stdout.splitlines()
        os.kill(next(int(line.split()[0]) for line in children if "fusum.jobs.workers" in line), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(JobError, match=r"workers: they ended with \[-?\d, -?\d\].*goes on with what is left"):
        run(again)
    killer.join()
    assert output(tmp_path / "out").num_rows < 265
    run(again)
    same(tmp_path / "out", tmp_path / "whole", exactly=False)


def test_an_error_of_a_worker_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="target: got index 9"):
        run(job(tmp_path, "random", workers=2, target=9))


def test_torchrun_gives_the_output_of_one(tmp_path: Path) -> None:
    run(job(tmp_path, "random", output=str(tmp_path / "one")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fusum", "run"]
    given = flags(job(tmp_path, "random"))
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "out", tmp_path / "one", exactly=False)
    counts = [json.loads(line)["parts"] for line in done.stdout.splitlines() if '"summary"' in line]
    assert sum(counts) == 16
    assert min(counts) >= 6


def test_the_number_of_threads_changes_no_row(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run(job(tmp_path, "random", output=str(tmp_path / "many")))
    try:
        torch.set_num_threads(1)
        run(job(tmp_path, "random"))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(
        scores(output(tmp_path / "out")), scores(output(tmp_path / "many")), rtol=1e-5, atol=1e-7
    )


def test_a_unit_depends_on_no_other_before_it(tmp_path: Path) -> None:
    # Large enough for the engine to cut it by what it has measured of the model.
    write(tmp_path / "rows" / "x.parquet", 1500, group=500)
    given = Job(spec(tmp_path, target="predicted"), Share())
    units = list(given.data.units(lambda _: True))
    one, other = given.explainer(None), given.explainer(None)
    tables = [one(table, unit)[0] for unit, table in units]
    assert other(units[2][1], units[2][0])[0].equals(tables[2])


@pytest.mark.parametrize("workers", [1, 2])
def test_how_far_a_job_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    reports: list[Report] = []
    told: list[int] = []

    class Noted(Report):
        def __init__(self, total: int | None) -> None:
            super().__init__(total)
            reports.append(self)

        def explained(self, rows: int) -> None:
            told.append(rows)
            super().explained(rows)

    for name in ("fusum.jobs.run", "fusum.jobs.workers"):
        monkeypatch.setattr(sys.modules[name], "Report", Noted)
    keys = {"method": "IntegratedGradients", "baselines": 0, "arguments": {"n_steps": 8}, "rows_per_part": 100}
    with fusum.config(max_rows=20):
        summary = run(job(tmp_path, "random", **keys, workers=workers))
    assert summary.rows == sum(told) == 265
    assert [report._seen for report in reports if report.parts] == [265]
    if workers == 1:
        assert len(told) > 10 * summary.parts, "a part is told of while it is explained"
