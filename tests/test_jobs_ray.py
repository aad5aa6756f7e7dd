"""Jobs on a real Ray cluster of this machine: the rows of the local route, also when an actor is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow, which reads the data of jobs, is not installed")
pytest.importorskip("tqdm", reason="tqdm, which jobs need, is not installed")
ray = pytest.importorskip("ray", reason="ray, the cluster that these jobs run on, is not installed")
pytest.importorskip("ray.data", reason="ray is installed without what Ray Data needs")

import torch  # noqa: E402

from fusum import ArgumentError  # noqa: E402
from fusum.jobs import JobError, Spec, run  # noqa: E402
from job_cases import output, spec, write  # noqa: E402

PARTS = 3 * 10  # of all rows in parts of 10


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    paths = os.pathsep.join(os.path.abspath(path or ".") for path in sys.path)
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    yield
    ray.shutdown()


def job(folder: Path, **keys: Any) -> Spec:
    """Random draws, means of the data, and some rows that do not fit, of three files."""
    if not (folder / "rows").exists():
        for i in range(3):
            path = write(folder / "rows" / f"{i}.parquet", 100, group=60, seed=i)
            table = pa.parquet.read_table(path)
            table = table.set_column(0, "a", pa.array([float("nan"), *table["a"].to_pylist()[1:]], pa.float32()))
            pa.parquet.write_table(table, path, row_group_size=60)
    usual = {"method": "GradientShap", "baselines": "sample:6", "arguments": {"stdevs": 0.2}, "rows_per_part": 10}
    return spec(folder, **{**usual, "seed": 7, **keys})


def same(found: Path, expected: Path) -> None:
    """Two folders hold the same files with the same rows; scores, of another number of threads, up to rounding."""
    for name in ("parts", "rejected"):
        assert sorted(path.name for path in (found / name).glob("*")) == sorted(
            path.name for path in (expected / name).glob("*")
        )
        tables = [output(folder, name) for folder in (found, expected)]
        floats = [each.name for each in tables[0].schema if each.name in ("prediction", "convergence_delta")]
        lists = [each.name for each in tables[0].schema if each.name == "attributions"]
        for column in [*floats, *lists]:
            values = [table[column].combine_chunks() for table in tables]
            values = [each.flatten() if column in lists else each for each in values]
            torch.testing.assert_close(
                *[torch.from_numpy(each.to_numpy().copy()) for each in values], rtol=1e-4, atol=1e-6
            )
        assert tables[0].drop_columns([*floats, *lists]).equals(tables[1].drop_columns([*floats, *lists]))


def actors() -> list[int]:
    """The processes of this test's cluster in which an actor is at its task."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines()
    found = {int(line.split()[0]): (int(line.split()[1]), line) for line in listed}

    def is_ours(pid: int) -> bool:
        return pid in found and (pid == os.getpid() or is_ours(found[pid][0]))

    return [pid for pid, (_, line) in found.items() if "ray::MapWorker" in line and "submit" in line and is_ours(pid)]


def test_ray_gives_the_rows_of_one_process_even_when_an_actor_is_killed(tmp_path: Path) -> None:
    slow = {"arguments": {"n_samples": 3000, "stdevs": 0.1}}
    local = run(job(tmp_path, output=str(tmp_path / "local"), **slow))
    assert (local.rows, local.rejected, local.parts) == (300, 3, PARTS)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 100
        while not list((tmp_path / "out").glob("parts/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        killed.extend(actors()[:1])
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        (tmp_path / "out" / "parts" / ".0-killed.parquet.1.tmp").touch()  # as if it had just been at it
        parts.extend((tmp_path / "out").glob("parts/*.parquet"))

    parts: list[Path] = []
    killer = threading.Thread(target=kill)
    killer.start()
    summary = run(job(tmp_path, engine="ray", workers=2, **slow))
    killer.join()
    assert killed
    assert 0 < len(parts) < PARTS
    same(tmp_path / "out", tmp_path / "local")
    assert (summary.rows, summary.rejected, summary.parts) == (300, 3, PARTS)
    assert run(job(tmp_path, **slow)).parts == 0  # the local route sees what the cluster has done


def test_what_stops_an_actor_is_told_and_the_job_goes_on(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"max_rejected: . rows were rejected; expected 0 at most.*goes on with"):
        run(job(tmp_path, engine="ray", max_rejected=0))
    assert len(list((tmp_path / "out").glob("parts/*.parquet"))) < PARTS
    run(job(tmp_path))
    run(job(tmp_path, output=str(tmp_path / "local")))
    same(tmp_path / "out", tmp_path / "local")


def test_a_device_that_ray_does_not_give(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="device: got 'cuda:1'; expected cpu or cuda"):
        run(job(tmp_path, engine="ray", device="cuda:1"))
