"""What the baselines left behind at each operator, and how the examples' tensors are paired with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import ArgumentError

_functorch: Any = torch._C._functorch


class Unpairable(Exception):
    """Tensors of examples and of shared baselines that cannot be paired: run a baseline row for every example."""


class Overwritten(Exception):
    """A tensor that the model writes over after an operator took it: keep copies."""


@dataclass(slots=True)
class Entry:
    """One operator of the baselines' forward: its varying tensors, how to evaluate it on them, its constant operand."""

    op: Any
    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]
    call: Any
    constant: Tensor | None


@dataclass(slots=True)
class Tape:
    """Values of ``references`` baseline rows, operator after operator, for ``examples`` rows to be compared with.

    each: baselines of each example, example after example, or 0: a row for each example where there are as many, else
    all rows are for every example. first, count: the baselines that the running backward is for, vmapped at level if
    that is not 0.
    """

    references: int
    each: int = 0
    examples: int = 0
    entries: list[Entry] = field(default_factory=list)
    at: int = 0
    first: int = 0
    count: int = 1
    level: int = 0
    copies: bool = False
    named: set[str] = field(default_factory=set)  # operators that a warning has named
    native: Any = None  # the compiled rules' part

    def __post_init__(self) -> None:
        if ops.compiled is not None:
            self.native = ops.compiled.Tape(self.references)
            self.native.each, self.native.copies = self.each, self.copies

    def record(self, op: Any, tensors: tuple[Tensor, ...], call: Any, constant: Tensor | None) -> None:
        """Keep an operator's tensors."""
        kept = tuple([t.detach().clone() if self.copies else t.detach() for t in tensors])
        self.entries.append(Entry(op, kept, tuple([t._version for t in kept]), call, constant))

    def start(self, examples: int) -> None:
        """Before a forward of examples rows."""
        self.examples, self.at = examples, 0
        if self.native is not None:
            self.native.start(examples)

    def turn(self, first: int, count: int) -> None:
        """Before a backward for count baselines from first on."""
        self.first, self.count = first, count
        if self.native is not None:
            self.native.first, self.native.count = first, count

    def vmapped(self, level: int) -> None:
        """Inside that backward."""
        self.level = level
        if self.native is not None:
            self.native.level = level

    def next(self, op: Any, tensors: tuple[Tensor, ...]) -> Entry:
        """The entry for the operator that the examples have reached, its tensors checked against theirs."""
        entry = self.entries[self.at] if self.at < len(self.entries) else None
        if entry is None or entry.op is not op or len(entry.tensors) != len(tensors):
            raise self._elsewhere(op, "another operator" if entry else "no operator")
        self.at += 1
        for x, ref, version in zip(tensors, entry.tensors, entry.versions, strict=True):
            if ref._version != version:
                raise Overwritten
            self._check(op, x.shape, ref.shape)
        return entry

    def finish(self) -> None:
        """After the examples' forward."""
        if self.at != len(self.entries):
            raise self._elsewhere(self.entries[self.at].op, "no operator")
        if self.native is not None and not self.native.finished:
            raise self._elsewhere("relu", "no operator")

    def failure(self) -> Exception | None:
        """Why the compiled part stopped the forward, if it did."""
        if self.native is None or not self.native.failure:
            return None
        if self.native.overwritten:
            return Overwritten()
        return Unpairable() if self.native.unpairable else ArgumentError(self.native.failure)

    @property
    def together(self) -> bool:
        """Whether row b of the baselines is for row b of the examples."""
        return not self.each and self.references == self.examples

    def _check(self, op: Any, x: torch.Size, ref: torch.Size) -> None:
        if x == ref:
            return
        differ = [(a, b) for a, b in zip(x, ref, strict=False) if a != b]
        if len(x) != len(ref) or self.together or differ != [(self.examples, self.references)]:
            raise self._elsewhere(op, f"a tensor of shape {tuple(ref)}, not {tuple(x)},")

    def _elsewhere(self, op: Any, found: str) -> Exception:
        """Only row by row is it told that the two differ by more than their rows."""
        if not self.together:
            return Unpairable()
        return ArgumentError(
            f"forward_func: took another way for baselines than for inputs: {found} where {op} was; expected the same "
            "operators on tensors of the same shape"
        )

    def pair(self, ref: Tensor, x: Tensor) -> Tensor:
        """ref so that it broadcasts against x, and stands for each baseline of a vmapped backward."""
        if self.together or ref.shape == x.shape:
            return ref
        dim = next(i for i, (a, b) in enumerate(zip(x.shape, ref.shape, strict=True)) if a != b)
        if not self.level:
            return ref.narrow(dim, self.first, self.count)
        if self.each:
            rows = ref.unflatten(dim, (self.examples, self.each))
            part = rows.narrow(dim + 1, self.first, self.count).movedim(dim + 1, 0)
        else:
            part = ref.narrow(dim, self.first, self.count).movedim(dim, 0).unsqueeze(dim + 1)
        return _functorch._add_batch_dim(part, 0, self.level)  # type: ignore[no-any-return]


def rescale(
    gradients: Tensor,
    x: Tensor,
    x_ref: Tensor,
    y: Tensor | None,
    y_ref: Tensor | None,
    slope: Tensor | None,
    eps: float,
) -> Tensor:
    """``ops.rescale``, also inside vmap."""
    operands = (gradients, x, x_ref, y, y_ref, slope)
    level = max([_functorch.maybe_get_level(t) for t in operands if t is not None])
    if level < 1:
        return ops.rescale(gradients, x, x_ref, y, y_ref, slope, eps)
    rank = max([t.dim() for t in operands if t is not None])
    bare: list[Any] = [None if t is None else _unwrapped(t, level, rank) for t in operands]
    shape = torch.broadcast_shapes(*[t.shape for t in bare if t is not None])
    out = ops.rescale(bare[0].expand(shape), bare[1], bare[2], bare[3], bare[4], bare[5], eps)
    return _functorch._add_batch_dim(out, 0, level)  # type: ignore[no-any-return]


def _unwrapped(t: Tensor, level: int, rank: int) -> Tensor:
    """t with its hidden dimension, of size 1 where it has none, in front of rank others."""
    hidden = _functorch.maybe_get_level(t) == level
    bare = _functorch._remove_batch_dim(t, level, 1, 0) if hidden else t[None]
    return bare.view(bare.shape[0], *[1] * (rank - t.dim()), *bare.shape[1:]) if t.dim() < rank else bare
