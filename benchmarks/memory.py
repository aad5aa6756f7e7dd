"""Peak memory of fusum and captum at the same chunk, each call in a process of its own."""

import argparse
import importlib
import resource
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from . import ideal
from .harness import Bench, label, seeded
from .workload import Workload
from .workloads import WORKLOADS

MEGABYTE = 2**20


@dataclass(frozen=True)
class Peak:
    """Peak memory of one workload in MB above that of the model and the inputs."""

    workload: str
    setting: str
    fusum: float
    captum: float

    @property
    def ratio(self) -> float:
        """fusum's peak over captum's."""
        return self.fusum / max(self.captum, 1e-9)

    def record(self) -> dict[str, str | float]:
        """One line of the CSV."""
        found = {"fusum_mb": self.fusum, "captum_mb": self.captum, "fusum_over_captum": self.ratio}
        return {"workload": self.workload, "setting": self.setting} | found


def high_water(device: str) -> float:
    """The most memory in MB that this process has held: resident on the CPU, allocated on a GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEGABYTE
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells of a process begins at what its parent held
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load_backends(bench: Bench) -> None:
    """One gradient of one row; of token ids there is none, so that of a weight behind them has to do."""
    rows = tuple(x[:1].clone() for x in bench.inputs)
    if all(x.is_floating_point() for x in rows):
        ideal.gradients(bench.model, rows, bench.keywords.get("target"))
        return
    extra = [tensor[:1] for name, tensor in bench.keywords.items() if name == "additional_forward_args"]
    torch.autograd.grad(bench.model(*rows, *extra).sum(), [*bench.model.parameters()][-1])


def measure_here(workload: Workload, library: str, index: int, device: str) -> float:
    """Peak of one call in this process, at captum's default (index 0) or at a setting of the workload."""
    bench = Bench.of(workload, device)
    contender = bench.library(importlib.import_module(f"{library}.attr"), ({}, *workload.settings)[index])
    load_backends(bench)
    before = high_water(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeded(contender, device)
    return high_water(device) - before


def measure_apart(workload: Workload, library: str, index: int, device: str) -> float:
    """`measure_here` in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", workload.name, library, str(index), "--device", device]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peaks(workload: Workload, device: str) -> list[Peak]:
    """Both libraries at captum's default and at each setting."""
    settings: tuple[Mapping[str, int], ...] = ({}, *workload.settings)
    return [
        Peak(
            workload.name,
            label(setting),
            measure_apart(workload, "fusum", index, device),
            measure_apart(workload, "captum", index, device),
        )
        for index, setting in enumerate(settings)
    ]


def main() -> None:
    """Measure one call and print its peak in MB."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("workload", choices=[workload.name for workload in WORKLOADS])
    parser.add_argument("library", choices=("fusum", "captum"))
    parser.add_argument("setting", type=int, help="0 for the default, else the number of the workload's setting")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    workload = next(workload for workload in WORKLOADS if workload.name == options.workload)
    print(measure_here(workload, options.library, options.setting, options.device))


if __name__ == "__main__":
    main()
