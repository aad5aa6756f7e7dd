"""Every op of ``schema.def`` in pure PyTorch: the path without a compiler, and what fake and meta tensors run.

All arithmetic is done in the accumulation dtype (float64 for float64, else float32) and rounded once to the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from . import descent, network

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_PRODUCT = 2**18  # elements of the largest product that path_sum writes out
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def path_points(inputs: Tensor, baselines: Tensor, index: Tensor | None, alphas: Tensor) -> Tensor:
    """Rows base + alpha * (input - base), all examples of the first alpha first; see ``fusum.ops.path_points``."""
    _check_rows("inputs", inputs)
    _check_nodes("alphas", alphas, inputs)
    acc = _accumulation(inputs.dtype)
    base = _base_rows(baselines, index, inputs).to(acc)
    change = inputs.to(acc) - base
    nodes, rows = alphas.numel(), inputs.shape[0]
    points = _rows_like(inputs, nodes * rows)
    steps = alphas.to(inputs.device, acc).view(-1, *[1] * inputs.dim())
    torch.addcmul(base, change, steps, out=points.unflatten(0, (nodes, rows)))
    return points


def path_sum(total: Tensor, gradients: Tensor, weights: Tensor) -> None:
    """total[b] += sum over p of weights[p] * gradients[p * B + b], in place."""
    _check_total("total", total)
    _check_rows("gradients", gradients)
    _check_nodes("weights", weights, total)
    nodes, rows = weights.numel(), total.shape[0]
    _check_shape("gradients", gradients, (nodes * rows, *total.shape[1:]), total)
    factors = weights.to(total.device, total.dtype).view(-1, *[1] * total.dim())
    points = gradients.unflatten(0, (nodes, rows))
    # Small points in one product (no matrix product: that follows the caller's choice of float32 precision), large ones
    # one by one without it.
    if gradients.numel() <= _PRODUCT:
        total.add_((points * factors).sum(0))
        return
    for factor, point in zip(factors.unbind(0), points.unbind(0), strict=True):
        total.addcmul_(point.to(total.dtype), factor)


def times_change(gradients: Tensor, inputs: Tensor, baselines: Tensor, index: Tensor | None) -> Tensor:
    """gradients * (inputs - baselines) in the dtype of the gradients."""
    _check_rows("inputs", inputs)
    acc = _accumulation(inputs.dtype)
    _check_shape("gradients", gradients, tuple(inputs.shape), inputs)
    _check_dtype("gradients", gradients, inputs.dtype, acc)
    change = inputs.to(acc) - _base_rows(baselines, index, inputs).to(acc)
    return torch.mul(change, gradients, out=_rows_like(gradients, gradients.shape[0]))


def random_points(inputs: Tensor, baselines: Tensor, index: Tensor | None, coefficients: Tensor) -> Tensor:
    """Rows c * input + (1 - c) * base, with one coefficient c a row."""
    _check_rows("inputs", inputs)
    _check_shape("coefficients", coefficients, (inputs.shape[0],), inputs)
    _check_dtype("coefficients", coefficients, inputs.dtype, torch.float64)
    acc = _accumulation(inputs.dtype)
    share = coefficients.to(acc).view(-1, *[1] * (inputs.dim() - 1))
    rest = _base_rows(baselines, index, inputs).to(acc) * (1 - share)
    return torch.add(inputs.to(acc) * share, rest, out=_rows_like(inputs, inputs.shape[0]))


def noisy_copies(inputs: Tensor, noise: Tensor, stdev: float, samples: int, start: int) -> Tensor:
    """Row r is inputs[(start + r) // samples] + stdev * noise[r]."""
    _check_rows("inputs", inputs)
    _check_shape("noise", noise, (noise.shape[0] if noise.dim() else 1, *inputs.shape[1:]), inputs)
    _check_dtype("noise", noise, inputs.dtype, torch.float32)
    acc = _accumulation(inputs.dtype)
    example = _example_of_row(noise, samples, start, inputs.shape[0])
    copies = _rows_like(inputs, noise.shape[0])
    return torch.add(noise.to(acc) * stdev, inputs.index_select(0, example), out=copies)


def moments(total: Tensor, squares: Tensor | None, values: Tensor, samples: int, start: int) -> None:
    """total[(start + r) // samples] += values[r], and its square into squares, in place and in the order of r."""
    _check_total("total", total)
    _check_rows("values", values)
    _check_shape("values", values, (values.shape[0], *total.shape[1:]), total)
    example = _example_of_row(values, samples, start, total.shape[0])
    values = values.to(total.dtype)
    total.index_add_(0, example, values)
    if squares is not None:
        _check_shape("squares", squares, tuple(total.shape), total)
        _check_dtype("squares", squares, total.dtype)
        squares.index_add_(0, example, values * values)


def rescale(
    gradients: Tensor,
    x: Tensor,
    x_ref: Tensor,
    y: Tensor | None,
    y_ref: Tensor | None,
    slope: Tensor | None,
    eps: float,
) -> Tensor:
    """gradients * (y - y_ref) / (x - x_ref), or gradients * slope where x and x_ref agree, in the gradients' dtype."""
    _check_rescale(gradients, x, x_ref, {"y": y, "y_ref": y_ref, "slope": slope}, eps)
    acc = torch.promote_types(_accumulation(x.dtype), _accumulation(gradients.dtype))
    at, ref = x.to(acc), x_ref.to(acc)
    if y is None or y_ref is None or slope is None:
        rate, rise = (at > 0).to(acc), at.clamp_min(0) - ref.clamp_min(0)
    else:
        rate, rise = slope.to(acc), y.to(acc) - y_ref.to(acc)
    change = at - ref
    bound = torch.maximum(at.abs(), ref.abs()).mul_(4 * torch.finfo(x.dtype).eps).clamp_min_(eps)
    near = (at == ref) | (change.abs() <= bound)  # equal infinities have no difference
    multiplier = torch.where(near, rate, rise / change)
    return torch.mul(gradients.to(acc), multiplier, out=torch.empty_like(gradients))


def coalition_rows(
    inputs: Tensor,
    baselines: Tensor,
    index: Tensor | None,
    features: Tensor,
    coalitions: Tensor,
    which: Tensor,
    examples: Tensor,
) -> Tensor:
    """Row r is inputs[examples[r]] where coalitions[which[r]] has the element's feature, else its baseline."""
    _check_coalitions(inputs, features, coalitions, which, examples)
    if index is None and baselines.dim() > 0 and baselines.shape[0] != 1:
        _check_baselines(baselines, None, inputs, inputs.shape[0])
        index = examples
    base = _base_rows(baselines, index, inputs, examples.shape[0])
    members = coalitions.index_select(0, which)
    if features.shape[0] == 1:
        chosen = members.index_select(1, features.flatten())
    else:
        chosen = members.gather(1, features.index_select(0, examples).unsqueeze(-1).flatten(1).long())
    rows = _rows_like(inputs, examples.shape[0])
    return torch.where(chosen.view(rows.shape), inputs.index_select(0, examples), base, out=rows)


def draw_coalitions(probabilities: Tensor, count: int) -> Tensor:
    """A size, and as many features as have the largest of M normal numbers, count times over."""
    _check_probabilities(probabilities, count)
    features = probabilities.shape[0]
    coalitions = torch.empty(count, features, dtype=torch.bool, device=probabilities.device)
    if coalitions.is_meta:
        return coalitions
    weights = probabilities / probabilities.sum(-1, keepdim=True)  # as torch.distributions.Categorical does
    for coalition in coalitions:
        size = int(torch.multinomial(weights, 1, True))
        values = torch.randn(features, dtype=weights.dtype)
        torch.gt(values, values.kthvalue(features - size).values, out=coalition)
    return coalitions


def lasso(
    rows: Tensor, values: Tensor, weights: Tensor, alpha: float, tol: float, max_iter: int
) -> tuple[Tensor, Tensor]:
    """The coefficients of the Lasso of each example, and whether it met scikit-learn's stopping rule."""
    _check_lasso(rows, values, weights, alpha)
    found = values.new_empty(rows.shape[0], rows.shape[2])
    converged = values.new_empty(rows.shape[0], dtype=torch.bool)
    if not rows.is_meta:
        x, y, w = (each.detach().double().cpu().numpy() for each in (rows, values, weights))
        results = descent.fit(x, y, w, alpha, tol, max_iter)
        found.copy_(torch.from_numpy(results[0]))
        converged.copy_(torch.from_numpy(results[1]))
    return found, converged


def perceptron(
    points: Tensor,
    references: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activations: Sequence[str],
    columns: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients or multipliers of one output at each point, the outputs, and those of the references."""
    layers = _layers(points, weights, biases, activations)
    rows = points.shape[0]
    if references is not None:
        _check_dtype("references", references, points.dtype)
        if references.dim() != 2 or references.shape[0] not in (1, rows) or references.shape[1] != points.shape[1]:
            _fail("references", references, f"a row, or one for each of {list(points.shape)}")
    _check_index("columns", columns, 1 if columns.shape == (1,) else rows, weights[-1].shape[0], points)
    return network.run(points, references, layers, columns, eps, rescale)


def perceptron_outputs(
    points: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activations: Sequence[str]
) -> Tensor:
    """What the last layer returns."""
    return _layers(points, weights, biases, activations).forward(points)[-1][1].clone()


_ALL = (
    path_points,
    path_sum,
    times_change,
    random_points,
    noisy_copies,
    moments,
    rescale,
    coalition_rows,
    draw_coalitions,
    lasso,
    perceptron,
    perceptron_outputs,
)
BODIES: dict[str, Callable[..., Any]] = {body.__name__: body for body in _ALL}


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows_like(leader: Tensor, count: int) -> Tensor:
    """A new tensor of count rows; channels last where leader is that and not plainly dense."""
    channels_last = _CHANNELS_LAST.get(leader.dim(), torch.contiguous_format)
    follow = not leader.is_contiguous() and leader.is_contiguous(memory_format=channels_last)
    memory_format = channels_last if follow else torch.contiguous_format
    shape = (count, *leader.shape[1:])
    return torch.empty(shape, dtype=leader.dtype, device=leader.device, memory_format=memory_format)


def _base_rows(baselines: Tensor, index: Tensor | None, inputs: Tensor, rows: int | None = None) -> Tensor:
    """The baselines operand as a tensor that broadcasts against rows like inputs, as many as inputs has or as said."""
    _check_baselines(baselines, index, inputs, inputs.shape[0] if rows is None else rows)
    return baselines if index is None else baselines.index_select(0, index)


def _check_baselines(baselines: Tensor, index: Tensor | None, inputs: Tensor, rows: int) -> None:
    _check_dtype("baselines", baselines, inputs.dtype)
    _check_device("baselines", baselines, inputs)
    if baselines.dim() == 0:
        if index is not None:
            _fail("index", index, "None with a scalar baseline")
        return
    if baselines.shape[1:] != inputs.shape[1:]:
        _fail("baselines", baselines, f"a scalar or rows of shape {list(inputs.shape[1:])}")
    if index is not None:
        _check_index("index", index, rows, baselines.shape[0], inputs)
    elif baselines.shape[0] not in (1, rows):
        _fail("baselines", baselines, f"1 row or {rows} rows where index is None")


def _check_index(name: str, index: Tensor, rows: int, count: int, leader: Tensor) -> None:
    """int64 [rows] with values below count."""
    _check_shape(name, index, (rows,), leader)
    _check_dtype(name, index, torch.int64)
    _check_range(name, index, count)


def _check_range(name: str, index: Tensor, count: int) -> None:
    """Values from 0 to count - 1; index_select looks, as it passes over fake tensors, which have no values."""
    try:
        torch.empty(count, dtype=torch.bool, device=index.device).index_select(0, index.flatten())
    except (IndexError, RuntimeError):
        value = int(index[(index < 0) | (index >= count)][0])
        raise IndexError(f"{name}: got {value}; expected values from 0 to {count - 1}") from None


def _check_coalitions(inputs: Tensor, features: Tensor, coalitions: Tensor, which: Tensor, examples: Tensor) -> None:
    _check_dims("inputs", inputs)
    _check_dtype("features", features, torch.int32)
    count = 1 if features.dim() and features.shape[0] == 1 else inputs.shape[0]
    _check_shape("features", features, (count, *inputs.shape[1:]), inputs)
    _check_dtype("coalitions", coalitions, torch.bool)
    _check_device("coalitions", coalitions, inputs)
    if coalitions.dim() != 2:
        _fail("coalitions", coalitions, "two dimensions")
    _check_range("features", features, coalitions.shape[1])
    rows = examples.numel()
    _check_index("examples", examples, rows, inputs.shape[0], inputs)
    _check_index("which", which, rows, coalitions.shape[0], inputs)


def _example_of_row(rows: Tensor, samples: int, start: int, examples: int) -> Tensor:
    if samples < 1:
        raise ArgumentError(f"samples: got {samples}; expected at least 1")
    count = rows.shape[0]
    if start < 0 or start + count > examples * samples:
        raise ArgumentError(
            f"start: got {start} with {count} rows; expected rows within {examples} examples of {samples} samples"
        )
    return torch.arange(start, start + count, device=rows.device).div_(samples, rounding_mode="floor")


def _check_rescale(gradients: Tensor, x: Tensor, x_ref: Tensor, values: dict[str, Tensor | None], eps: float) -> None:
    if not eps >= 0:
        raise ArgumentError(f"eps: got {eps}; expected at least 0")
    _check_dtype("gradients", gradients, *_FLOATS)
    _check_dtype("x", x, *_FLOATS)
    _check_spread("x", x, gradients, x)
    _check_spread("x_ref", x_ref, gradients, x)
    relu = values["y"] is None
    for name, value in values.items():
        if value is None and not relu:
            raise ArgumentError(f"{name}: got None; expected a tensor where y is one")
        if value is not None and relu:
            _fail(name, value, "None where y is None")
        if value is not None:
            _check_spread(name, value, gradients, x)


def _check_probabilities(probabilities: Tensor, count: int) -> None:
    if count < 0:
        raise ArgumentError(f"count: got {count}; expected at least 0")
    if probabilities.dim() != 1:
        _fail("probabilities", probabilities, "one dimension")
    _check_dtype("probabilities", probabilities, torch.float32, torch.float64)
    if probabilities.is_meta:
        return
    if not probabilities.is_cpu:
        _fail("probabilities", probabilities, "a tensor on the cpu")
    if not (0 < float(probabilities.sum()) < math.inf and bool((probabilities >= 0).all())):
        _fail("probabilities", probabilities, "numbers of at least 0 with a sum above 0")


def _check_lasso(rows: Tensor, values: Tensor, weights: Tensor, alpha: float) -> None:
    if rows.dim() != 3 or rows.is_complex():
        _fail("rows", rows, "real numbers of three dimensions")
    for name, tensor in (("values", values), ("weights", weights)):
        _check_shape(name, tensor, tuple(rows.shape[:2]), rows)
        _check_dtype(name, tensor, torch.float64)
    if not alpha > 0:
        raise ArgumentError(f"alpha: got {alpha}; expected above 0")


def _check_spread(name: str, tensor: Tensor, gradients: Tensor, x: Tensor) -> None:
    """Of x's dtype, and of a shape that broadcasts to that of gradients."""
    _check_dtype(name, tensor, x.dtype)
    _check_device(name, tensor, gradients)
    shape = gradients.shape
    ends = zip(reversed(tensor.shape), reversed(shape), strict=False)
    if tensor.dim() > gradients.dim() or any(size not in (1, whole) for size, whole in ends):
        _fail(name, tensor, f"a shape that broadcasts to {list(shape)}")


def _check_dims(name: str, tensor: Tensor) -> None:
    if tensor.dim() == 0:
        _fail(name, tensor, "at least one dimension")


def _check_rows(name: str, tensor: Tensor) -> None:
    _check_dims(name, tensor)
    _check_dtype(name, tensor, *_FLOATS)


def _check_total(name: str, total: Tensor) -> None:
    _check_rows(name, total)
    _check_dtype(name, total, torch.float64, torch.float32)


def _check_nodes(name: str, nodes: Tensor, leader: Tensor) -> None:
    if nodes.dim() != 1:
        _fail(name, nodes, "one dimension")
    _check_dtype(name, nodes, torch.float64)
    if nodes.device.type != "cpu":
        _check_device(name, nodes, leader)


def _layers(
    points: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activations: Sequence[str]
) -> network.Layers:
    _check_dtype("points", points, torch.float64, torch.float32)
    return network.checked(points, weights, biases, activations, _fail)


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], leader: Tensor) -> None:
    if tuple(tensor.shape) != shape:
        _fail(name, tensor, f"shape {list(shape)}")
    _check_device(name, tensor, leader)


def _check_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    if tensor.dtype not in allowed:
        _fail(name, tensor, " or ".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(allowed)))


def _check_device(name: str, tensor: Tensor, leader: Tensor) -> None:
    if tensor.device != leader.device:
        _fail(name, tensor, f"a tensor on {leader.device}")


def _fail(name: str, tensor: Tensor, expected: str) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    raise ArgumentError(f"{name}: got {dtype} {list(tensor.shape)} on {tensor.device}; expected {expected}")
