"""A model as a game of features: its output where some are an example's own and the others their baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.futures import Future

from .. import ops, progress
from ..errors import ArgumentError, ArgumentTypeError
from ..plan.arguments import Arguments
from ..plan.chunks import even
from ..plan.features import Features
from ..plan.spec import Plan
from ..settings import Settings
from .apart import form_of, is_close
from .batch import Tensors
from .memory import is_out_of_memory
from .model import Model, check_rows, couples_rows, keeps_rows_apart
from .perceptron import forward_only
from .planning import Planning
from .repeats import Repeats, distinct, pairs

# What the rows of a model may depend on, by model: parts of it and shapes of which rows are known to be apart.
_apart: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()
# The same of models that return one number for each example.
_single: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()


class Game:
    """One call's model, features and baselines; per_eval: coalitions a forward where rows must not be mixed.

    shuffles: an absent feature is another example's, not its baseline's.
    """

    def __init__(
        self,
        plan: Plan,
        model: Model,
        arguments: Arguments,
        features: Features,
        settings: Settings,
        per_eval: int,
        shuffles: bool = False,
    ) -> None:
        self.features, self.examples = features, arguments.examples
        self._plan, self._model = plan, forward_only(model, arguments.inputs, arguments.extra)
        self.arguments, self._settings = arguments, settings
        self.per_eval, self._shuffles = per_eval, shuffles

    # The model's output.

    @cached_property
    def full(self) -> Tensor:
        """The output at the inputs, the target picked."""
        inputs, n = self.arguments.inputs, self.examples

        def rows(start: int, stop: int) -> Tensors:
            return tuple([x if x is None else x[start:stop].clone() for x in inputs])

        everyone, most = torch.arange(n, device=self.arguments.device), self._model.high
        if self._is_known:
            return self.evaluate(n, rows, everyone)
        if most is None or most >= n:
            with self._planning.measuring(n):
                return self._forward(self.inputs(), None)
        return torch.cat([self._forward(rows(i, min(i + most, n)), everyone[i : i + most]) for i in range(0, n, most)])

    def inputs(self) -> Tensors:
        """The inputs, which a model may write to."""
        return tuple([x if x is None else x.clone() for x in self.arguments.inputs])

    @property
    def outputs(self) -> torch.Size:
        """The shape of the output."""
        return self.full.shape

    @cached_property
    def apart(self) -> bool:
        """Whether the output has a row for each example, which no other example's row has influence on."""
        return self._is_known or (self._may_be_apart() and self._probe())

    @cached_property
    def groups(self) -> int:
        """How many models explain the output: one for each example, or one where it is one number for all of them."""
        target = self.arguments.target
        key = self._form(), len(target.column) if target.rows is None else target.rows.shape[1]
        if self._is_known and key in _single.get(self._model.key, ()):
            return self.examples  # and the inputs need not be evaluated on their own
        full, examples = self.full, self.examples
        if full.numel() not in (1, examples):
            raise ArgumentError(
                f"forward_func: returned {full.numel()} numbers for {examples} examples, of shape "
                f"{tuple(full.shape)}; expected one for each of them, or one for all (is a target missing?)"
            )
        if full.numel() == 1 < examples and self.per_eval > 1:
            raise ArgumentError(
                f"perturbations_per_eval: got {self.per_eval}; expected 1, as forward_func returns one number for all "
                "examples"
            )
        if self._is_known and full.numel() == examples:
            _single.setdefault(self._model.key, set()).add(key)
        return full.numel()

    def _may_be_apart(self) -> bool:
        if couples_rows(self._model.key) or self.full.dim() == 0 or len(self.full) != self.examples:
            return False
        return self._has_all_rows()

    def _has_all_rows(self) -> bool:
        return all(x.shape[0] == self.examples for x in self.arguments.inputs if x is not None)

    @cached_property
    def _is_known(self) -> bool:
        """Whether an earlier call found that rows are apart, so that the inputs need not be evaluated on their own."""
        may_be = self._has_all_rows() and keeps_rows_apart(self._model.key)
        return may_be and self._form() in _apart.get(self._model.key, ())

    def _form(self) -> Any:
        """What the answer may depend on; None where that is too much to remember."""
        if self._plan.read is not None and callable(self._plan.read.selector):
            return None  # a function that reads the neuron may mix rows
        return form_of(self._model, self.arguments)

    def _probe(self) -> bool:
        """Whether the first and the last example's outputs are the same beside rows as unlike them as may be."""
        try:
            apart = self._model.high == 1 or all(self._is_same_beside(e) for e in {0, self.examples - 1})
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return False  # a model for so many rows and no others
        form = self._form()
        if apart and form is not None and keeps_rows_apart(self._model.key):
            _apart.setdefault(self._model.key, set()).add(form)
        return apart

    def _is_same_beside(self, example: int) -> bool:
        """Whether an example and its baseline have the same outputs together as apart."""
        at = torch.full((2,), example, device=self.arguments.device)
        present = torch.ones(2, self.features.count, dtype=torch.bool, device=at.device)
        present[1] = self._shuffles  # then all of a batch's rows are one example's
        rows = self._rows(present, torch.arange(2, device=at.device), at)
        out = self._forward(rows, at)
        if out.shape != (2, *self.outputs[1:]) or not is_close(out[0], self.full[example]):
            return False
        if self.examples > 1:
            return True
        alone = self._forward(tuple([x if x is None else x[1:] for x in rows]), at[1:])
        return alone.shape == self.outputs and is_close(out[1], alone[0])

    def _forward(self, rows: Tensors, examples: Tensor | None) -> Tensor:
        """The output at rows that belong to examples, the target picked; None: the inputs themselves."""
        with torch.no_grad():
            return self._picked(self._returned(rows, examples), rows, examples)

    def _returned(self, rows: Tensors, examples: Tensor | None) -> Any:
        extra = self.arguments.extra
        if examples is not None:
            extra = tuple([self._of(a, examples) for a in extra])
        return self._model.run(self._model.given(rows, extra, _count(rows)))

    def _picked(self, returned: Any, rows: Tensors, examples: Tensor | None) -> Tensor:
        if isinstance(returned, (int, float)):
            returned = torch.tensor(returned, dtype=torch.int64 if isinstance(returned, int) else torch.float64)
        out, target = self._model.result(returned, _count(rows)), self.arguments.target
        index = target.rows
        if index is not None:
            index = index.to(out.device) if examples is None else index[examples.to(index.device)].to(out.device)
        return target.select(out, index)

    def ask(self, rows: Tensors, examples: Tensor | None) -> Future[Tensor]:
        """The output that a model which returns futures will return, the target picked."""
        with torch.no_grad():
            returned = self._returned(rows, examples)
        if not isinstance(returned, torch.Future):  # what its then returns is no torch.futures.Future
            got = type(returned).__name__
            raise ArgumentTypeError(f"forward_func: returned {got}; expected torch.futures.Future, or attribute")
        return cast(Future[Tensor], returned.then(lambda answer: self._picked(answer.value(), rows, examples)))

    def _of(self, a: Any, examples: Tensor) -> Any:
        """An additional argument's rows for examples, where it has as many for each."""
        if not isinstance(a, Tensor) or a.dim() == 0 or len(a) == 0 or len(a) % self.examples:
            return a
        if len(a) == self.examples:
            return a[examples.to(a.device)]
        return a.unflatten(0, (self.examples, -1))[examples.to(a.device)].flatten(0, 1)

    # Values of coalitions.

    @cached_property
    def _repeats(self) -> Repeats:
        return Repeats(self.arguments, self.features)

    def values(
        self, coalitions: Tensor, repeats: bool = True, shuffled: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """The output at coalitions bool [C, features] that all examples share: [C, *outputs].

        repeats: some may come more than once, or lack no feature. shuffled: of which example [C, examples] an input's
        absent features are.
        """
        count, n = coalitions.shape[0], self.examples
        if not self.apart:
            return self.grid(
                count, lambda start, stop: self.tiled(coalitions[start:stop], _part(shuffled, start, stop))
            )
        if shuffled is not None:
            index = [None if s is None else s.flatten() for s in shuffled]
            return _folded(self._at(coalitions, *pairs(count, n, coalitions.device), index), count)
        if not repeats and self._repeats.all_differ:
            return self._and_inputs(coalitions)[:count]
        keys = self._repeats.keys(coalitions)
        if keys.shape[1] > 1:
            found = self._each(coalitions, *pairs(count, n, coalitions.device), keys.flatten())
            return _folded(found, count)
        first, place = distinct(keys[:, 0])
        progress.advance((count - len(first)) * n)
        return self._and_inputs(coalitions[first])[place]

    def own(self, coalitions: Tensor, start: int = 0) -> Tensor:
        """The output at coalitions bool [b, n, features] of the examples start to start + b: [b, n, *outputs[1:]]."""
        b, n, _ = coalitions.shape
        keys = self._repeats.own_keys(coalitions, start)
        examples = torch.arange(start, start + b, device=coalitions.device).repeat_interleave(n)
        which = torch.arange(b * n, device=coalitions.device)
        return _folded(self._each(coalitions.flatten(0, 1), which, examples, keys.flatten()), b)

    def _each(self, coalitions: Tensor, which: Tensor, examples: Tensor, keys: Tensor) -> Tensor:
        """The output at rows of coalitions and examples, of which the same keys mean the same."""
        first, place = distinct(torch.where(keys == 0, 0, keys * self.examples + examples))
        progress.advance(len(keys) - len(first))
        found = torch.cat([self._at(coalitions, which[first], examples[first]), self.full])
        return found[torch.where(keys == 0, len(first) + examples, place)]

    # Rows.

    def _and_inputs(self, coalitions: Tensor) -> Tensor:
        """The output of all examples at coalitions, and behind those at the inputs: [C + 1, *outputs]."""
        together = "full" not in vars(self) and self._is_known
        if together:
            coalitions = torch.cat([coalitions, coalitions.new_ones(1, self.features.count)])
        count = coalitions.shape[0]
        found = self._at(coalitions, *pairs(count, self.examples, coalitions.device))
        found = found.view(count, self.examples, *found.shape[1:])
        if not together:
            return torch.cat([found, self.full[None]])
        self.full = found[-1]
        return found

    def _at(
        self, coalitions: Tensor, which: Tensor, examples: Tensor, index: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """The output at rows of coalitions and examples, as many at once as memory allows: [R, *outputs[1:]]."""

        def rows(start: int, stop: int) -> Tensors:
            return self._rows(
                coalitions, _cut(which, start, stop), _cut(examples, start, stop), _part(index, start, stop)
            )

        return self.evaluate(which.shape[0], rows, examples)

    def evaluate(self, count: int, rows: Callable[[int, int], Tensors], examples: Tensor) -> Tensor:
        """The output at rows(start, stop) for count rows, which belong to examples; only where rows are apart."""
        planning, start = self._planning, 0
        outs: list[Tensor] = []
        while start < count:
            size = count - start if planning.rows is None else even(count - start, planning.rows)
            try:
                with planning.measuring(size):
                    out = self._forward(rows(start, start + size), _cut(examples, start, start + size))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not planning.shrink(size, 1):
                    raise
                continue
            check_rows(out, size)
            progress.advance(size)
            outs.append(out)
            start += size
        return outs[0] if len(outs) == 1 else torch.cat(outs) if outs else self.full[:0]

    @cached_property
    def _planning(self) -> Planning:
        return Planning(self._plan, self._model, self.arguments, self._settings, 1, forward_only=True)

    def grid(self, count: int, rows: Callable[[int, int], Tensors]) -> Tensor:
        """The output at whole batches rows(start, stop), one for each of count coalitions: [count, *outputs]."""
        most, full = self.per_eval, self.full  # the inputs come first, as in captum: a model may draw, or count
        outs = []
        for start in range(0, count, most):
            n = min(most, count - start)
            out = self._forward(rows(start, start + n), self.repeated(n))
            outs.append(self.by_coalition(out, n, full))
            progress.advance(n * self.examples)
        return torch.cat(outs) if outs else full.new_zeros(0, *self.outputs)

    def repeated(self, n: int) -> Tensor | None:
        """The examples of n whole batches; None of one: nothing of it need be repeated."""
        return None if n == 1 else torch.arange(self.examples, device=self.arguments.device).repeat(n)

    @staticmethod
    def by_coalition(out: Tensor, n: int, full: Tensor) -> Tensor:
        """The output at n whole batches, [n, *outputs]."""
        rows = len(full) if full.dim() else 1  # a model may squeeze the one number of one row
        if out.numel() != n * full.numel() or (n > 1 and out.shape[:1] != (n * rows,)):
            raise ArgumentError(
                f"perturbations_per_eval: got {n} or more, but forward_func returned shape {tuple(out.shape)} for {n} "
                f"times as many rows as those it returned shape {tuple(full.shape)} for; expected 1"
            )
        return out.reshape(n, *full.shape)

    def tiled(self, coalitions: Tensor, shuffled: Sequence[Tensor | None] | None = None) -> Tensors:
        """The rows of all examples at coalitions, one after the other."""
        rows: list[Tensor | None] = []
        for i, x in enumerate(self.arguments.inputs):
            n = 0 if x is None else len(x)
            which, examples = pairs(len(coalitions), n, coalitions.device)
            given = None if shuffled is None else shuffled[i]
            rows.append(self._row(i, coalitions, which, examples, None if given is None else given.flatten()))
        return tuple(rows)

    def _rows(
        self, coalitions: Tensor, which: Tensor, examples: Tensor, index: Sequence[Tensor | None] | None = None
    ) -> Tensors:
        inputs = range(len(self.arguments.inputs))
        return tuple([self._row(i, coalitions, which, examples, None if index is None else index[i]) for i in inputs])

    def _row(self, i: int, coalitions: Tensor, which: Tensor, examples: Tensor, index: Tensor | None) -> Tensor | None:
        """An input's rows."""
        x, b, ids = self.arguments.inputs[i], self.arguments.baselines[i], self.features.ids[i]
        if x is None or b is None or ids is None:
            return None
        if x.shape[0] == 0:  # only where examples are not told apart
            return x
        given = [t.to(x.device) for t in (coalitions, which, examples)]
        if self._shuffles:
            return ops.coalition_rows(x, x, examples if index is None else index, ids, *given)
        return ops.coalition_rows(x, b.value, None, ids, *given)


def _folded(t: Tensor, count: int) -> Tensor:
    """[count * n, ...] as [count, n, ...]."""
    return t.view(count, -1, *t.shape[1:])


def _count(rows: Tensors) -> int:
    for x in rows:
        if x is not None:
            return x.shape[0]
    return 0


def _part(each: Sequence[Tensor | None] | None, start: int, stop: int) -> list[Tensor | None] | None:
    return None if each is None else [None if t is None else _cut(t, start, stop) for t in each]


def _cut(t: Tensor, start: int, stop: int) -> Tensor:
    """t[start:stop], which takes as long as many an operator where it is all of t."""
    return t if stop - start == t.shape[0] else t[start:stop]
