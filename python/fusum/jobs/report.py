"""How far a job is: tqdm's bar on a terminal, JSON lines where there is none."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from tqdm import tqdm


def say(event: str, **facts: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps({"event": event, **facts}), flush=True)


class Report:
    """How far a job is, of total rows in this run if that is known.

    rows: read for parts that are written; rejected ones among them.
    """

    def __init__(self, total: int | None) -> None:
        self.rows = self.rejected = self.parts = 0
        self._total, self._begin, self._said, self._seen = total, time.monotonic(), 0.0, 0
        self._lock = threading.Lock()  # rows are explained in one thread and written in another
        self._bar = tqdm(total=total, unit="rows", unit_scale=True) if total and sys.stderr.isatty() else None

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begin

    def explained(self, rows: int) -> None:
        """So many rows more are explained, and not yet written."""
        with self._lock:
            self._tell(rows)

    def add(self, rows: int, rejected: int) -> None:
        """A part is written; rows are all that were read for it, of which those that fit were explained before."""
        with self._lock:
            self.rows, self.rejected, self.parts = self.rows + rows, self.rejected + rejected, self.parts + 1
            self._tell(rejected, rows=rows, rejected=rejected)

    def _tell(self, more: int, **part: int) -> None:
        """Say how far the job is, now and then: more rows are done. part: what add was given."""
        self._seen += more
        if self._bar is not None:
            self._bar.set_postfix(rejected=self.rejected, refresh=False)
            self._bar.update(more)
        elif self.seconds - self._said > 1:
            self._said = self.seconds
            speed = self._seen / self.seconds
            left = None if self._total is None or not speed else round((self._total - self._seen) / speed, 1)
            facts = {"rows": self._seen, "total": self._total, "rejected": self.rejected}
            say("progress", **facts, rows_per_second=round(speed, 1), seconds_left=left)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
