"""Jobs from Parquet to Parquet against the engine alone and a DataLoader loop over captum: `python -m benchmarks.jobs`.

Rows a second of each, measured in turn in one process, and the peak memory of a job in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import captum.attr
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fusum.attr
from fusum.jobs import Spec, run

from . import report
from .memory import high_water
from .models import build, digits_cnn, mlp

STEPS = 50
CAPTUM_BATCHES = (64, 256, 1024)  # captum's best is what counts
ENGINE_ROWS = 2**14  # what a job has in memory at once
HEAD = (
    "job",
    "rows",
    "rows/s",
    "engine alone",
    "captum's loop",
    "job / engine",
    "job / captum",
    "peak MB",
    "of a tenth",
)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (8,)),
    "digits": (digits_cnn, (1, 8, 8)),
}


def make(folder: Path, name: str, rows: int) -> tuple[Spec, nn.Module, Tensor]:
    """A job of random rows, its model and its rows."""
    make_model, shape = MODELS[name]
    model = build(make_model, "cpu")
    x = torch.randn(rows, *shape)
    torch.jit.script(model).save(str(folder / "model.pt"))  # type: ignore[no-untyped-call]
    values = pa.FixedSizeListArray.from_arrays(x.flatten().numpy(), x[0].numel())
    pq.write_table(pa.table({"id": range(rows), "x": values}), folder / "rows.parquet", row_group_size=2**16)
    spec = Spec(
        model=str(folder / "model.pt"),
        data=str(folder / "rows.parquet"),
        output=str(folder / "out"),
        id="id",
        inputs={"columns": "x", "shape": shape},
        method="IntegratedGradients",
        arguments={"n_steps": STEPS},
        target=0,
    )
    return spec, model, x


def loop(method: Any, batches: Iterable[Any]) -> None:
    """What people write: a batch after the other."""
    for (x,) in batches:
        method.attribute(x, target=0, n_steps=STEPS, return_convergence_delta=True)


def rate(rows: int, call: Callable[[], Any]) -> float:
    """Rows a second of one call."""
    start = time.perf_counter()
    call()
    return rows / (time.perf_counter() - start)


def speeds(name: str, rows: int, captum_rows: int, rounds: int) -> dict[str, float]:
    """Medians of rows a second; captum is timed on some of the rows."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        spec, model, x = make(Path(folder), name, rows)
        ours = fusum.attr.IntegratedGradients(torch.jit.load(spec.model))  # type: ignore[no-untyped-call]
        theirs = captum.attr.IntegratedGradients(model)
        few = x[:captum_rows]
        expected = theirs.attribute(x[:64], target=0, n_steps=STEPS)
        torch.testing.assert_close(ours.attribute(x[:64], target=0, n_steps=STEPS), expected, rtol=1e-4, atol=1e-5)
        for _ in range(rounds):
            found.setdefault("job", []).append(rate(rows, lambda: run(spec, overwrite=True)))
            parts = [(part,) for part in x.split(ENGINE_ROWS)]
            found.setdefault("engine", []).append(rate(rows, lambda parts=parts: loop(ours, parts)))  # type: ignore[misc]
            for size in CAPTUM_BATCHES:
                loader = DataLoader(TensorDataset(few), batch_size=size)
                found.setdefault(f"captum at {size}", []).append(
                    rate(len(few), lambda loader=loader: loop(theirs, loader))  # type: ignore[misc]
                )
    medians = {key: statistics.median(values) for key, values in found.items()}
    best = max(CAPTUM_BATCHES, key=lambda size: medians[f"captum at {size}"])
    return {"job": medians["job"], "engine": medians["engine"], "captum": medians[f"captum at {best}"], "batch": best}


def peak(name: str, rows: int) -> float:
    """The most memory in MB that a process of its own holds at a job of so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        spec, _, _ = make(Path(folder), name, rows)
        command = [sys.executable, "-m", "benchmarks.jobs", "--peak-of", json.dumps(spec.as_dict())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure(name: str, rows: int, captum_rows: int, rounds: int) -> dict[str, Any]:
    """One line of the table."""
    peaks = {"peak_mb": peak(name, rows), "peak_mb_of_a_tenth": peak(name, rows // 10)}
    found = speeds(name, rows, captum_rows, rounds)
    ratios = {"job_over_engine": found["job"] / found["engine"], "job_over_captum": found["job"] / found["captum"]}
    rates = {f"{who}_rows_a_second": found[who] for who in ("job", "engine", "captum")}
    return {"workload": name, "rows": rows, **rates, "captum_batch": found["batch"], **ratios, **peaks}


def row(line: dict[str, Any]) -> tuple[str, ...]:
    """One line as it is printed."""
    rates = [f"{line[f'{who}_rows_a_second']:,.0f}" for who in ("job", "engine", "captum")]
    rates[-1] += f" in batches of {line['captum_batch']}"
    ratios = [f"{line['job_over_engine']:.2f}", f"{line['job_over_captum']:.1f}"]
    peaks = [f"{line['peak_mb']:.0f}", f"{line['peak_mb_of_a_tenth']:.0f}"]
    return (line["workload"], f"{line['rows']:,}", *rates, *ratios, *peaks)


def main() -> None:
    """Measure the jobs, print the table, write the CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="of the table; memory is compared with a tenth")
    parser.add_argument("--digits", type=int, default=2000)
    parser.add_argument("--captum-rows", type=int, default=4096, help="rows that captum is timed on")
    parser.add_argument("--rounds", type=int, default=5, help="each is timed so often; medians are reported")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        run(Spec(**json.loads(options.peak_of)))
        print(high_water("cpu"))
        return
    lines = [
        measure(name, rows, min(rows, options.captum_rows), options.rounds)
        for name, rows in (("mlp", options.rows), ("digits", options.digits))
    ]
    report.write_csv(options.out / "jobs_cpu.csv", lines, "cpu")
    print(report.markdown(HEAD, [row(line) for line in lines]))


if __name__ == "__main__":
    main()
