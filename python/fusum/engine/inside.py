"""Paths between what layers hold: the same call, with those tensors for inputs and the model from there on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..plan.arguments import Arguments, Baseline, as_baselines, promoted
from ..plan.spec import Call, Line, RandomLine
from .batch import Batch, Block, Tensors
from .gradients import Unused
from .memory import is_out_of_memory
from .model import Model, check_rows, keeps_rows_apart
from .prefix import Generators, Prefix
from .probe import Mode, Probe
from .site import Around, Held, Site

if TYPE_CHECKING:
    from .run import Job


@dataclass(slots=True)
class Entered:
    """The inner call; change: the explained output's change from baselines to inputs, [examples], if wanted."""

    call: Call
    arguments: Arguments
    model: Model
    unused: Unused
    change: Tensor | None


@dataclass(slots=True)
class Ends:
    """What layers hold at one end of every path, how many tensors each, and the explained numbers there, if wanted."""

    values: list[Tensor]
    sizes: tuple[int, ...]
    numbers: Tensor | None


class From:
    """The model from its layers on: a callable on what they hold, the model's own arguments, and rows' examples.

    constants: what they hold that is no floating-point tensor.
    """

    def __init__(self, site: Site, constants: Sequence[Tensor | None], prefix: Prefix | None) -> None:
        self._site, self._constants, self._prefix = site, constants, prefix

    def __call__(self, *args: Any) -> Any:
        *rest, index = args
        n = len(self._constants)
        flat = iter([x if c is None else c[index] for x, c in zip(rest[:n], self._constants, strict=True)])
        given = [[[rows.back(next(flat)) for rows in call] for call in calls] for calls in self._site.form or ()]
        around = None if self._prefix is None else partial(self._prefix.replaying, index=index)
        return self._site.run(Probe(Mode.GIVE, given), tuple(rest[n:]), around=around)


def enter(job: Job, call: Call) -> Entered:
    """What a call from baselines to inputs becomes between the layers' values there."""
    site, arguments = job.stepper.site, job.arguments
    assert site is not None
    assert isinstance(call.plan.points, (Line, RandomLine))
    wants_change = job.wants_delta and call.plan.noise is None
    prefix = site.prefix()
    end, start = _ends(job, site, wants_change, prefix)
    for x, b in zip(end.values, start.values, strict=True):
        if x.shape[1:] != b.shape[1:]:
            shapes = f"{tuple(b.shape[1:])} at baselines and {tuple(x.shape[1:])} at inputs"
            raise ArgumentError(f"layer: holds rows of shape {shapes}; expected the same")
    explained = [x.is_floating_point() for x in end.values]
    inner = replace(
        _arguments(arguments, [x if real else None for x, real in zip(end.values, explained, strict=True)]),
        baselines=tuple([Baseline(b) if real else None for b, real in zip(start.values, explained, strict=True)]),
    )
    constants = [None if real else x for x, real in zip(end.values, explained, strict=True)]
    model = site.model.only(From(site, constants, prefix), (site.model.part, "from"))
    points = replace(call.plan.points, inside=False)
    plan = replace(call.plan, points=points, where=None)
    unused = Unused(end.sizes, site.where.may_be_unused)
    noisy = call.plan.noise is not None and job.wants_delta
    change = None if end.numbers is None or start.numbers is None else end.numbers - start.numbers
    return Entered(replace(call, plan=plan, return_convergence_delta=noisy), inner, model, unused, change)


def at_layer(job: Job, call: Call) -> tuple[Model, Arguments]:
    """The model from a layer on, and the arguments of a call that changes what the layer holds at the inputs."""
    site, arguments = job.stepper.site, job.arguments
    assert site is not None
    prefix = site.prefix()
    look = _Look(job, site, False, prefix)
    with torch.no_grad():
        pieces = job.planning.pieces(Batch(arguments, arguments.examples, ()), 1, look.at_inputs)
        values = tuple(_joined([found for _, found in pieces]).values)
    values = promoted(values, call.baselines)
    baselines = as_baselines(call.baselines, values, False, "layer_baselines")
    inner = replace(_arguments(arguments, values), baselines=baselines)
    model = site.model.only(From(site, [None] * len(values), prefix), (site.model.part, "from"))
    return model, inner


def _arguments(arguments: Arguments, values: Sequence[Tensor | None]) -> Arguments:
    """The arguments of the model from a layer on: what that holds, the model's own, and rows' examples."""
    index = torch.arange(arguments.examples, device=arguments.device)
    extra = (*arguments.inputs, *arguments.extra, index)
    return replace(arguments, inputs=tuple(values), single=False, extra=extra)


