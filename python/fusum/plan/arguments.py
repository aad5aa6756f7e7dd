"""The only normaliser: whatever a user passes becomes one checked form here, before the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from ..settings import positive_int
from .spec import PERTURBING, Call, Cam, Line, Once, Pair, Plan, RandomLine
from .target import Target


@dataclass(slots=True)
class Baseline:
    """A baselines operand: value is 0-dim, [1, ...] or [N, ...]; with index, row r starts at value[index[r]]."""

    value: Tensor
    index: Tensor | None = None

    @property
    def shared(self) -> bool:
        """Whether every example starts from the same values."""
        return self.value.dim() == 0 or self.value.shape[0] == 1

    def rows(self, start: int, stop: int) -> Baseline:
        """The operand for rows start to stop."""
        if self.shared:
            return self
        if self.index is not None:
            return Baseline(self.value, self.index[start:stop])
        return self if stop - start == self.value.shape[0] else Baseline(self.value[start:stop])

    def drawn(self, index: Tensor) -> Baseline:
        """The operand whose row r starts at value[index[r]]."""
        return self if self.shared else Baseline(self.value, index)

    def copies(self, samples: int) -> Baseline:
        """The operand for samples copies of every row, copies of one row side by side."""
        if self.shared or samples == 1:
            return self
        return Baseline(self.value, torch.arange(len(self.value) * samples, device=self.value.device) // samples)

    def like_rows(self) -> Tensor:
        """The starting points themselves, 0-dim, [1, ...] or [rows, ...]."""
        return self.value if self.index is None else self.value[self.index]

    def like(self, shape: tuple[int, ...]) -> Tensor:
        """The starting points themselves, in this shape; what a model may write to is never shared between rows."""
        rows = self.like_rows()
        return rows if rows.shape == shape else rows.expand(shape).clone(memory_format=torch.contiguous_format)


@dataclass(slots=True)
class Arguments:
    """One call's arguments, checked: tensors detached, a baseline for each input, extra a tuple."""

    inputs: tuple[Tensor | None, ...]
    single: bool
    baselines: tuple[Baseline | None, ...]
    target: Target
    extra: tuple[Any, ...]
    examples: int
    device: torch.device
    max_rows: int | None


def normalise(call: Call) -> Arguments:
    """Check a call's arguments and bring them into one form; raises ArgumentError naming the argument at fault."""
    single = not isinstance(call.inputs, tuple)
    inputs = (call.inputs,) if single else call.inputs
    noise = call.plan.noise
    perturbing = isinstance(call.plan.points, PERTURBING)
    examples = check_inputs(inputs, any_type=_may_be_integers(call.plan), ragged=perturbing)
    baselines: tuple[Baseline | None, ...] = ()
    if perturbing:
        inputs = promoted(inputs, call.baselines)
    if call.has_baselines:
        points = call.plan.points
        many = isinstance(points, Pair) and points.many
        baselines = as_baselines(call.baselines, inputs, many or (noise is not None and noise.draw_baselines))
    cap = call.internal_batch_size
    return Arguments(
        tuple([_plain(x) for x in inputs]),
        single,
        baselines,
        Target.of(call.target, examples),
        tuple([_plain(a) for a in as_extra(call.additional_forward_args)]),
        examples,
        next(x for x in inputs if x is not None).device,
        None if cap is None else positive_int("internal_batch_size", cap),
    )


def _may_be_integers(plan: Plan) -> bool:
    """Whether no gradient of the inputs is taken, and nothing between them and baselines is evaluated."""
    points = plan.points
    if isinstance(points, PERTURBING):
        return True
    if plan.where is None:
        return plan.rule.function is not None and isinstance(points, Once)
    inside = isinstance(points, (Line, RandomLine)) and points.inside
    between = isinstance(points, (Line, RandomLine)) and not inside
    return not between and (plan.noise is None or inside) and not (isinstance(plan.fold, Cam) and plan.fold.guided)


def promoted(inputs: tuple[Any, ...], baselines: Any) -> tuple[Any, ...]:
    """Integers become floating point where their baselines are: a mixture of both is."""
    items = baselines if isinstance(baselines, tuple) else (baselines,)
    if len(items) != len(inputs):
        return inputs
    return tuple([_promote(x, b) for x, b in zip(inputs, items, strict=True)])


def _promote(x: Any, baseline: Any) -> Any:
    if x is None or x.is_floating_point() or x.is_complex():
        return x
    if isinstance(baseline, Tensor) and baseline.is_floating_point():
        return x.to(baseline.dtype)
    broken = isinstance(baseline, Real) and not float(baseline).is_integer()
    return x.to(torch.get_default_dtype()) if broken else x


