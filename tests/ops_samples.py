"""Samples of every op, and what each op gives by hand: plain sums in float64, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BASELINES = ("scalar", "one row", "expanded row", "rows", "index")


def _strided(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1], -1)[..., 0]


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _channels_last_3d(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


# The shape of the inputs, and how the leading and the other operands lie in memory.
SHAPES: dict[str, tuple[tuple[int, ...], Layout, Layout]] = {
    "1-D": ((5,), Tensor.contiguous, Tensor.contiguous),
    "short rows": ((40, 3), Tensor.contiguous, Tensor.contiguous),
    "long rows": ((2, 1500), Tensor.contiguous, Tensor.contiguous),
    "rows across blocks": ((5, 611), Tensor.contiguous, Tensor.contiguous),
    "16 byte rows": ((3, 4, 16), Tensor.contiguous, Tensor.contiguous),
    "images": ((3, 2, 4, 5), Tensor.contiguous, Tensor.contiguous),
    "channels last": ((3, 2, 4, 5), _channels_last, _channels_last),
    "channels last, others not": ((3, 2, 4, 5), _channels_last, Tensor.contiguous),
    "others channels last": ((3, 2, 4, 5), Tensor.contiguous, _channels_last),
    "channels last 3-D": ((2, 2, 3, 4, 3), _channels_last_3d, _strided),
    "strided": ((4, 6), _strided, _strided),
    "transposed": ((4, 3, 2), _transposed, Tensor.contiguous),
    "expanded": ((4, 6), Tensor.contiguous, _expanded),
    "no rows": ((0, 3), Tensor.contiguous, Tensor.contiguous),
    "empty rows": ((3, 0, 2), Tensor.contiguous, Tensor.contiguous),
}


def _pairs_channels_last(x: Tensor) -> Tensor:
    return _channels_last(x.flatten(0, -4)).view(x.shape)


# The shapes of gradients, of what follows the example, and of what follows the baseline.
BROADCASTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "pairs": ((4, 3, 10), (1, 3, 10), (4, 1, 10)),
    "pairs of 16 bytes": ((4, 3, 16), (1, 3, 16), (4, 1, 16)),
    "pairs across blocks": ((3, 5, 611), (1, 5, 611), (3, 1, 611)),
    "pairs of images": ((4, 3, 2, 5, 6), (1, 3, 2, 5, 6), (4, 1, 2, 5, 6)),
    "pairs of images in channels last": ((4, 3, 2, 5, 6), (1, 3, 2, 5, 6), (4, 1, 2, 5, 6)),
    "fewer dimensions": ((4, 3, 5), (3, 5), (5,)),
    "rows and columns": ((6, 16), (6, 1), (1, 16)),
    "one number": ((6, 7), (), (1, 1)),
    "no dimensions": ((), (), ()),
    "too many dimensions to join": ((2, 3, 2, 3, 2, 3, 2), (1, 3, 1, 3, 1, 3, 1), (2, 1, 2, 1, 2, 1, 2)),
    "no elements": ((0, 3), (1, 3), (3,)),
}


@dataclass(frozen=True)
class Sample:
    """Arguments of one call of an op."""

    op: str
    name: str
    arguments: tuple[Any, ...]

    def on(self, device: str) -> tuple[Any, ...]:
        """The arguments on a device, those that the op changes safe from it."""
        return tuple(_on(x, device) for x in self.arguments)


def _on(x: Any, device: str) -> Any:
    if isinstance(x, list):
        return [_on(item, device) for item in x]
    return twin(x, device) if isinstance(x, Tensor) else x


def twin(x: Tensor, device: str = "cpu") -> Tensor:
    """A copy with the same strides, gaps and repeats."""
    if device == "meta":
        return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=device)
    storage = x.untyped_storage().clone().to(device=torch.device(device))
    return torch.empty(0, dtype=x.dtype, device=device).set_(storage, x.storage_offset(), x.size(), x.stride())


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int, layout: Layout = Tensor.contiguous) -> Tensor:
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return layout(draw.to(dtype))


def _baselines(kind: str, shape: tuple[int, ...], dtype: torch.dtype, layout: Layout) -> tuple[Tensor, Tensor | None]:
    count, row = shape[0], shape[1:]
    if kind == "scalar":
        return torch.tensor(0.75, dtype=dtype), None
    if kind == "one row":
        return normal((1, *row), dtype, 1, layout), None
    if kind == "expanded row":
        return normal((1, *row), dtype, 1).expand(count, *row), None
    if kind == "rows":
        return normal((count, *row), dtype, 1, layout), None
    return normal((7, *row), dtype, 1, layout), torch.arange(count).mul_(3).remainder_(7)


def _cases() -> Iterator[tuple[str, tuple[int, ...], torch.dtype, Layout, Layout]]:
    """Every shape in float32, and every dtype in two of them."""
    for name, (shape, layout, others) in SHAPES.items():
        yield f"{name}, float32", shape, torch.float32, layout, others
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        for name in ("rows across blocks", "16 byte rows"):
            yield f"{name}, {str(dtype)[6:]}", SHAPES[name][0], dtype, Tensor.contiguous, Tensor.contiguous


def _with_baselines() -> Iterator[tuple[str, Tensor, Tensor, Tensor | None, Layout]]:
    for place, (name, shape, dtype, layout, others) in enumerate(_cases()):
        inputs = normal(shape, dtype, 0, layout)
        # Every kind for plain rows; for the rest one after the other, so that each is met in many layouts.
        kinds = BASELINES if name.startswith("rows across") else (BASELINES[place % 5], BASELINES[(place + 2) % 5])
        for kind in kinds:
            yield f"{name}, {kind}", inputs, *_baselines(kind, shape, dtype, others), others


def _path_points() -> Iterator[Sample]:
    alphas = torch.tensor([0.0, 0.125, 0.7, 1.0], dtype=torch.float64)
    for name, inputs, base, index, _ in _with_baselines():
        yield Sample("path_points", name, (inputs, base, index, alphas))
        if "1-D" in name:
            yield Sample("path_points", f"{name}, no alphas", (inputs, base, index, alphas[:0]))
            yield Sample("path_points", f"{name}, strided alphas", (inputs, base, index, alphas[::2]))


def _path_sum() -> Iterator[Sample]:
    weights = torch.tensor([0.5, -1.25, 0.3], dtype=torch.float64)
    for name, shape, dtype, layout, others in _cases():
        total = normal(shape, accumulation(dtype), 2, layout)
        gradients = normal((3 * shape[0], *shape[1:]), dtype, 3, others)
        yield Sample("path_sum", name, (total, gradients, weights))
        if "1-D" in name:
            yield Sample("path_sum", f"{name}, no weights", (total, gradients[:0], weights[:0]))
    for dtype in DTYPES:
        sample = (normal((4, 9), torch.float64, 2), normal((12, 9), dtype, 3), weights)
        yield Sample("path_sum", f"float64 total of {str(dtype)[6:]}", sample)


def _times_change() -> Iterator[Sample]:
    for name, inputs, base, index, layout in _with_baselines():
        shape = tuple(inputs.shape)
        for dtype in dict.fromkeys((inputs.dtype, accumulation(inputs.dtype))):
            gradients = normal(shape, dtype, 4, layout)
            yield Sample("times_change", f"{name}, {str(dtype)[6:]} gradients", (gradients, inputs, base, index))


def _random_points() -> Iterator[Sample]:
    for name, inputs, base, index, _ in _with_baselines():
        for dtype in dict.fromkeys((inputs.dtype, torch.float64)):
            share = torch.rand(len(inputs), generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
            yield Sample("random_points", f"{name}, {str(dtype)[6:]} coefficients", (inputs, base, index, share))


def _ranges(examples: int) -> tuple[tuple[str, int, int], ...]:
    """Parts of examples x 3 samples: their name, start and count."""
    whole = 3 * examples
    return ("whole", 0, whole), ("part", min(2, whole), max(0, whole - 3)), ("none", min(1, whole), 0)


def _noisy_copies() -> Iterator[Sample]:
    for name, shape, dtype, layout, others in _cases():
        inputs = normal(shape, dtype, 0, layout)
        for part, start, count in _ranges(shape[0]):
            for unit in dict.fromkeys((dtype, torch.float32)):
                noise = normal((count, *shape[1:]), unit, 6, others)
                title = f"{name}, {part}, {str(unit)[6:]} noise"
                yield Sample("noisy_copies", title, (inputs, noise, 0.3, 3, start))


def _moments() -> Iterator[Sample]:
    for name, shape, dtype, layout, others in _cases():
        acc = accumulation(dtype)
        for part, start, count in _ranges(shape[0]):
            total, values = normal(shape, acc, 7, layout), normal((count, *shape[1:]), dtype, 8, others)
            squares = normal(shape, acc, 9, others if others is not _expanded else layout)
            yield Sample("moments", f"{name}, {part}", (total, squares, values, 3, start))
            yield Sample("moments", f"{name}, {part}, no squares", (total, None, values, 3, start))


def _often_whole(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    draw = normal(shape, dtype, seed)
    return torch.where(draw.abs() < 1.2, draw.round(), draw)


def _operator(
    example: tuple[int, ...], baseline: tuple[int, ...], dtype: torch.dtype, layout: Layout
) -> tuple[Tensor, ...]:
    """x, x_ref, y, y_ref and slope, all unrelated, but x and x_ref agree in about every fifth place."""
    inputs = _often_whole(example, dtype, 10), _often_whole(baseline, dtype, 11)
    values = (normal(shape, dtype, seed) for seed, shape in enumerate((example, baseline, example), 12))
    return tuple(map(layout, (*inputs, *values)))


def _rescale_of(name: str, gradients: Tensor, operator: tuple[Tensor, ...], note: str = "") -> Iterator[Sample]:
    """An operator whose values are given, and ReLU."""
    dtype, title = str(operator[0].dtype)[6:], f"{str(gradients.dtype)[6:]} gradients{note}"
    yield Sample("rescale", f"{name}, {dtype}, {title}", (gradients, *operator, 0.01))
    yield Sample("rescale", f"ReLU, {dtype}, {name}, {title}", (gradients, *operator[:2], None, None, None, 1e-10))


def _rescale() -> Iterator[Sample]:
    for name, (shape, layout, others) in SHAPES.items():
        operator = _operator(shape, shape, torch.float32, others)
        yield from _rescale_of(name, normal(shape, torch.float32, 16, layout), operator)
    for name, (shape, example, baseline) in BROADCASTS.items():
        layout = _pairs_channels_last if name.endswith("channels last") else Tensor.contiguous
        gradients = normal(shape, torch.float32, 16, layout)
        yield from _rescale_of(name, gradients, _operator(example, baseline, torch.float32, layout))
        strided = _operator(example, baseline, torch.float32, _strided)
        yield from _rescale_of(name, gradients, strided, ", others strided")
    for name, (dtype, of) in product(("pairs of 16 bytes", "pairs across blocks"), product(DTYPES, DTYPES)):
        shape, example, baseline = BROADCASTS[name]
        if not dtype == of == torch.float32:  # these are among the above
            yield from _rescale_of(name, normal(shape, dtype, 16), _operator(example, baseline, of, Tensor.contiguous))


def _coalition_rows() -> Iterator[Sample]:
    """Three rows of each example, out of order, with one mask for all or a mask each."""
    for name, inputs, base, index, others in _with_baselines():
        count, draw = len(inputs), torch.Generator().manual_seed(17)
        examples = torch.arange(3 * count).mul_(2).remainder_(max(1, count))
        which = torch.arange(3 * count).mul_(3).remainder_(4)
        coalitions = torch.rand(4, 6, generator=draw) < 0.5
        picks = None if index is None else index.repeat(3)
        for masks, title in ((1, "one mask"), (count, "a mask each")):
            features = torch.randint(6, (masks, *inputs.shape[1:]), generator=draw, dtype=torch.int32)
            arguments = (inputs, base, picks, others(features), coalitions, which, examples)
            yield Sample("coalition_rows", f"{name}, {title}", arguments)


def _lasso() -> Iterator[Sample]:
    """All combinations of three features, of weights that make columns orthogonal."""
    members = torch.cartesian_prod(*[torch.tensor([False, True])] * 3).expand(5, 8, 3)
    chances = torch.rand(5, 1, 3, generator=torch.Generator().manual_seed(18), dtype=torch.float64) * 0.6 + 0.2
    weights, values = torch.where(members, chances, 1 - chances).prod(-1), normal((5, 8), torch.float64, 19)
    for dtype in (torch.bool, torch.int64, torch.bfloat16):
        rows = members.contiguous().to(dtype) * torch.tensor([1, 2, -3]).to(dtype)
        yield Sample("lasso", str(dtype)[6:], (rows, values, 7 * weights, 0.05, 1e-4, 100))
    strided = (_strided(members.double()), _strided(values), _transposed(weights), 0.05, 1e-4, 100)
    yield Sample("lasso", "float64 strided", strided)
    yield Sample("lasso", "no features", (members[..., :0], values, weights, 0.05, 1e-4, 100))
    yield Sample("lasso", "no examples", (members[:0], values[:0], weights[:0], 0.05, 1e-4, 100))


SAMPLES: tuple[Sample, ...] = (
    *_path_points(),
    *_path_sum(),
    *_times_change(),
    *_random_points(),
    *_noisy_copies(),
    *_moments(),
    *_rescale(),
    *_coalition_rows(),
    *_lasso(),
)


def _base_of(row: int, baselines: Tensor, index: Tensor | None) -> Tensor:
    if baselines.dim() == 0:
        return baselines.double()
    if index is not None:
        row = int(index[row])
    return baselines[row if len(baselines) > 1 or index is not None else 0].double()


def stack(rows: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(rows) if rows else torch.zeros(0, *like.shape[1:], dtype=torch.float64)


def _points_by_hand(inputs: Tensor, baselines: Tensor, index: Tensor | None, alphas: Tensor) -> Tensor:
    bases = [_base_of(b, baselines, index) for b in range(len(inputs))]
    return stack(
        [base + a * (x.double() - base) for a in alphas for x, base in zip(inputs, bases, strict=True)], inputs
    )


def _sum_by_hand(total: Tensor, gradients: Tensor, weights: Tensor) -> Tensor:
    result = total.double().clone()
    for row in range(len(gradients)):
        result[row % len(total)] += weights[row // len(total)] * gradients[row].double()
    return result


def _products_by_hand(gradients: Tensor, inputs: Tensor, baselines: Tensor, index: Tensor | None) -> Tensor:
    rows = [inputs[r].double() - _base_of(r, baselines, index) for r in range(len(inputs))]
    return gradients.double() * stack(rows, inputs)


def _random_by_hand(inputs: Tensor, baselines: Tensor, index: Tensor | None, share: Tensor) -> Tensor:
    c = share.double()
    rows = [c[r] * inputs[r].double() + (1 - c[r]) * _base_of(r, baselines, index) for r in range(len(inputs))]
    return stack(rows, inputs)


def _copies_by_hand(inputs: Tensor, noise: Tensor, stdev: float, samples: int, start: int) -> Tensor:
    rows = [inputs[(start + r) // samples].double() + stdev * noise[r].double() for r in range(len(noise))]
    return stack(rows, inputs)


def _moments_by_hand(
    total: Tensor, squares: Tensor | None, values: Tensor, samples: int, start: int
) -> tuple[Tensor, Tensor | None]:
    first, second = total.double().clone(), None if squares is None else squares.double().clone()
    for row in range(len(values)):
        first[(start + row) // samples] += values[row].double()
        if second is not None:
            second[(start + row) // samples] += values[row].double() ** 2
    return first, second


def _rescaled_by_hand(gradients: Tensor, x: Tensor, x_ref: Tensor, *rest: Any) -> Tensor:
    """One element after the other, in Python's own numbers."""
    *values, eps = rest
    rounding = {torch.float64: 2**-52, torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}[x.dtype]
    if values[0] is None:
        values = [x.clamp(min=0), x_ref.clamp(min=0), (x > 0).to(x.dtype)]
    results = []
    operands = (gradients, x, x_ref, *values)
    for g, a, b, y, y_ref, slope in zip(
        *(operand.double().expand(gradients.shape).flatten().tolist() for operand in operands), strict=True
    ):
        near = abs(a - b) <= max(eps, 4 * rounding * max(abs(a), abs(b)))
        results.append(g * (slope if near else (y - y_ref) / (a - b)))
    return torch.tensor(results, dtype=torch.float64).view(gradients.shape)


