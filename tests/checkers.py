"""The checks that the tests share; test_checkers.py shows that each can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

import fusum
from fusum.settings import current


def flat(result: Any) -> tuple[Tensor | None, ...]:
    """The tensors of a result, (scores, delta) or scores alone, in order."""
    if isinstance(result, tuple):
        return tuple(x for item in result for x in flat(item))
    return (result,)


def assert_same(found: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """The same form, dtypes and shapes, and values to rounding; NaN equals NaN."""
    assert isinstance(found, tuple) == isinstance(expected, tuple), "one is a tuple and the other is not"
    ours, theirs = flat(found), flat(expected)
    assert len(ours) == len(theirs), f"{len(ours)} tensors for {len(theirs)}"
    for x, y in zip(ours, theirs, strict=True):
        assert (x is None) == (y is None), "None in place of a tensor"
        if x is not None and y is not None:
            torch.testing.assert_close(x.detach(), y.detach(), rtol=rtol, atol=atol, equal_nan=True)


def assert_identical(found: Any, expected: Any) -> None:
    """The same to the last bit."""
    assert_same(found, expected, rtol=0, atol=0)


def assert_complete(scores: Any, change: Tensor, atol: float) -> None:
    """Each example's scores sum to the change of its output."""
    sums = sum(s.flatten(1).sum(1) if s.dim() > 1 else s for s in flat(scores) if s is not None)
    torch.testing.assert_close(sums, change, rtol=0, atol=atol)


def assert_no_graph(result: Any) -> None:
    """Nothing of the result holds an autograd graph."""
    for x in flat(result):
        assert x is None or (not x.requires_grad and x.grad_fn is None), "the result carries a graph"


def assert_nan_exactly_at(scores: Tensor, inputs: Tensor) -> None:
    """Wherever the input is NaN so is its score, and other examples have none."""
    missing = inputs.isnan()
    assert missing.any(), "the input has no NaN"
    assert scores[missing].isnan().all(), "a NaN input has got a number for its score"
    assert not scores[~missing.flatten(1).any(1)].isnan().any(), "NaN has spread to another example"


def assert_rows_within(rows: list[int], cap: int) -> None:
    """No call saw more than cap rows, and there was a call."""
    assert rows, "the model has not been called"
    assert max(rows) <= cap, f"a call saw {max(rows)} rows; at most {cap} were allowed"


def assert_refused(
    call: Callable[[], Any], names: str, rows: list[int], kind: type[Exception] = fusum.ArgumentError
) -> None:
    """The call raises kind, an ArgumentError whose message names the argument first, and has not run the model."""
    before = len(rows)
    error = _raised(call)
    assert error is not None, "nothing was raised"
    for wanted in (kind, fusum.ArgumentError, AssertionError):
        assert isinstance(error, wanted), f"{type(error).__name__} is not {wanted.__name__}: {error}"
    text = str(error)
    assert text.startswith(names), f"the message does not begin with {names!r}: {text}"
    assert "got" in text, f"does not say what came: {text}"
    assert "expected" in text, f"does not say what was expected: {text}"
    assert len(rows) == before, "the model was run first"


def _raised(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _hooks(module: nn.Module) -> list[int]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(m, name)) for m in module.modules() for name in names]


def _state(module: nn.Module, tensors: tuple[Tensor, ...]) -> list[Any]:
    """All that a call must leave as it was, but for values of tensors."""
    held = [*tensors, *module.parameters(), *module.buffers()]
    return [
        [x.requires_grad for x in held],
        [id(x.grad) for x in held],
        [None if x.grad is None else x.grad._version for x in held],
        _hooks(module),
        [m.training for m in module.modules()],
        [sorted(vars(m)) for m in module.modules()],
        current(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._get_graph_executor_optimize(),
    ]


@contextmanager
def untouched(module: nn.Module, *tensors: Tensor) -> Iterator[None]:
    """Nothing may change inside for good: the tensors, the module, gradients and flags, hooks, settings, modes."""
    held = [*tensors, *module.state_dict().values()]
    values, state = [deepcopy(x.detach()) for x in held], _state(module, tensors)
    try:
        yield
    finally:
        for x, value in zip(held, values, strict=True):
            assert torch.equal(x.detach().nan_to_num(), value.nan_to_num()), "a tensor's values have changed"
        assert _state(module, tensors) == state, "flags, gradients, hooks, attributes, settings or modes have changed"
