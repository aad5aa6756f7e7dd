"""Windows that slide over inputs: their shapes and strides, checked."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError, ArgumentTypeError
from .arguments import check_inputs
from .spec import Slide


def slide(shapes: Any, strides: Any, inputs: Any) -> Slide:
    """A checked Slide.

    Arguments:
        shapes: of the window, without the examples, or a tuple of one for each input.
        strides: an int, one for each dimension, or a tuple of those for each input; None: 1.
        inputs: a tensor [examples, ...] or a tuple of those.

    Raises:
        ArgumentError: sizes below 1, windows larger than inputs, strides beyond windows, or too few of them.
    """
    items = inputs if isinstance(inputs, tuple) else (inputs,)
    check_inputs(items, any_type=True, ragged=True)
    sizes = [tuple(x.shape[1:]) for x in items]
    if not isinstance(shapes, tuple):
        raise ArgumentTypeError(f"sliding_window_shapes: got {shapes!r}; expected a tuple of integers, or one an input")
    windows = shapes if shapes and all(isinstance(w, tuple) for w in shapes) else (shapes,)
    if strides is None:
        strides = (1,) * len(items)
    if len(items) == 1 and not (isinstance(strides, tuple) and len(strides) == 1):
        strides = (strides,)
    for name, given in (("sliding_window_shapes", windows), ("strides", strides)):
        if not isinstance(given, tuple) or len(given) != len(items):
            raise ArgumentError(f"{name}: got {given!r}; expected one for each of {len(items)} inputs")
    steps = [(s,) * len(size) if not isinstance(s, tuple) else s for s, size in zip(strides, sizes, strict=True)]
    for window, stride, size in zip(windows, steps, sizes, strict=True):
        _check("sliding_window_shapes", window, size)
        _check("strides", stride, size)
        if any(w > n for w, n in zip(window, size, strict=True)):
            raise ArgumentError(f"sliding_window_shapes: got {window} for inputs of {size}; expected no more")
        if any(s > w and w < n for s, w, n in zip(stride, window, size, strict=True)):
            raise ArgumentError(f"strides: got {stride} for windows of {window}; expected no more")
    return Slide(tuple(windows), tuple(steps))


def _check(name: str, numbers: tuple[Any, ...], size: tuple[int, ...]) -> None:
    if any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
        raise ArgumentTypeError(f"{name}: got {numbers}; expected integers")
    if len(numbers) != len(size) or any(n < 1 for n in numbers):
        raise ArgumentError(f"{name}: got {numbers} for inputs of {size}; expected {len(size)} numbers of at least 1")
