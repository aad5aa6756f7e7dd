"""One unit of rows to attributions: what every way to run a job does, in one process or on a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from .. import __version__, progress
from ..engine.memory import forget
from ..engine.model import ONE_OPERATOR, check_rows, view
from ..engine.perceptron import forward_only
from ..engine.scope import scope
from ..engine.trees import leaves, mapped
from ..errors import ArgumentError
from ..plan.target import Target
from .columns import Batch, Columns, Rows, Unit
from .methods import method_of
from .models import load_model
from .spec import JobError, Spec
from .transfer import Transfer

# Predictions are made of so many bytes of inputs, or rows, at once; some rows are enough to see what is returned.
_FORWARD_BYTES, _FORWARD_ROWS, _FEW_ROWS = 2**22, 1024, 64
_NUMBERS = (("target", "int64"), ("prediction", "float32"), ("convergence_delta", "float32"))


@dataclass
class Found:
    """What a method found for a batch, on its device; columns: numbers by name. done: the event of all of it."""

    batch: Batch
    scores: list[Tensor]
    columns: dict[str, Tensor]
    done: Any


@dataclass(frozen=True)
class Form:
    """One tensor of scores: its shape behind the rows; ragged: the first of that is the number of a row's tokens."""

    shape: tuple[int, ...]
    ragged: bool


