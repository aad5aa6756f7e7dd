"""Runs a job again and again, and kills it at random moments, until it ends by itself; prints how often it was killed.

A process of its own: it forks before any thread of torch's or Arrow's has begun, so that an attempt begins at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from typing import Any

from fusum.jobs import Spec, run
from fusum.jobs.spec import build

MOST = 16  # kills, before the job is left to end


def die_at(step: int) -> None:
    """Let this process be killed before or after its step-th file is made safe, renamed or opened."""
    count = 0

    def watched(call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in ("fsync", "replace", "open"):
        setattr(os, name, watched(getattr(os, name)))


def attempt(spec: Spec, step: int | None) -> None:
    """The child's life."""
    if step is not None:
        die_at(step)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run(spec)
    os._exit(0)


def main() -> None:
    spec, draw, kills = build(Spec, json.loads(sys.argv[1])), random.Random(int(sys.argv[2])), 0
    while True:
        timed = kills % 3 == 2  # two kinds of moments: any time, and at any step of writing
        step, pause = draw.randint(1, 60), draw.uniform(0.02, 0.6)
        child = os.fork()
        if child == 0:
            try:
                attempt(spec, step if kills < MOST and not timed else None)
            finally:
                os._exit(1)
        if timed and kills < MOST:
            time.sleep(pause)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            print(json.dumps({"kills": kills, "code": os.WEXITSTATUS(status)}))
            return
        kills += 1


if __name__ == "__main__":
    main()
