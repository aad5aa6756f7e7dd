"""A bar of the rows that a call has evaluated: tqdm's where it is installed, else a plain one; one a thread.

The engine says ``expect`` and ``advance``, which do nothing where no bar was asked for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any


class _Line:
    """One line on stderr, rewritten: what there is where tqdm is not installed."""

    def __init__(self, desc: str, total: int | None, unit: str) -> None:
        self._desc, self._unit, self._text = desc, unit, ""
        self.n, self.total = 0, total
        self.refresh()

    def update(self, n: int) -> None:
        self.n += n
        self.refresh()

    def refresh(self) -> None:
        """Write the line, unless it says the same as before: some models are evaluated very often."""
        if self.total:
            percent = 100 * self.n // self.total
            text = f"{self._desc}: {percent:3}% |{'#' * (percent // 5):20}|"
        else:
            text = f"{self._desc}: {self.n} {self._unit}"
        if text != self._text:
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
            self._text = text

    def close(self) -> None:
        print(file=sys.stderr, flush=True)


def _line(title: str, total: int | None) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _Line(title, total, "rows")
    return tqdm(desc=title, total=total, unit="rows")


class _Bar:
    """Rows done of those expected. The line is there from the first on, so that bad arguments leave none."""

    def __init__(self, title: str) -> None:
        self._title, self._done, self._total = title, 0, 0
        self._line: Any = None

    def expect(self, rows: int) -> None:
        self._total += rows
        if self._line is not None:
            self._line.total = self._total
            self._line.refresh()
        elif rows:
            self._line = _line(self._title, self._total)

    def advance(self, rows: int) -> None:
        if self._line is None:
            self._line = _line(self._title, self._total or None)
        if self._total:  # rows that ran out of memory are evaluated again
            rows = min(rows, self._total - self._done)
        self._done += rows
        self._line.update(rows)

    def close(self, complete: bool) -> None:
        """End the line; what is complete ends at 100 %, also where less was to do than expected."""
        if self._line is None:
            return
        if complete:
            self.expect(max(0, self._done - self._total))
            self.advance(self._total - self._done)
        self._line.close()


class _Share:
    """How much is done of what is expected, as a share of amount, whatever the unit of those is."""

    def __init__(self, amount: int, tell: Callable[[int], None]) -> None:
        self._amount, self._tell = amount, tell
        self._told, self._done, self._total = 0, 0, 0

    def expect(self, rows: int) -> None:
        self._total += rows

    def advance(self, rows: int) -> None:
        self._done += rows
        if self._total:
            self._reach(self._amount * min(self._done, self._total) // self._total)

    def close(self, complete: bool) -> None:
        if complete:
            self._reach(self._amount)

    def _reach(self, part: int) -> None:
        if part > self._told:
            self._tell(part - self._told)
            self._told = part


class _PerThread(threading.local):
    bar: _Bar | _Share | None = None


_thread = _PerThread()


class shown:
    """Within it the calling thread's rows count for a bar under this title; without a title, for no bar.

    (A class and not a generator, because it is entered at every call and some calls take 300 microseconds.)
    """

    __slots__ = ("_bar", "_outer")

    def __init__(self, title: str | None) -> None:
        self._bar: _Bar | _Share | None = None if title is None else _Bar(title)

    def __enter__(self) -> None:
        self._outer = _thread.bar
        if self._bar is not None or not isinstance(self._outer, _Share):
            _thread.bar = self._bar

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        _thread.bar = self._outer
        if self._bar is not None:
            self._bar.close(complete=kind is None)


class shared(shown):
    """Within it tell is called for each further part of amount that the calling thread has done; at its end all is."""

    __slots__ = ()

    def __init__(self, amount: int, tell: Callable[[int], None]) -> None:
        self._bar = _Share(amount, tell)


def expect(rows: int) -> None:
    """Rows that are to be evaluated, besides those announced before; fewer than none where those were too many."""
    bar = _thread.bar
    if bar is not None:
        bar.expect(rows)


def advance(rows: int) -> None:
    """Rows that were evaluated, or need not be."""
    bar = _thread.bar
    if bar is not None:
        bar.advance(rows)
