"""Turns results into the printed table, the CSV and the README's table."""

import csv
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import captum
import torch

from fusum.ops import kernels_loaded

from .harness import Result, Timing
from .memory import Peak

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
TIME_HEAD = (
    "workload",
    "rows",
    "fusum ms",
    "captum default ms",
    "captum best ms",
    "ideal ms",
    "best / fusum",
    "default / fusum",
    "fusum / ideal",
    "reached",
)
MEMORY_HEAD = ("workload", "chunk", "fusum MB", "captum MB", "fusum / captum")


def cpu_name() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def surroundings(device: str) -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    return {
        "torch": torch.__version__,
        "captum": captum.__version__,
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu",
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "kernels": "compiled" if kernels_loaded() else "reference",
    }


def milliseconds(timing: Timing, with_setting: bool = True) -> str:
    """Median and quartiles, and the setting where it was chosen."""
    digits = 3 if timing.median < 1 else 2 if timing.median < 10 else 1 if timing.median < 100 else 0
    text = f"{timing.median:.{digits}f} ({timing.low:.{digits}f}-{timing.high:.{digits}f})"
    return f"{text} {timing.setting}" if with_setting else text


def ratio(value: float, target: float | None) -> str:
    """A ratio beside the one to reach."""
    return f"{value:.2f}" if target is None else f"{value:.2f} (to reach {target:g})"


def time_row(result: Result) -> tuple[str, ...]:
    """One line of the table of times."""
    return (
        result.workload.name,
        str(result.input_rows),
        milliseconds(result.fusum, with_setting=False),
        milliseconds(result.captum_default, with_setting=False),
        milliseconds(result.captum_best),
        milliseconds(result.ideal),
        ratio(result.over_best, result.workload.over_best),
        ratio(result.over_default, result.workload.over_default),
        ratio(result.over_ideal, result.workload.near_ideal),
        "yes" if not result.missed else "no: " + ", ".join(result.missed),
    )


def time_record(result: Result) -> dict[str, Any]:
    """One line of the CSV of times."""
    record: dict[str, Any] = {"workload": result.workload.name, "rows": result.input_rows}
    for name in ("fusum", "captum_default", "captum_best", "ideal"):
        record |= {f"{name}_{key}": value for key, value in vars(getattr(result, name)).items()}
    return record | {
        "difference": result.difference,
        "best_over_fusum": result.over_best,
        "best_target": result.workload.over_best,
        "default_over_fusum": result.over_default,
        "default_target": result.workload.over_default,
        "fusum_over_ideal": result.over_ideal,
        "ideal_target": result.workload.near_ideal,
        "reached": not result.missed,
    }


def memory_row(peak: Peak) -> tuple[str, ...]:
    """One line of the table of peak memory."""
    return peak.workload, peak.setting, f"{peak.fusum:.1f}", f"{peak.captum:.1f}", f"{peak.ratio:.2f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def write_csv(path: Path, records: Sequence[dict[str, Any]], device: str) -> None:
    """Write the records, each with its surroundings."""
    around = surroundings(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*records[0], *around])
        writer.writeheader()
        writer.writerows(record | around for record in records)


def update_readme(path: Path, tables: str, command: str, device: str) -> None:
    """Put the tables between the markers of a file, with the command that made them.

    Raises:
        ValueError: the file lacks the markers.
    """
    text = path.read_text()
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{path}: expected a line {START} and after it a line {END}")
    around = ", ".join(f"{name} {value}" for name, value in surroundings(device).items())
    path.write_text(f"{before}{START}\n`{command}` ({around})\n\n{tables}\n{END}{after}")
