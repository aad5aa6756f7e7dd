"""Times one workload in a process of its own, as a script has.

By what ran before, a process gets memory from its heap or, page by page, from the system, which takes small networks
twice as long.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from . import harness, report
from .workloads import WORKLOADS


def time(name: str, device: str, seconds: float) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Lines of the table and of the CSV."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(time_here, name, device, seconds).result()


def time_here(name: str, device: str, seconds: float) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The same in this process."""
    torch.backends.cudnn.allow_tf32 = False  # TF32 would hide differences that the equality check looks for
    workload = next(workload for workload in WORKLOADS if workload.name == name)
    result = harness.run(workload, device, seconds)
    return report.time_row(result), report.time_record(result)
