"""Whether a model's rows keep apart: tried before a batch is cut that nobody asked to cut, as results would differ."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..plan.arguments import Arguments
from .batch import Batch, Block
from .memory import is_out_of_memory
from .model import Model, keeps_rows_apart
from .prefix import Generators

# Found by trying, by model and by what it may depend on.
_tried: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()
_OTHERS = 3  # rows beside which one is looked at


def is_apart(model: Model, arguments: Arguments) -> bool:
    """Whether the first row's output is the same alone as beside others; the model runs for both, once a form."""
    form = form_of(model, arguments) if keeps_rows_apart(model.key) else None
    if form is None:
        return _try(model, arguments)
    known = _tried.setdefault(model.key, {})
    if form not in known:
        known[form] = _try(model, arguments)
    return known[form]


def form_of(model: Model, arguments: Arguments) -> Any:
    """What the answer may depend on; None where that is too much to remember."""
    form: list[Any] = []
    for a in (*arguments.inputs, *arguments.extra):
        if isinstance(a, Tensor) and a.dim() and a.shape[0] % arguments.examples == 0:
            form.append((a.dtype, a.shape[1:]))
        elif a is None or isinstance(a, (bool, int, float, str)):
            form.append(a)
        else:
            return None
    return model.part, *form


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether numbers differ by no more than the ways to compute them do."""
    if not a.is_floating_point() or a.dtype != b.dtype or b.numel() == 0:
        return torch.equal(a, b)
    eps = max(torch.finfo(kind).eps for kind in _kinds(a))
    tolerance = (eps**0.5 if eps < 1e-4 else 8 * eps) * b.abs().nan_to_num(0.0, 0.0, 0.0).max().item()
    return torch.allclose(a, b, rtol=0.0, atol=tolerance, equal_nan=True)


def _kinds(a: Tensor) -> list[torch.dtype]:
    """The types that an output may have been computed in."""
    found, device = [a.dtype], a.device.type
    if torch.is_autocast_enabled(device):
        found.append(torch.get_autocast_dtype(device))
    elif device == "cuda" and a.dtype is torch.float32:
        found.append(torch.float16)  # TF32 has as many digits
    return found


def _try(model: Model, arguments: Arguments, others: int = _OTHERS) -> bool:
    batch, rows = Batch(arguments, arguments.examples, ()), min(1 + others, arguments.examples)
    generators = Generators()
    try:
        alone, beside = [_output(model, batch.block(0, n)) for n in (1, rows)]
    except Exception as error:
        if not is_out_of_memory(error):
            return False  # a model for so many rows and no others
        return rows <= 2 or _try(model, arguments, others=1)  # if no two fit, one at a time is all there is
    finally:
        generators.restore()
    return beside.shape == (rows, *alone.shape[1:]) and is_close(beside[:1], alone)


def _output(model: Model, block: Block) -> Tensor:
    """The output at rows that the model may write to."""
    inputs = tuple([x if x is None else x.clone() for x in block.inputs])
    with torch.no_grad():
        return model(inputs, block.extra(1), block.examples)