def _ends(job: Job, site: Site, wants_numbers: bool, prefix: Prefix | None) -> tuple[Ends, Ends]:
    """What layers hold at inputs and at baselines: by one forward, where all rows fit in one and are known to be apart.

    Baselines are one row where that stands against every example, and every example has the same target; where copies
    of examples draw theirs, all of them.
    """
    arguments, look = job.arguments, _Look(job, site, wants_numbers, prefix)
    examples, apart = arguments.examples, keeps_rows_apart(site.model.key)
    batch = Batch(arguments, examples, arguments.baselines)
    shared = all(b is None or b.shared for b in arguments.baselines) and not batch.has_travelling_extra()
    rows = 1 if shared and apart and arguments.target.rows is None else examples
    if job.plan.noise is not None and job.plan.noise.draw_baselines and not shared:
        rows = _distribution(batch)
    with torch.no_grad():
        both = look.at_both(batch.block(0, examples), rows) if apart and rows in (1, examples) else None
        if both is not None:
            return both
        at_inputs = job.planning.pieces(Batch(arguments, examples, ()), 1, look.at_inputs)
        end = _joined([found for _, found in at_inputs])
        at_baselines = job.planning.pieces(Batch(arguments, rows, arguments.baselines), 1, look.at_baselines)
        return end, _joined([found for _, found in at_baselines])


def _distribution(batch: Batch) -> int:
    """How many baselines there are to draw from; an example's own arguments cannot go with other numbers of them."""
    counts = {len(b.value) for b in batch.baselines if b is not None and not b.shared} or {1}
    if len(counts) > 1 or (batch.examples > 1 and counts != {batch.examples} and batch.has_travelling_extra()):
        got = f"rows {sorted(counts)} to draw from, for what a layer holds at them"
        raise ArgumentError(f"baselines: got {got}; expected as many of each, and no argument of each example's own")
    return counts.pop()


class _Look:
    """What layers hold at the ends of a block's paths; prefix: records what runs before them at inputs."""

    def __init__(self, job: Job, site: Site, wants_numbers: bool, prefix: Prefix | None) -> None:
        self._job, self._site, self._wants_numbers, self._prefix = job, site, wants_numbers, prefix

    def at_both(self, block: Block, rows: int) -> tuple[Ends, Ends] | None:
        """At inputs and at rows rows of baselines; None where they do not fit in one forward, or draw in it."""
        most, generators = self._job.rows, Generators()
        if most is not None and block.examples + rows > most:
            return None
        try:
            found = self._at_both(block, rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        if not generators.moved():
            return found
        generators.restore()
        return None

    def _at_both(self, block: Block, rows: int) -> tuple[Ends, Ends]:
        examples, copies = block.examples, 2 if rows == block.examples else 1
        pairs = zip(block.inputs, self._baselines(block, rows), strict=True)
        at = tuple([x if x is None or b is None else torch.cat([x, b]) for x, b in pairs])
        held = self._held(at, block.extra(copies), examples + rows, self._recording(examples + rows, examples))
        return self._end(block, held, 0, examples), self._end(block, held, examples, rows)

    def at_inputs(self, block: Block, _: int) -> Ends:
        """At a block's inputs."""
        # Of a single example any dimension of 1 may be that of the rows.
        copies = 2 if self._prefix is not None and block.examples == 1 and self._job.rows != 1 else 1
        rows = copies * block.examples
        at = tuple([x if x is None or copies == 1 else torch.cat([x, x]) for x in block.inputs])
        held = self._held(at, block.extra(copies), rows, self._recording(rows, block.examples))
        return self._end(block, held, 0, block.examples)

    def at_baselines(self, block: Block, _: int) -> Ends:
        """At a block's baselines."""
        held = self._held(self._baselines(block, block.examples), block.extra(1), block.examples, None)
        return self._end(block, held, 0, block.examples)

    def _baselines(self, block: Block, rows: int) -> Tensors:
        pairs = zip(block.baselines, self._job.arguments.inputs, strict=True)
        return tuple([None if b is None or x is None else b.like((rows, *x.shape[1:])) for b, x in pairs])

    def _recording(self, rows: int, examples: int) -> Around | None:
        return None if self._prefix is None else partial(self._prefix.recording, rows=rows, examples=examples)

    def _held(self, at: Tensors, extra: tuple[Any, ...], rows: int, around: Around | None) -> Held:
        sees_all = around is not None and self._prefix is not None and not self._prefix.stops
        stop = not (sees_all or self._wants_numbers)
        return self._site.look(Mode.WATCH, at, extra, rows, stop, around)

    def _end(self, block: Block, held: Held, start: int, rows: int) -> Ends:
        """Of rows from start."""
        values = [v[start : start + rows] for v in held.values]
        if not self._wants_numbers:
            return Ends(values, held.sizes, None)
        check_rows(held.out, held.rows)
        out = held.out[start : start + rows]
        numbers = self._job.arguments.target.pick(out, block.target_rows(1, out.device))
        return Ends(values, held.sizes, numbers.reshape(rows))


def _joined(ends: list[Ends]) -> Ends:
    if len(ends) == 1:
        return ends[0]
    numbers = [end.numbers for end in ends if end.numbers is not None]
    values = [torch.cat(column) for column in zip(*(end.values for end in ends), strict=True)]
    return Ends(values, ends[0].sizes, torch.cat(numbers) if numbers else None)
