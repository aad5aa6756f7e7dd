"""Runs one workload: asserts equal results, chooses the peers' best chunks, then times all of them interleaved."""

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import captum.attr
import numpy as np
import torch

import fusum.attr

from . import models
from .workload import Tensors, Workload

Contender = Callable[[], Tensors]
TOLERANCE = 1e-4
MOST_ROUNDS = 400
LEAST_MS = 30.0


@dataclass(frozen=True)
class Timing:
    """Times of one contender in ms, with the setting it ran at."""

    setting: str
    median: float
    low: float  # first quartile
    high: float  # third quartile
    fastest: float
    rounds: int


@dataclass(frozen=True)
class Result:
    """What one workload gave."""

    workload: Workload
    input_rows: int
    difference: float
    fusum: Timing
    captum_default: Timing
    captum_best: Timing
    ideal: Timing

    @property
    def over_best(self) -> float:
        """captum's time at its best setting over fusum's."""
        return self.captum_best.median / self.fusum.median

    @property
    def over_default(self) -> float:
        """captum's time at its default over fusum's."""
        return self.captum_default.median / self.fusum.median

    @property
    def over_ideal(self) -> float:
        """fusum's time over the ideal loop's."""
        return self.fusum.median / self.ideal.median

    @property
    def missed(self) -> list[str]:
        """The targets that were not reached."""
        reached = {
            "captum best": self.over_best >= (self.workload.over_best or 0),
            "captum default": self.over_default >= (self.workload.over_default or 0),
            "ideal": self.over_ideal <= self.workload.near_ideal,
        }
        return [target for target, met in reached.items() if not met]


@dataclass(frozen=True)
class Bench:
    """One workload made ready on a device: its model, inputs and arguments."""

    workload: Workload
    device: str
    model: Any
    inputs: Tensors
    keywords: Mapping[str, Any]

    @staticmethod
    def of(workload: Workload, device: str) -> "Bench":
        """Build the model and the data."""
        model = models.build(workload.model, device, workload.scripted)
        return Bench(workload, device, model, workload.inputs(device), workload.keywords(device))

    @property
    def with_delta(self) -> bool:
        """Whether the convergence delta follows the scores."""
        return bool(self.keywords.get("return_convergence_delta"))

    def library(self, attr: Any, setting: Mapping[str, int]) -> Contender:
        """A call of fusum's or captum's class."""
        method = self.workload.method(attr, self.model)
        own = self.workload.own if attr is fusum.attr else {}
        inputs = self.inputs if len(self.inputs) > 1 else self.inputs[0]

        def attribute() -> Tensors:
            found = method.attribute(inputs, **self.keywords, **own, **setting)
            scores, *delta = found if self.with_delta else (found,)
            return (*scores, *delta) if isinstance(scores, tuple) else (scores, *delta)

        return attribute

    def by_hand(self, rows: int) -> Contender:
        """A call of the ideal loop."""
        return lambda: self.workload.ideal(self.model, self.inputs, rows, **self.keywords)


def seeded(contender: Contender, device: str, calls: int = 1) -> tuple[Tensors, float]:
    """Run calls times after seeding both generators; the last scores, and the time of one call in ms."""
    torch.manual_seed(0)
    np.random.seed(0)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        scores = contender()
    synchronize(device)
    return scores, 1e3 * (time.perf_counter() - start) / calls


