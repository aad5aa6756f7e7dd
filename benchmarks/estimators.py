"""Error against evaluations of the estimators of Shapley values: `python -m benchmarks.estimators`.

The games are models whose exact Shapley values are known: each estimator is run at several sizes and seeds, and the
distance to them is written as CSV and PNG. No captum is needed: its estimators draw the same as those called plain.
"""

import argparse
import csv
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusum.attr import KernelShap, ShapleyValueSampling

from .ideal_coalitions import shapley_values
from .models import build, perceptron

FEATURES = 10  # of the network


class Counting(nn.Module):
    """A model that counts the rows it sees."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        out: Tensor = self.model(x)
        return out


class Interacting(nn.Module):
    """A sum over features and over groups of so many: [B, M] -> [B]. strength: of the groups, beside the features."""

    own: Tensor
    groups: Tensor
    weights: Tensor

    def __init__(self, features: int, many: int, strength: float) -> None:
        super().__init__()
        self.register_buffer("own", torch.randn(features))
        self.register_buffer("groups", torch.combinations(torch.arange(features), many))
        self.register_buffer("weights", strength * torch.randn(len(self.groups)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.own + x[:, self.groups].prod(2) @ self.weights

    def exact(self) -> Tensor:
        """Its Shapley values at ones, from a baseline of zero: a group's value is shared evenly."""
        many = self.groups.shape[1]
        return self.own.index_add(0, self.groups.flatten(), self.weights.repeat_interleave(many) / many)


@dataclass(frozen=True)
class Game:
    """A model, the row [1, M] that is explained and the target, with its Shapley values [M]."""

    name: str
    model: Counting
    x: Tensor
    target: int | None
    exact: Tensor


def games() -> Iterator[Game]:
    """Interactions of two and of three features, and a network of ReLUs."""
    for name, many, strength in (("pairs of 20 features", 2, 0.5), ("triples of 20 features", 3, 0.2)):
        model = build(partial(Interacting, 20, many, strength), "cpu")
        yield Game(name, Counting(model).eval(), torch.ones(1, 20), None, model.exact())  # type: ignore[operator]
    network = build(lambda: perceptron(FEATURES, 64, 64, 1), "cpu")
    x = torch.randn(1, FEATURES, generator=torch.Generator().manual_seed(1))
    (exact,) = shapley_values(network, (x,), 2**FEATURES, target=0)
    yield Game(f"ReLU network of {FEATURES} features", Counting(network).eval(), x, 0, exact[0])


@dataclass(frozen=True)
class Estimator:
    """A method with its options. each: evaluations that one of n_samples takes, of so many features."""

    name: str
    method: Callable[[nn.Module], Any]
    options: dict[str, Any]
    each: Callable[[int], int]

    def scores(self, game: Game, evaluations: int) -> Tensor:
        """An estimate [M] from about so many evaluations."""
        samples = max(2, 2 * round(evaluations / self.each(len(game.exact)) / 2))  # of pairs, whole ones
        found: Tensor = self.method(game.model).attribute(game.x, target=game.target, n_samples=samples, **self.options)
        return found[0]


def one(_: int) -> int:
    """A coalition."""
    return 1


def order(features: int) -> int:
    """A coalition for each feature but the last, which completes the inputs."""
    return features - 1


ESTIMATORS = (
    Estimator("ShapleyValueSampling", ShapleyValueSampling, {}, order),
    Estimator("ShapleyValueSampling, antithetic", ShapleyValueSampling, {"antithetic": True}, order),
    Estimator("KernelShap", KernelShap, {}, one),
    Estimator("KernelShap, paired", KernelShap, {"sampling": "paired"}, one),
    Estimator("KernelShap, leverage", KernelShap, {"sampling": "leverage"}, one),
)


@dataclass(frozen=True)
class Point:
    """evaluations: rows that the model saw, on average. error: distance over length of the exact values, its quartiles
    and its root mean square over seeds.
    """

    game: str
    estimator: str
    evaluations: float
    low: float
    median: float
    high: float
    error: float


def point(game: Game, estimator: Estimator, evaluations: int, seeds: int) -> Point:
    """One estimator at one size."""
    errors, length = [], game.exact.norm()
    estimator.scores(game, evaluations)  # a first call looks the model over
    game.model.rows = 0
    for seed in range(seeds):
        torch.manual_seed(seed)
        errors.append(float((estimator.scores(game, evaluations) - game.exact).norm() / length))
    low, median, high = statistics.quantiles(errors, n=4, method="inclusive")
    error = statistics.fmean(e * e for e in errors) ** 0.5
    return Point(game.name, estimator.name, game.model.rows / seeds, low, median, high, error)


def draw(points: list[Point], path: Path) -> None:
    """A panel for each game: the root mean square error of each estimator.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise SystemExit(
            f"{path}: not drawn, as matplotlib is not installed; expected pip install matplotlib"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(p.game for p in points))
    figure, panels = plt.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False, layout="constrained")
    for panel, name in zip(panels[0], names, strict=True):
        for estimator in ESTIMATORS:
            line = [p for p in points if p.game == name and p.estimator == estimator.name]
            panel.plot([p.evaluations for p in line], [p.error for p in line], marker="o", label=estimator.name)
        panel.set(title=name, xlabel="evaluations of the model", ylabel="error / length of the values")
        panel.set(xscale="log", yscale="log", ylim=(1e-4, None))
    panels[0][0].legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run all estimators on all games, print the table, write the CSV and the PNG."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="runs of each estimator at each size")
    parser.add_argument("--sizes", default="40,80,160,320,640,1280", metavar="N,...", help="evaluations")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    points = []
    for game in games():
        for estimator in ESTIMATORS:
            points += [point(game, estimator, size, options.seeds) for size in sizes]
            errors = " ".join(f"{p.evaluations:.0f}: {p.error:.2g}" for p in points[-len(sizes) :])
            print(f"{game.name}, {estimator.name}: {errors}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "estimators.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(points[0])))
        writer.writeheader()
        writer.writerows(asdict(p) for p in points)
    draw(points, options.out / "estimators.png")


if __name__ == "__main__":
    main()
