"""Counts of what ran fused and what did not, for ``python -m fusum --profile``."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Count:
    """One class: how often it ran fused, how often not and why, and seconds in all."""

    fused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


# Class name -> Count while counting, else None. One for the process: a script's threads are all counted.
calls: dict[str, Count] | None = None
_lock = threading.Lock()


def start() -> None:
    """Count from now on."""
    global calls
    calls = {}


def stop() -> dict[str, Count]:
    """Stop counting; the counts."""
    global calls
    counted, calls = calls or {}, None
    return counted


@contextmanager
def timed(name: str, reason: str | None) -> Iterator[None]:
    """Count one call of class name, which runs fused unless there is a reason why not."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - begin
        with _lock:
            if calls is not None:
                count = calls.setdefault(name, Count())
                count.seconds += seconds
                if reason is None:
                    count.fused += 1
                else:
                    count.reasons[reason] += 1


def report(counted: dict[str, Count]) -> str:
    """The counts as a table."""
    if not counted:
        return "fusum: no attribution ran"
    lines = [f"{'class':<28}{'calls':>8}{'fused':>8}{'seconds':>10}  not fused because"]
    for name, count in sorted(counted.items(), key=lambda item: -item[1].seconds):
        others = sum(count.reasons.values())
        why = "; ".join(f"{n}x {reason}" for reason, n in count.reasons.most_common())
        lines.append(f"{name:<28}{count.fused + others:>8}{count.fused:>8}{count.seconds:>10.3f}  {why}".rstrip())
    return "\n".join(lines)