def synchronize(device: str) -> None:
    """Wait for the device's queue."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def difference(scores: Tensors, expected: Tensors, with_delta: bool = False) -> float:
    """The largest difference, relative to the largest expected value of the same tensor.

    A convergence delta, last where there is one, is itself a rounding error and is compared on the scale of the scores.
    """
    if [x.shape for x in scores] != [x.shape for x in expected]:
        raise AssertionError(f"shapes differ: {[x.shape for x in scores]} and {[x.shape for x in expected]}")
    scales = [y.abs().max() for y in expected]
    if with_delta:
        scales[-1] = max(scales[:-1])
    return max(((x - y).abs().max() / scale).item() for x, y, scale in zip(scores, expected, scales, strict=True))


def assert_equal(name: str, scores: Tensors, expected: Tensors, with_delta: bool = False) -> float:
    """The `difference`, or an AssertionError where it is above TOLERANCE or not a number."""
    apart = difference(scores, expected, with_delta)
    if not apart <= TOLERANCE:
        raise AssertionError(f"{name}: results differ by {apart:.1e} of the largest score, above {TOLERANCE:.0e}")
    return apart


def check(bench: Bench) -> tuple[float, dict[str, float]]:
    """Assert that all contenders agree at every setting; the largest difference, and how long captum took in ms."""
    name, delta, own = bench.workload.name, bench.with_delta, bool(bench.workload.own)
    whose = "fusum by default" if own else "captum"
    apart, took, wanted = 0.0, dict[str, float](), list[Tensors]()
    for setting in ({}, *bench.workload.settings):
        theirs, took[label(setting)] = seeded(bench.library(captum.attr, setting), bench.device)
        scores, _ = seeded(bench.library(fusum.attr, setting), bench.device)
        wanted.append(scores if own else theirs)
        expected = wanted[0] if own else theirs
        apart = max(apart, assert_equal(f"{name}: fusum at {label(setting)} and {whose}", scores, expected, delta))
    for rows in bench.workload.rows:
        scores, _ = seeded(bench.by_hand(rows), bench.device)
        apart = max(apart, assert_equal(f"{name}: the ideal loop at {rows} rows and {whose}", scores, wanted[0], delta))
    return apart, took


def label(setting: Mapping[str, int]) -> str:
    """A setting as text."""
    return ", ".join(f"{name}={value}" for name, value in setting.items()) or "default"


def measure(contenders: Mapping[str, Contender], device: str, seconds: float, least: int) -> dict[str, Timing]:
    """Time contenders in turn for about `seconds` and at least `least` rounds.

    Each round begins with another one and every second goes backwards: a call takes longer after one that left the
    caches and the heap in disorder, and none is to follow always the same.
    """
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    calls = {}
    for name in names:
        seeded(contenders[name], device)
        # A short call is timed several times in a row, as a loop over rows makes it: alone, it finds the caches cold,
        # and for some ms the threads of the one before may still share a core.
        calls[name] = min(64, 1 + int(LEAST_MS / seeded(contenders[name], device)[1]))
    stop = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or (time.perf_counter() < stop and rounds < MOST_ROUNDS):
        first = rounds % len(names)
        order = names[first:] + names[:first]
        for name in order if rounds % 2 else reversed(order):
            times[name].append(seeded(contenders[name], device, calls[name])[1])
        rounds += 1
    return {name: summary(name, values) for name, values in times.items()}


def summary(setting: str, values: list[float]) -> Timing:
    """Median, quartiles and minimum of times."""
    low, median, high = statistics.quantiles(values if len(values) > 1 else values * 2, n=4, method="inclusive")
    return Timing(setting, median, low, high, min(values), len(values))


def fastest(contenders: Mapping[str, Contender], device: str, seconds: float) -> str:
    """The name of the contender with the shortest time in a brief sweep."""
    if len(contenders) == 1:
        return next(iter(contenders))
    timings = measure(contenders, device, seconds, least=3)
    return min(timings, key=lambda name: timings[name].fastest)


def run(workload: Workload, device: str, seconds: float) -> Result:
    """Check one workload, then time it for about `seconds` (a third more for the two sweeps)."""
    bench = Bench.of(workload, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apart, took = check(bench)
        # What takes longer than all the time there is was timed well enough by that one call.
        slow = {name: summary(name, [ms]) for name, ms in took.items() if ms > 1e3 * seconds}
        settings = {label(setting): bench.library(captum.attr, setting) for setting in ({}, *workload.settings)}
        settings = {name: contender for name, contender in settings.items() if name not in slow}
        by_hand = {str(rows): bench.by_hand(rows) for rows in workload.rows}
        rows = fastest(by_hand, device, seconds / 6)
        contenders = {"fusum": bench.library(fusum.attr, {}), "ideal": by_hand[rows]}
        if settings:
            best = fastest(settings, device, seconds / 6)
            contenders |= {name: settings[name] for name in ("default", best) if name in settings}
        timings = slow | measure(contenders, device, seconds, least=5)
    peers = [timing for name, timing in timings.items() if name not in ("fusum", "ideal")]
    captum_default = timings["default"]
    captum_best = min(peers, key=lambda timing: timing.median)  # a brief sweep may err
    loop = replace(timings["ideal"], setting=rows)
    return Result(workload, len(bench.inputs[0]), apart, timings["fusum"], captum_default, captum_best, loop)
