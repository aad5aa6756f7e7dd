"""How a call's rows are cut: blocks of examples, chunks of points, and smaller ones where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

from ..plan.arguments import Arguments
from ..plan.chunks import cut, halve
from ..plan.spec import Plan
from ..settings import Settings
from .apart import is_apart
from .batch import Batch, Block
from .memory import Footprint, is_out_of_memory, is_small
from .model import ONE_OPERATOR, Model, couples_rows

T = TypeVar("T")


class Planning:
    """How many rows the model of one call sees at once (None: all): as set, or else as its footprint allows.

    points: evaluations of each example. forward_only: without gradients.
    """

    __slots__ = ("_arguments", "_footprint", "_is_tried", "_model", "_settings", "rows")

    def __init__(
        self,
        plan: Plan,
        model: Model,
        arguments: Arguments,
        settings: Settings,
        points: int,
        forward_only: bool = False,
    ) -> None:
        self._model, self._arguments, self._settings = model, arguments, settings
        # What would be given a batch as it is, is tried before that is cut, unless it is known, or has to be.
        given_as_it_is = points == 1 and plan.noise is None and not forward_only
        self._is_tried = given_as_it_is and model.part != ONE_OPERATOR and model.high is None
        automatic = self._is_automatic(plan, points, forward_only)
        self._footprint = Footprint(model.key, arguments.inputs, model.part, forward_only) if automatic else None
        self.rows = self._most_rows()
        if automatic and self.rows is not None and self.rows < arguments.examples and self._is_coupled():
            self._footprint = None
            self.rows = self._most_rows()

    def _is_automatic(self, plan: Plan, points: int, forward_only: bool) -> bool:
        """Whether to choose rows: nobody set them, there is much to do, and a cut batch has the same results."""
        settings, noise = self._settings, plan.noise
        fixed = self._arguments.max_rows or (settings.max_rows and not settings.memory)
        if fixed or plan.rule.function is not None:
            return False
        copies = points * (1 if noise is None else noise.samples)
        if settings.memory is None and not forward_only and is_small(self._arguments.inputs, copies):
            return False
        return not couples_rows(self._model.key)

    def _is_coupled(self) -> bool:
        """Whether a batch has other results when it is cut."""
        return couples_rows(self._model.key) or (self._is_tried and not is_apart(self._model, self._arguments))

    def _most_rows(self) -> int | None:
        automatic = None if self._footprint is None else self._footprint.rows()
        caps = (automatic, self._arguments.max_rows, self._settings.max_rows, self._model.high)
        return min([n for n in caps if n is not None], default=None)

    def pieces(self, batch: Batch, n: int, work: Callable[[Block, int], T]) -> Iterator[tuple[int, T]]:
        """(start, work's result) of blocks of examples with n points; one that runs out of memory is cut smaller."""
        start = 0
        while start < batch.examples:
            examples, points = batch.examples - start, n
            if self.rows is not None:
                examples, points = cut(examples, points, self.rows)
            try:
                found = work(batch.block(start, start + examples), points)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self.shrink(examples, points):
                    raise
                continue
            yield start, found
            start += examples

    def shrink(self, examples: int, points: int) -> bool:
        """After running out of memory: take fewer rows from now on. False where there are none fewer."""
        smaller = halve(examples, points)
        if smaller is None or (smaller[0] < examples and self._is_coupled()):
            return False
        self.rows = smaller[0] * smaller[1]
        if self._footprint is not None:
            self._footprint.shrink(self.rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True

    def measuring(self, rows: int) -> AbstractContextManager[None]:
        """A context in which a model's first evaluation, of rows rows, tells how many may run at once from then on."""
        if self._footprint is None or self._footprint.measured:
            return nullcontext()
        return self._measuring(self._footprint, rows)

    @contextmanager
    def _measuring(self, footprint: Footprint, rows: int) -> Iterator[None]:
        with footprint.measure(rows):
            yield
        self.rows = self._most_rows()