def check_inputs(inputs: tuple[Any, ...], any_type: bool = False, ragged: bool = False) -> int:
    """The number of examples, after checking that every input is a tensor of as many, of a type that has gradients.

    ragged: only the first input need have a row for each example.
    """
    examples = 0
    for i, x in enumerate(inputs):
        if x is None and len(inputs) > 1:
            continue
        if not isinstance(x, Tensor):
            got = type(x).__name__
            raise ArgumentTypeError(f"{_at('inputs', i, inputs)}: got {got}; expected a tensor or a tuple of tensors")
        if x.layout != torch.strided:
            raise ArgumentTypeError(f"{_at('inputs', i, inputs)}: got a tensor of {x.layout}; expected a dense one")
        rows = x.shape[0] if x.dim() else 0
        if ragged and examples and x.dim():
            continue
        if rows == 0:
            kind = "an empty batch of" if x.dim() else "no dimensions, that is,"
            expected = "expected at least one example along the first dimension"
            raise ArgumentError(f"{_at('inputs', i, inputs)}: got {kind} shape {tuple(x.shape)}; {expected}")
        if rows != (examples or rows):
            got = f"got {rows} examples; expected {examples}, as in the inputs before it"
            raise ArgumentError(f"{_at('inputs', i, inputs)}: {got}")
        if not (any_type or x.is_floating_point()):
            why = "as gradients are taken (pass token ids as additional_forward_args, or explain their embeddings)"
            raise ArgumentTypeError(f"{_at('inputs', i, inputs)}: got {x.dtype}; expected floating point, {why}")
        examples = rows
    if not examples:
        raise ArgumentError("inputs: got no tensor; expected at least one")
    return examples


def as_extra(extra: Any) -> tuple[Any, ...]:
    """additional_forward_args as a tuple."""
    if extra is None:
        return ()
    return extra if isinstance(extra, tuple) else (extra,)


def as_baselines(
    baselines: Any, inputs: tuple[Tensor | None, ...], distribution: bool, name: str = "baselines"
) -> tuple[Baseline | None, ...]:
    """One Baseline an input; zeros where the caller gave none."""
    if baselines is None:
        return tuple([None if x is None else _scalar(0.0, x.dtype, x.device) for x in inputs])
    items = baselines if isinstance(baselines, tuple) else (baselines,)
    if len(items) != len(inputs):
        raise ArgumentError(f"{name}: got {len(items)}; expected one for each of the {len(inputs)} inputs")
    found = []
    for i, x in enumerate(inputs):
        found.append(None if x is None else _baseline(_at(name, i, items), items[i], x, distribution))
    return tuple(found)


def _baseline(name: str, value: Any, x: Tensor, distribution: bool) -> Baseline:
    if isinstance(value, (int, float, Real)):  # Real alone would do, but it is slow to ask
        return _scalar(float(value), x.dtype, x.device)
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name}: got {type(value).__name__}; expected a tensor or a number")
    if value.device != x.device:
        raise ArgumentError(f"{name}: got a tensor on {value.device}; expected it on {x.device}, where its input is")
    value = _plain(value).to(x.dtype)
    if value.dim() == 0 or (
        value.shape[1:] == x.shape[1:] and ((distribution and len(value)) or value.shape[0] in (1, x.shape[0]))
    ):
        return Baseline(value)
    if value.shape[0] == 1 and not distribution and _broadcasts(value, x):
        return Baseline(value.expand(1, *x.shape[1:]))
    rows = "any number of rows" if distribution else f"1 or {x.shape[0]} rows"
    shapes = f"got shape {tuple(value.shape)} for an input of shape {tuple(x.shape)}"
    raise ArgumentError(f"{name}: {shapes}; expected {rows} of shape {tuple(x.shape[1:])}")


def _broadcasts(value: Tensor, x: Tensor) -> bool:
    sizes = zip(reversed(value.shape[1:]), reversed(x.shape[1:]), strict=False)
    return value.dim() <= x.dim() and all(a in (1, b) for a, b in sizes)


@lru_cache(maxsize=256)
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Baseline:
    with torch.inference_mode(False):
        return Baseline(torch.tensor(value, dtype=dtype, device=device))


def _plain(x: Any) -> Any:
    """x without its autograd graph; a copy if it was made in inference mode, as those cannot take part in one."""
    if not isinstance(x, Tensor):
        return x
    if x.is_inference():
        return x.clone()
    return x.detach() if x.requires_grad else x


def _at(name: str, i: int, items: Any) -> str:
    return f"{name}[{i}]" if isinstance(items, tuple) and len(items) > 1 else name
