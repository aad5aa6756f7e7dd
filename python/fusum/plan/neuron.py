"""Which number of what a layer holds is explained."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index as as_int
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, TargetError
from .spec import Layer, Neuron

_EXPECTED = "expected an integer, a tuple of integers and slices, or a function"


def neuron(layer: Layer, selector: Any, conducts: bool = False) -> Neuron:
    """A checked Neuron."""
    if isinstance(layer.layers, list):
        raise ArgumentTypeError(
            f"layer: got a list of {len(layer.layers)}; expected one layer, of which a neuron is read"
        )
    parts = selector if isinstance(selector, tuple) else (selector,)
    if not callable(selector) and not (parts and all(_is_index(part) for part in parts)):
        raise ArgumentTypeError(f"neuron_selector: got {selector!r} ({type(selector).__name__}); {_EXPECTED}")
    return Neuron(layer, selector, conducts)


def _is_index(part: Any) -> bool:
    if isinstance(part, (slice, bool)):
        return isinstance(part, slice)
    try:
        as_int(part)
    except TypeError:  # a tensor of several numbers has __index__, too
        return False
    return True


def select(selector: Any, values: Sequence[Tensor], rows: int, may_be_one: bool = False) -> Tensor:
    """One number for each row of a layer's tensors [rows, ...]: [rows]; one for all of them, if it may be: [1]."""
    if callable(selector):
        numbers = selector(tuple(values) if len(values) > 1 else values[0])
    elif len(values) > 1:
        got = f"got {selector!r} for a layer of {len(values)} tensors"
        raise ArgumentError(f"neuron_selector: {got}; expected a function of the tuple of them")
    else:
        numbers = _indexed(selector, values[0])
    if not isinstance(numbers, Tensor) or (numbers.numel() != rows and not (may_be_one and numbers.numel() == 1)):
        got = str(tuple(numbers.shape)) if isinstance(numbers, Tensor) else type(numbers).__name__
        shapes = ", ".join(str(tuple(v.shape)) for v in values)
        expected = f"expected one number for each of {rows} examples"
        raise ArgumentError(f"neuron_selector: picks {got} of a layer of shape {shapes}; {expected}")
    return numbers.flatten()


def _indexed(selector: Any, value: Tensor) -> Tensor:
    parts = selector if isinstance(selector, tuple) else (selector,)
    sizes = value.shape[1:]
    if len(parts) > len(sizes):
        shape = tuple(value.shape)
        raise TargetError(
            f"neuron_selector: got {selector!r} for a layer of shape {shape}; expected at most {len(sizes)} indices"
        )
    for part, size in zip(parts, sizes, strict=False):
        if not isinstance(part, slice) and not -size <= part < size:
            raise TargetError(
                f"neuron_selector: got {part} in {selector!r} for a layer of shape {tuple(value.shape)}; "
                f"expected {-size} to {size - 1}"
            )
    index: Any = (slice(None), *parts)
    picked = value[index]
    if not picked.numel():
        shape = tuple(value.shape)
        raise ArgumentError(f"neuron_selector: got {selector!r}; expected to pick some of a layer of shape {shape}")
    sliced = any(isinstance(part, slice) for part in parts)
    return picked.flatten(1).sum(1) if sliced and picked.dim() > 1 else picked
