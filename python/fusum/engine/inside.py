"""Paths between what layers hold: the same call, with those tensors for inputs and the model from there on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..plan.arguments import Arguments, Baseline
from ..plan.spec import Call, Line
from .batch import Batch, Block
from .gradients import Unused
from .model import Model, check_rows, keeps_rows_apart
from .prefix import Prefix
from .probe import Mode, Probe
from .site import Held, Site

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
    assert isinstance(call.plan.points, Line)
    wants_change = job.wants_delta and call.plan.noise is None
    prefix = site.prefix()
    end = _inputs(job, site, wants_change, prefix)
    start = _baselines(job, site, wants_change)
    for x, b in zip(end.values, start.values, strict=True):
        if x.shape[1:] != b.shape[1:]:
            shapes = f"{tuple(b.shape[1:])} at baselines and {tuple(x.shape[1:])} at inputs"
            raise ArgumentError(f"layer: holds rows of shape {shapes}; expected the same")
    explained = [x.is_floating_point() for x in end.values]
    inner = replace(
        arguments,
        inputs=tuple([x if real else None for x, real in zip(end.values, explained, strict=True)]),
        single=False,
        baselines=tuple([Baseline(b) if real else None for b, real in zip(start.values, explained, strict=True)]),
        extra=(*arguments.inputs, *arguments.extra, torch.arange(arguments.examples, device=arguments.device)),
    )
    constants = [None if real else x for x, real in zip(end.values, explained, strict=True)]
    model = site.model.only(From(site, constants, prefix), (site.model.part, "from"))
    points = replace(call.plan.points, inside=False)
    plan = replace(call.plan, points=points, where=None)
    unused = Unused(end.sizes, site.where.may_be_unused)
    noisy = call.plan.noise is not None and job.wants_delta
    change = None if end.numbers is None or start.numbers is None else end.numbers - start.numbers
    return Entered(replace(call, plan=plan, return_convergence_delta=noisy), inner, model, unused, change)


def _inputs(job: Job, site: Site, wants_numbers: bool, prefix: Prefix | None) -> Ends:
    batch = Batch(job.arguments, job.arguments.examples, ())

    def look(block: Block, _: int) -> Ends:
        at, copies, around = block.inputs, 1, None
        if prefix is not None:
            # Of a single example any dimension of 1 may be that of the rows.
            copies = 2 if block.examples == 1 and job.rows != 1 else 1
            at = tuple([x if x is None or copies == 1 else torch.cat([x, x]) for x in at])
            around = partial(prefix.recording, rows=copies * block.examples, examples=block.examples)
        stop = prefix is None and not wants_numbers
        held = site.look(Mode.WATCH, at, block.extra(copies), copies * block.examples, stop, around)
        return _end(job, block, held, wants_numbers)

    with torch.no_grad():
        return _joined([found for _, found in job.planning.pieces(batch, 1, look)])


def _baselines(job: Job, site: Site, wants_numbers: bool) -> Ends:
    """At one row where that stands against every example, and every example has the same target."""
    arguments = job.arguments
    batch = Batch(arguments, arguments.examples, arguments.baselines)
    shared = all(b is None or b.shared for b in arguments.baselines) and not batch.has_travelling_extra()
    if shared and arguments.target.rows is None and keeps_rows_apart(site.model.key):
        batch = Batch(arguments, 1, arguments.baselines)

    def look(block: Block, _: int) -> Ends:
        pairs = zip(block.baselines, arguments.inputs, strict=True)
        at = [None if b is None or x is None else b.like((block.examples, *x.shape[1:])) for b, x in pairs]
        held = site.look(Mode.WATCH, at, block.extra(1), block.examples, not wants_numbers)
        return _end(job, block, held, wants_numbers)

    with torch.no_grad():
        return _joined([found for _, found in job.planning.pieces(batch, 1, look)])


def _end(job: Job, block: Block, held: Held, wants_numbers: bool) -> Ends:
    """Of a block's examples, which are the first of held's rows."""
    values = [v[: block.examples] for v in held.values]
    if not wants_numbers:
        return Ends(values, held.sizes, None)
    check_rows(held.out, held.rows)
    out = held.out[: block.examples]
    numbers = job.arguments.target.pick(out, block.target_rows(1, out.device))
    return Ends(values, held.sizes, numbers.reshape(block.examples))


def _joined(ends: list[Ends]) -> Ends:
    if len(ends) == 1:
        return ends[0]
    numbers = [end.numbers for end in ends if end.numbers is not None]
    values = [torch.cat(column) for column in zip(*(end.values for end in ends), strict=True)]
    return Ends(values, ends[0].sizes, torch.cat(numbers) if numbers else None)
