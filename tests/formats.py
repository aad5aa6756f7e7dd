"""One model in every format that fusum explains."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from models import Subject, subject

STATIC_BATCH = 4
MOST_ROWS = 64


def _example(source: Subject, rows: int | None = None) -> tuple[Any, ...]:
    """Positional arguments to trace with, cut or filled to rows."""
    args = (*source.tensors, *source.extra)
    if rows is None:
        return args
    return tuple(torch.cat([a] * rows)[:rows] if isinstance(a, Tensor) else a for a in args)


def _scripted(source: Subject) -> Any:
    return torch.jit.script(source.module)


def _optimised(source: Subject) -> Any:
    """A ScriptModule that has run with gradients: its executor keeps a plan that knows nothing of a rule."""
    module = _scripted(source)
    for _ in range(3):
        leaves = [x.detach().clone().requires_grad_() for x in source.tensors]
        torch.autograd.grad(module(*leaves, *source.extra).sum(), leaves)
    return module


class Around(nn.Module):
    """A module of Python that calls another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        return self.inner(*args)


def _traced(source: Subject) -> Any:
    return torch.jit.trace(source.module, _example(source))


def _loaded(source: Subject) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.pt")
        _traced(source).save(path)
        return torch.jit.load(path)


def _exported(source: Subject, batch: Any, rows: int | None = None) -> ExportedProgram:
    args = _example(source, rows)
    shapes = None if batch is None else tuple({0: batch} for _ in args)
    return torch.export.export(source.module, args, dynamic_shapes=shapes)


def _exported_loaded(source: Subject) -> ExportedProgram:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.pt2")
        torch.export.save(_exported(source, Dim("batch", min=2, max=MOST_ROWS)), path)
        return torch.export.load(path)


FORMATS: dict[str, Callable[[Subject], Any]] = {
    "eager": lambda source: source.module,
    "function": lambda source: lambda *args: source.module(*args),
    "data_parallel": lambda source: nn.DataParallel(source.module),
    "scripted": _scripted,
    "optimised": _optimised,
    "around_optimised": lambda source: Around(_optimised(source)),
    "traced": _traced,
    "loaded": _loaded,
    "frozen": lambda source: torch.jit.freeze(_scripted(source)),
    "fx_traced": lambda source: torch.fx.symbolic_trace(source.module),
    "exported_dynamic": lambda source: _exported(source, Dim.DYNAMIC).module(),
    "exported_bounded": lambda source: _exported(source, Dim("batch", min=2, max=MOST_ROWS)).module(),
    "exported_static": lambda source: _exported(source, None, STATIC_BATCH).module(),
    "exported_static_program": lambda source: _exported(source, None, STATIC_BATCH),
    "exported_loaded_program": _exported_loaded,
    "exported_loaded_module": lambda source: _exported_loaded(source).module(),
    "compiled": lambda source: torch.compile(source.module, backend="eager"),
}


@cache
def converted(model: str, form: str) -> Any:
    """The model of this name in this format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FORMATS[form](subject(model))
