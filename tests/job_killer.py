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


def die_at(step: int | None) -> None:
    """Let this process be killed before its step-th file is made safe, renamed or opened; None: slow it down."""
    count = 0

    def watched(call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if step is None:
                time.sleep(0.02)  # or a fast machine would be done before it is killed
            elif count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in ("fsync", "replace", "open"):
        setattr(os, name, watched(getattr(os, name)))


def attempt(spec: Spec, dies: bool, step: int | None) -> None:
    """The child's life."""
    if dies:
        die_at(step)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run(spec)
    os._exit(0)


def main() -> None:
    spec, draw, kills = build(Spec, json.loads(sys.argv[1])), random.Random(int(sys.argv[2])), 0
    while True:
        timed = kills % 3 == 2  # two kinds of moments: any time, and at any step of writing
        step, pause = draw.randint(1, 20), draw.uniform(0.02, 0.6)
        child = os.fork()
        if child == 0:
            try:
                attempt(spec, kills < MOST, None if timed else step)
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
