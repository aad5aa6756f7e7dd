"""How far a job is: tqdm's bar on a terminal, JSON lines where there is none."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from tqdm import tqdm


def say(event: str, **facts: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps({"event": event, **facts}), flush=True)


class Report:
    """Rows done, of total in this run if that is known."""

    def __init__(self, total: int | None) -> None:
        self.rows = self.rejected = self.parts = 0
        self._total, self._begin, self._said = total, time.monotonic(), 0.0
        self._bar = tqdm(total=total, unit="rows", unit_scale=True) if total and sys.stderr.isatty() else None

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begin

    def add(self, rows: int, rejected: int) -> None:
        """A part is written; rows are all that were read for it."""
        self.rows, self.rejected, self.parts = self.rows + rows, self.rejected + rejected, self.parts + 1
        self._tell(rows, rejected)

    def _tell(self, rows: int, rejected: int) -> None:
        """Say how far the job is."""
        if self._bar is not None:
            self._bar.set_postfix(rejected=self.rejected, refresh=False)
            self._bar.update(rows)
        elif self.seconds - self._said > 1:
            self._said = self.seconds
            speed = self.rows / self.seconds
            left = None if self._total is None else round((self._total - self.rows) / speed, 1)
            facts = {"rows": self.rows, "total": self._total, "rejected": self.rejected}
            say("progress", **facts, rows_per_second=round(speed, 1), seconds_left=left)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