def _rows_by_hand(
    inputs: Tensor,
    baselines: Tensor,
    index: Tensor | None,
    features: Tensor,
    coalitions: Tensor,
    which: Tensor,
    examples: Tensor,
) -> Tensor:
    rows = []
    for row, (of, example) in enumerate(zip(which.tolist(), examples.tolist(), strict=True)):
        base = _base_of(example if index is None else row, baselines, index)
        mask, members = features[example if len(features) > 1 else 0], coalitions[of].tolist()
        chosen = torch.tensor([members[feature] for feature in mask.flatten().tolist()], dtype=torch.bool)
        rows.append(torch.where(chosen.view(mask.shape), inputs[example].double(), base))
    return stack(rows, inputs)


def _lasso_by_hand(rows: Tensor, values: Tensor, weights: Tensor, alpha: float, *_: Any) -> tuple[Tensor, Tensor]:
    """Of orthogonal columns each has its coefficient to itself."""
    shares = (weights / weights.sum(1, keepdim=True))[..., None]
    x = rows.double() - (shares * rows.double()).sum(1, keepdim=True)
    slopes = (shares * x * values[..., None]).sum(1)
    found = slopes.sign() * (slopes.abs() - alpha).clamp(min=0) / (shares * x * x).sum(1)
    return found, torch.ones(len(rows))


BY_HAND: dict[str, Callable[..., Any]] = {
    "path_points": _points_by_hand,
    "path_sum": _sum_by_hand,
    "times_change": _products_by_hand,
    "random_points": _random_by_hand,
    "noisy_copies": _copies_by_hand,
    "moments": _moments_by_hand,
    "rescale": _rescaled_by_hand,
    "coalition_rows": _rows_by_hand,
    "lasso": _lasso_by_hand,
}