class Explainer:
    """A loaded model and its method. ``prepare``, ``explain`` and ``table`` may each run in a thread of their own.

    Arguments:
        baselines: of ``baselines_of``.
        facts: what the output's schema says besides, such as the model's hash.
    """

    def __init__(self, spec: Spec, device: torch.device, baselines: Any, facts: dict[str, Any]) -> None:
        self.spec, self._columns, self._facts = spec, Columns(spec), facts
        self._plan, self._transfer = method_of(spec), Transfer(device)
        model = load_model(spec, device)
        self._view, self._method = view(model), self._plan.of(model)
        self._wants_delta = "return_convergence_delta" in self._plan.takes and self._method.has_convergence_delta()
        self._given = mapped(lambda t: t.to(device), self._arguments(baselines), Tensor)
        self._classes: int | None = None
        self._forms: list[Form] = []

    def __call__(self, table: Any, unit: Unit) -> tuple[Any, Any]:
        """(attributions, rejected rows) of a unit."""
        rows = self.prepare(table, unit)
        return self.table(rows, self.explain(rows)), rows.rejected

    def acquaint(self, table: Any, unit: Unit) -> bool:
        """See what the model and the method return for some rows; False where none of them fits.

        It comes first, and with the same rows in every process: what the engine learns then is the same, too.
        """
        table = table.slice(0, _FEW_ROWS)
        rows = self.prepare(table, unit, step=2)
        if not rows.batches:
            return False
        batch = rows.batches[0]
        self._transfer.arrived(batch.tensors, batch.ready)
        out = self._forward(batch)
        self._classes = out.shape[1] if out.dim() == 2 else None
        if isinstance(self.spec.target, str) and self._classes is None:
            shape = f"the model returned shape {tuple(out.shape)}"
            raise ArgumentError(f"target: got {self.spec.target!r}, but {shape}; expected [rows, classes]")
        rows = self.prepare(table, unit, step=2)  # now also rejecting targets that there are not
        if not rows.batches:
            return False
        rows.batches = [rows.batches[0], rows.batches[-1]]
        self._forms = _forms(*self.explain(rows))  # of token ids: the shortest and the longest lists
        return True

    def prepare(self, table: Any, unit: Unit, step: int | None = None) -> Rows:
        """The rows of a unit, checked and on their way to the device."""
        rows = self._columns.rows(table, unit, self._classes, step)
        for batch in rows.batches:
            batch.tensors, batch.ready = self._transfer.send(batch.tensors)
        return rows

    def explain(self, rows: Rows, tell: Callable[[int], None] = lambda rows: None) -> list[Found]:
        """Scores of all batches of a unit; tell is called for each further number of rows that are explained.

        Scores depend on nothing that was explained before.
        """
        forget(self._view.key)
        found = []
        with self._transfer.here():
            for batch in rows.batches:
                with progress.shared(len(batch.rows), tell):
                    found.append(self._explain(batch))
        return found

    def _explain(self, batch: Batch) -> Found:
        self._transfer.arrived(batch.tensors, batch.ready)
        n, columns, given = len(batch.rows), {}, dict(self._given)
        if "target" in self._plan.takes:
            out = self._forward(batch)
            raw = batch.target if batch.target is not None else self.spec.target
            raw = out.argmax(1) if isinstance(raw, str) else raw
            target = Target.of(raw, n)
            columns["prediction"] = target.pick(out, target.rows).reshape(n)
            if raw is not None:
                given["target"] = raw
                columns["target"] = raw if isinstance(raw, Tensor) else torch.full((n,), raw, device=out.device)
        if batch.extra:
            given["additional_forward_args"] = batch.extra
        with seeded(batch.seed, self._transfer.device):
            scores = self._method.attribute(batch.inputs if len(batch.inputs) > 1 else batch.inputs[0], **given)
        if self._wants_delta:
            scores, delta = scores
            columns["convergence_delta"] = _of_rows(delta, n, given.get("nt_samples_batch_size"))
        flat = [s.detach() for s in leaves(scores, Tensor)]
        for s in flat:
            if s.shape[:1] != (n,):
                raise ArgumentError(f"method: returned scores {tuple(s.shape)} for {n} rows; expected one a row")
        flat = [s.sum(-1) if self.spec.sum_last and s.dim() > 1 else s for s in flat]
        return Found(batch, flat, columns, self._transfer.mark())

    def _forward(self, batch: Batch) -> Tensor:
        """The model's output for a batch."""
        n = len(batch.rows)
        width = sum(x.nbytes for x in (*batch.inputs, *batch.extra)) // n + 1
        step = max(1, min(_FORWARD_ROWS, _FORWARD_BYTES // width, self._view.high or _FORWARD_ROWS))
        outputs = []
        with scope(), torch.no_grad():
            model = forward_only(self._view, batch.inputs, batch.extra)
            step = n if model.part == ONE_OPERATOR else step  # which holds little besides what it is given
            for start in range(0, n, step):
                inputs, extra = [tuple(x[start : start + step] for x in each) for each in (batch.inputs, batch.extra)]
                outputs.append(model(inputs, extra, len(inputs[0])))
                check_rows(outputs[-1], len(inputs[0]))
        return torch.cat(outputs)

    def _arguments(self, baselines: Any) -> dict[str, Any]:
        """What attribute is given for every batch."""
        given, count = dict(self._plan.given), sum(each.explain for each in self.spec.inputs)
        if isinstance(baselines, tuple) and len(baselines[0]) > 1 and not self._plan.many_baselines:
            raise ArgumentError(f"baselines: got {len(baselines[0])} rows; {self.spec.method} takes one")
        if baselines is not None:
            several = baselines if isinstance(baselines, tuple) else (baselines,) * count
            given["baselines"] = several if count > 1 else several[0]
        if self.spec.neuron is not None:
            given["neuron_selector"] = self.spec.neuron
        return {**given, "return_convergence_delta": True} if self._wants_delta else given

    def table(self, rows: Rows, found: list[Found]) -> Any:
        """The output of a unit, its rows in the order of the input."""
        parts, n = [self._fetched(each) for each in found], len(rows.ids)
        columns: dict[str, Any] = {"id": rows.ids}
        for name, kind in _NUMBERS:
            values = np.empty(n, kind)
            for each in parts:
                if name in each.columns:
                    values[each.batch.rows] = each.columns[name].to(getattr(torch, kind)).numpy()
            known = not parts or name in parts[0].columns
            columns[name] = pa.array(values) if known else pa.nulls(n, kind)
        shapes = {}
        for i, form in enumerate(self._forms):
            name = "attributions" if len(self._forms) == 1 else f"attributions_{i}"
            columns[name] = self._lists(parts, i, form, rows) if form.ragged else self._fixed(parts, i, form, n)
            shapes[name] = [-1, *form.shape[1:]] if form.ragged else list(form.shape)
        said = {"version": __version__, "spec": self.spec.as_dict(), "shapes": shapes, **self._facts}
        return pa.table(columns).replace_schema_metadata({"fusum": json.dumps(said, sort_keys=True)})

    def _fetched(self, found: Found) -> Found:
        tensors = self._transfer.fetch([*found.scores, *found.columns.values()], found.done)
        columns = dict(zip(found.columns, tensors[len(found.scores) :], strict=True))
        return replace(found, scores=tensors[: len(found.scores)], columns=columns)

    def _fixed(self, parts: list[Found], i: int, form: Form, n: int) -> Any:
        size = prod(form.shape)
        out = np.empty((n, size), "float32")
        for each in parts:
            if each.scores[i].shape[1:] != form.shape:
                raise JobError(f"method: scores of shape {tuple(each.scores[i].shape[1:])} a row; before {form.shape}")
            out[each.batch.rows] = each.scores[i].float().numpy().reshape(-1, size)
        return pa.FixedSizeListArray.from_arrays(self._typed(out.reshape(-1)), size)

    def _lists(self, parts: list[Found], i: int, form: Form, rows: Rows) -> Any:
        offsets = np.concatenate([[0], np.cumsum(rows.lengths * prod(form.shape[1:]))])
        out = np.empty(offsets[-1], "float32")
        for each in parts:
            if each.scores[i].shape[1] != each.batch.padded:
                tokens = f"{each.batch.padded} tokens"
                raise JobError(f"method: {each.scores[i].shape[1]} scores a row of {tokens}; expected as many")
            values = each.scores[i].float().numpy()
            for k, place in enumerate(each.batch.rows):
                out[offsets[place] : offsets[place + 1]] = values[k, : rows.lengths[place]].reshape(-1)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), self._typed(out))

    def _typed(self, values: Any) -> Any:
        """Scores in the output's type; raises JobError where one is too large for it."""
        with np.errstate(over="ignore"):
            found = values.astype(self.spec.scores, copy=False)
        lost = np.isinf(found) & np.isfinite(values)
        if lost.any():
            raise JobError(f'scores: {values[lost][0]} is too large for float16; expected scores = "float32"')
        return pa.array(found)


def _forms(short: Found, long: Found) -> list[Form]:
    """The forms of scores: ragged where they follow the lengths of token ids."""
    forms = []
    for a, b in zip(short.scores, long.scores, strict=True):
        lengths = (short.batch.padded, long.batch.padded)
        ragged = lengths[0] > 0 and a.dim() > 1 and (a.shape[1], b.shape[1]) == lengths
        if a.shape[1 + ragged :] != b.shape[1 + ragged :]:
            shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
            raise ArgumentError(f"method: returned scores of shapes {shapes}; expected one shape for all rows")
        forms.append(Form(tuple(a.shape[1:]), ragged))
    return forms


def _of_rows(delta: Tensor, n: int, samples_at_once: int | None) -> Tensor:
    """The mean of each row's deltas: a row's side by side, of a tunnel a chunk of samples after the other."""
    samples = len(delta) // n
    parts = delta.split(n * (samples_at_once or samples))
    return torch.stack([part.reshape(n, -1).sum(1, dtype=torch.float64) for part in parts]).sum(0) / samples


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within it torch's and NumPy's draws follow from seed; behind it they go on as before."""
    before = np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)
