"""How the time of the ideal loop depends on its chunk: `python -m benchmarks.chunks`.

The automatic chunk planner of fusum is calibrated with this table.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import ideal, models


@dataclass(frozen=True)
class Case:
    """One model and one amount of work: `steps` points for every input row."""

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[str], tuple[Tensor, ...]]
    steps: int
    target: int | None
    rows: tuple[int, ...]


MLP_ROWS = (45, 90, 180, 360, 540, 900, 1800, 3060, 4500, 9000)
CASES = (
    Case("mlp", models.mlp, models.features(180), 50, None, MLP_ROWS),
    Case("dlrm", models.Dlrm, models.clicks(497), 10, None, (63, 125, 249, 497, 994, 1988, 2485, 4970)),
    Case("cnn32", models.Cnn, models.images(8, 32), 20, 3, (1, 2, 4, 8, 16, 32, 80, 160)),
    Case("resnet18_64", models.resnet18, models.images(1, 64), 40, 3, (1, 2, 4, 5, 8, 10, 20, 40)),
    Case("resnet18_128", models.resnet18, models.images(1, 128), 20, 3, (1, 2, 3, 4, 5, 7, 10, 20)),
    Case("resnet18_224", models.resnet18, models.images(1, 224), 20, 3, (1, 2, 3, 4, 5, 7, 10, 20)),
)


def saved_bytes_per_row(model: nn.Module, inputs: tuple[Tensor, ...], target: int | None) -> float:
    """Bytes of activations that autograd keeps for one row, each tensor counted once however often it is saved."""
    rows = 3  # no weight of the models has a first dimension of 3
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # holds the tensors, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.dim() and len(tensor) == rows:
            kept.append(tensor)
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    few = tuple(x[:1].repeat(rows, *[1] * (x.dim() - 1)) for x in inputs)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ideal.gradients(model, few, target)
    return sum(sizes.values()) / rows


def best_times(case: Case, model: nn.Module, inputs: tuple[Tensor, ...], seconds: float) -> dict[int, float]:
    """The shortest time in ms of the ideal loop at each chunk, measured round-robin for about `seconds`."""
    best = dict.fromkeys(case.rows, float("inf"))
    stop = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < stop:
        for rows in case.rows:
            start = time.perf_counter()
            ideal.integrated_gradients(model, inputs, rows, n_steps=case.steps, target=case.target)
            if inputs[0].is_cuda:
                torch.cuda.synchronize()
            best[rows] = min(best[rows], 1e3 * (time.perf_counter() - start))
        rounds += 1
    return best


def report(case: Case, device: str, seconds: float) -> None:
    """Measure one case and print its table."""
    model, inputs = models.build(case.model, device), case.inputs(device)
    saved = saved_bytes_per_row(model, inputs, case.target)
    print(f"\n{case.name}: {len(inputs[0])} rows x {case.steps} points, {saved:,.0f} saved bytes a row", flush=True)
    print(f"{'rows':>6} {'saved MB':>9} {'ms':>9} {'over best':>9}")
    best = best_times(case, model, inputs, seconds)
    for rows, ms in best.items():
        print(f"{rows:6d} {rows * saved / 1e6:9.2f} {ms:9.2f} {ms / min(best.values()):9.2f}", flush=True)


def main() -> None:
    """Parse the command line and print a table for each case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chunks", description=__doc__)
    parser.add_argument("--only", help="names of cases, with commas between")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=20, help="time to spend on each case")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [case.name for case in CASES]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}; shortest of several rounds")
    for case in CASES:
        if case.name in wanted:
            report(case, options.device, options.seconds)


if __name__ == "__main__":
    main()
