"""`python -m benchmarks`: measure the workloads, print the tables, write the CSVs."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from . import alone, memory, report
from .workload import Workload
from .workloads import WORKLOADS


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME,...", help="some of: " + ", ".join(w.name for w in WORKLOADS))
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seconds", type=float, default=20, help="of each workload's rounds, 20 by default")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="where the CSV goes"
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also put the table between its bench markers")
    options = parser.parse_args(arguments)
    known = {workload.name: workload for workload in WORKLOADS}
    names = options.only.split(",") if options.only else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only: got {unknown[0]}; expected some of {', '.join(known)}")
    options.workloads = [known[name] for name in names]
    return options


def measure_time(workloads: list[Workload], device: str, seconds: float, out: Path) -> str:
    """Time the workloads; the table, which is also written as CSV after each workload."""
    rows, records = list[tuple[str, ...]](), list[dict[str, Any]]()
    for workload in workloads:
        print(f"{workload.name} ...", file=sys.stderr, flush=True)
        row, record = alone.time(workload.name, device, seconds)
        rows.append(row)
        records.append(record)
        report.write_csv(out / f"time_{device}.csv", records, device)
    return report.markdown(report.TIME_HEAD, rows)


def measure_memory(workloads: list[Workload], device: str, out: Path) -> str:
    """Measure the workloads' peak memory; the table, which is also written as CSV."""
    peaks: list[memory.Peak] = []
    for workload in workloads:
        print(f"{workload.name} ...", file=sys.stderr, flush=True)
        peaks += memory.peaks(workload, device)
        report.write_csv(out / f"memory_{device}.csv", [peak.record() for peak in peaks], device)
    return report.markdown(report.MEMORY_HEAD, [report.memory_row(peak) for peak in peaks])


def warn_if_busy() -> None:
    """Say so where other programs keep the processors busy; two threads a contender then wait for each other."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 2:
        print(f"load {load:.1f} on {cores} cores: times will be noisy; OMP_NUM_THREADS=1 helps", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """Run what the command line asks for."""
    options = parse(arguments)
    warn_if_busy()
    if options.memory:
        table = measure_memory(options.workloads, options.device, options.out)
    else:
        table = measure_time(options.workloads, options.device, options.seconds, options.out)
    print(table)
    print(", ".join(f"{name} {value}" for name, value in report.surroundings(options.device).items()))
    if options.readme:
        report.update_readme(options.readme, table, " ".join(["python -m benchmarks", *arguments]), options.device)


if __name__ == "__main__":
    main(sys.argv[1:])
