"""The ops: values by hand, kernels against reference, opcheck, meta tensors, threads, cuts, errors, big indices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fusum
import network_samples as networks
import ops_samples
from fusum import ops
from fusum.ops import library, reference
from ops_samples import Sample

SAMPLES = (*ops_samples.SAMPLES, *networks.NETWORKS)
BY_HAND = {**ops_samples.BY_HAND, **networks.BY_HAND}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}
NAMES = sorted(reference.BODIES)
RANDOM = {"draw_coalitions"}  # test_draws.py
needs_kernels = pytest.mark.skipif(not ops.kernels_loaded(), reason=f"no compiled kernels: {ops.why_not()}")
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.op}: {sample.name}")
# opcheck is slow: one sample of each op, shape and dtype.
FIRST = {(s.op, *s.name.split(", ")[:2]): s for s in reversed(SAMPLES)}
each_device = pytest.mark.parametrize("device", DEVICES)


def overload(name: str) -> Any:
    return getattr(torch.ops.fusum, name).default


def results(body: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    """What a call returns, or else the tensors that it has changed."""
    returned = body(*arguments)
    changed = [x for x in arguments[: body_changes(body)] if x is not None]
    if returned is None:
        return changed
    return list(returned) if isinstance(returned, tuple) else [returned]


def body_changes(body: Any) -> int:
    """How many leading arguments are changed in place."""
    return {"path_sum": 1, "moments": 2}.get(getattr(body, "__name__", "").split(".")[0], 0)


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Equal to the rounding of dtype, relative to the largest number in the tensor where terms cancel."""
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        scale = float(y.double().abs().max()) if y.numel() else 1.0
        bound = ROUNDING[dtype]
        torch.testing.assert_close(x.double().cpu(), y.double().cpu(), rtol=bound, atol=bound * scale)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@each_device
@each_sample
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_value_by_hand(sample: Sample, device: str, backend: str) -> None:
    by_hand = BY_HAND[sample.op](*sample.arguments)
    expected = [x for x in (by_hand if isinstance(by_hand, tuple) else (by_hand,)) if x is not None]
    with fusum.config(backend=backend):
        found = results(getattr(ops, sample.op), sample.on(device))
    assert_close(found, expected, found[0].dtype)


@needs_kernels
@each_device
@each_sample
def test_kernel_agrees_with_reference(sample: Sample, device: str) -> None:
    found = results(overload(sample.op), sample.on(device))
    expected = results(reference.BODIES[sample.op], sample.on(device))
    for x, y in zip(found, expected, strict=True):
        assert (x.dtype, x.shape, x.stride(), x.device) == (y.dtype, y.shape, y.stride(), y.device)
    assert_close(found, expected, found[0].dtype)


@each_device
@pytest.mark.parametrize("sample", FIRST.values(), ids=lambda sample: f"{sample.op}: {sample.name}")
def test_opcheck(sample: Sample, device: str) -> None:
    torch.library.opcheck(overload(sample.op), sample.on(device))


@each_sample
def test_meta_tensors_have_the_form_of_real_ones(sample: Sample) -> None:
    found = results(overload(sample.op), sample.on("meta"))
    for x, y in zip(found, results(overload(sample.op), sample.on("cpu")), strict=True):
        assert (x.device.type, x.dtype, x.shape, x.stride()) == ("meta", y.dtype, y.shape, y.stride())


@pytest.mark.parametrize("name", NAMES)
def test_op_is_whole(name: str) -> None:
    assert any(schema.startswith(f"{name}(") for schema in library.schemas())
    assert len(library.schemas()) == len(NAMES)
    assert {sample.op for sample in SAMPLES} == set(BY_HAND) == set(NAMES) - RANDOM
    assert callable(getattr(ops, name))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"fusum::{name}", "CPU")
    assert has_kernel == ops.kernels_loaded()


LARGE = (
    Sample("path_points", "large", (torch.randn(40, 3000), torch.randn(1, 3000), None, torch.rand(9).double())),
    Sample("path_sum", "large", (torch.zeros(40, 3000), torch.randn(360, 3000), torch.rand(9).double())),
    Sample("times_change", "large", (torch.randn(40, 9000), torch.randn(40, 9000), torch.tensor(0.5), None)),
    Sample("random_points", "large", (torch.randn(40, 9000), torch.randn(40, 9000), None, torch.rand(40))),
    Sample("noisy_copies", "large", (torch.randn(40, 3000), torch.randn(200, 3000), 0.5, 5, 0)),
    Sample("moments", "large", (torch.zeros(40, 3000), torch.zeros(40, 3000), torch.randn(200, 3000), 5, 0)),
    Sample("rescale", "large", (torch.randn(9, 7, 3000), *torch.randn(2, 1, 7, 3000), None, None, None, 1e-10)),
    Sample(
        "coalition_rows",
        "large",
        (
            torch.randn(40, 3000),
            torch.randn(1, 3000),
            None,
            torch.arange(3000, dtype=torch.int32)[None] % 50,
            torch.rand(7, 50) < 0.5,
            torch.arange(160) % 7,
            torch.arange(160) // 4,
        ),
    ),
    Sample(
        "lasso",
        "large",
        (torch.rand(40, 99, 20) < 0.5, torch.randn(40, 99).double(), torch.rand(40, 99).double(), 0.01, 1e-4, 1000),
    ),
    *networks.LARGE_NETWORKS,
)


@needs_kernels
@pytest.mark.parametrize("sample", LARGE, ids=lambda sample: sample.op)
def test_threads_do_not_change_a_bit(sample: Sample) -> None:
    torch.set_num_threads(1)
    alone = results(overload(sample.op), sample.on("cpu"))
    torch.set_num_threads(2)
    shared = results(overload(sample.op), sample.on("cpu"))
    assert all(torch.equal(x, y) for x, y in zip(alone, shared, strict=True))


@needs_kernels
@each_device
@pytest.mark.parametrize("cut", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_path_sum_does_not_depend_on_the_cut(device: str, cut: int, dtype: torch.dtype) -> None:
    gradients, weights = torch.randn(7 * 5, 33).to(device, dtype), torch.rand(7).double()
    whole, parts = torch.zeros(5, 33, device=device), torch.zeros(5, 33, device=device)
    ops.path_sum(whole, gradients, weights)
    ops.path_sum(parts, gradients[: cut * 5], weights[:cut])
    ops.path_sum(parts, gradients[cut * 5 :], weights[cut:])
    assert torch.equal(whole, parts)


@needs_kernels
@each_device
@pytest.mark.parametrize("cut", [1, 4, 9, 14])
def test_moments_do_not_depend_on_the_cut(device: str, cut: int) -> None:
    values = torch.randn(15, 33, device=device)
    whole, parts = torch.zeros(2, 5, 33, device=device), torch.zeros(2, 5, 33, device=device)
    ops.moments(whole[0], whole[1], values, 3, 0)
    ops.moments(parts[0], parts[1], values[:cut], 3, 0)
    ops.moments(parts[0], parts[1], values[cut:], 3, cut)
    assert torch.equal(whole, parts)


@each_device
def test_noisy_copies_do_not_depend_on_the_cut(device: str) -> None:
    inputs, noise = torch.randn(5, 7, device=device), torch.randn(15, 7, device=device)
    parts = [ops.noisy_copies(inputs, noise[a:b], 0.2, 3, a) for a, b in ((0, 4), (4, 5), (5, 15))]
    assert torch.equal(torch.cat(parts), ops.noisy_copies(inputs, noise, 0.2, 3, 0))


def test_channels_last_is_kept() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    for points in (
        ops.path_points(x, torch.tensor(0.0), None, torch.rand(3).double()),
        ops.times_change(x, x, torch.tensor(0.0), None),
        ops.random_points(x, torch.tensor(0.0), None, torch.rand(2)),
        ops.noisy_copies(x, torch.randn(4, 3, 4, 5), 0.1, 2, 0),
        ops.coalition_rows(x, torch.tensor(0.0), None, torch.zeros(1, 3, 4, 5).int(), MEMBERS, INDEX, INDEX),
    ):
        assert points.is_contiguous(memory_format=torch.channels_last)


@each_device
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_rescale_lies_as_its_gradients_do(device: str, backend: str) -> None:
    images = torch.randn(6, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last)
    pairs, x, x_ref = images.unflatten(0, (2, 3)), images[None, :3], images[:2, None]
    with fusum.config(backend=backend):
        for gradients in (pairs, pairs.contiguous(), pairs.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)):
            found = ops.rescale(gradients, x, x_ref, None, None, None, 1e-10)
            assert found.stride() == gradients.stride()
            assert found.data_ptr() != gradients.data_ptr()
        strided = pairs[..., ::2]
        found = ops.rescale(strided, x[..., ::2], x_ref[..., ::2], None, None, None, 1e-10)
        assert found.untyped_storage().nbytes() == found.numel() * found.element_size()


@each_device
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_rescale_of_powers(dtype: torch.dtype, device: str, backend: str) -> None:
    """(a^2 - b^2) / (a - b) = a + b, and 2 a where they agree: exact in every dtype for small whole numbers."""
    numbers = torch.arange(-5, 6, dtype=dtype, device=device)
    a, b = numbers[:, None], numbers[None, :]
    with fusum.config(backend=backend):
        found = ops.rescale((0 * a + 3) * (0 * b + 1), a, b, a * a, b * b, 2 * a, 1e-10)
    assert torch.equal(found, 3 * (a + b))


@each_device
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("sign", [1, -1])
def test_rescale_takes_the_slope_up_to_four_roundings(dtype: torch.dtype, sign: int, device: str, backend: str) -> None:
    step = torch.finfo(dtype).eps
    for count, eps, expected in [
        (0, 0.0, 7.0),
        (4, 0.0, 7.0),
        (5, 0.0, 1 / 5),  # y moves by one step
        (5, 5 * step, 7.0),  # the larger of the two bounds holds
        (6, 5 * step, 1 / 6),
        (-4, 0.0, 7.0),
        (-5, 0.0, -1 / 5),
    ]:
        x, x_ref, y, y_ref, slope = (
            torch.tensor([number], dtype=dtype, device=device)
            for number in (sign * (1 + count * step), sign, step * sign, 0, 7)
        )
        with fusum.config(backend=backend):
            found = ops.rescale(torch.ones_like(x), x, x_ref, y, y_ref, slope, eps)
        assert found.item() == torch.tensor(expected, dtype=dtype).item(), count


@each_device
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_rescale_of_nan_and_infinity(dtype: torch.dtype, device: str, backend: str) -> None:
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([nan, 1.0, nan, -1.0, inf, -inf, 2.0, 0.0], dtype=dtype, device=device)
    x_ref = torch.tensor([1.0, nan, nan, nan, inf, -inf, 1.0, 0.0], dtype=dtype, device=device)
    ones, slope = torch.ones_like(x), torch.full_like(x, 5)
    with fusum.config(backend=backend):
        relu = ops.rescale(ones, x, x_ref, None, None, None, 1e-10)
        given = ops.rescale(ones, x, x_ref, ones, ones, slope, 1e-10)
    assert relu[:4].isnan().all()
    assert relu[4:].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert given[:4].isnan().all()
    assert given[4:].tolist() == [5.0, 5.0, 0.0, 5.0]


def test_the_end_points_are_exact() -> None:
    x, base = torch.randn(6, 50), torch.randn(6, 50)
    assert torch.equal(ops.path_points(x, base, None, torch.zeros(1).double()), base)
    assert torch.equal(ops.random_points(x, base, None, torch.ones(6)), x)


def test_nan_is_kept() -> None:
    x = torch.tensor([[1.0, float("nan")]], dtype=torch.float16)
    zero, one = torch.tensor(0.0, dtype=torch.float16), torch.ones(1).double()
    assert ops.path_points(x, zero, None, one).isnan().tolist() == [[False, True]]
    assert ops.times_change(x, x, zero, None).isnan().tolist() == [[False, True]]


X, ROW, NODES = torch.zeros(4, 3), torch.zeros(1, 3), torch.zeros(2).double()
INDEX = torch.zeros(4, dtype=torch.int64)
FEATURES, MEMBERS = torch.zeros(1, 3).int(), torch.ones(2, 5, dtype=torch.bool)
REFUSED: list[tuple[str, str, tuple[Any, ...]]] = [
    *networks.REFUSED_NETWORKS,
    ("path_points", "inputs", (torch.zeros(4, 3, dtype=torch.int64), ROW, None, NODES)),
    ("path_points", "inputs", (torch.tensor(1.0), ROW, None, NODES)),
    ("path_points", "baselines", (X, torch.zeros(2, 3), None, NODES)),
    ("path_points", "baselines", (X, torch.zeros(4, 2), None, NODES)),
    ("path_points", "baselines", (X, ROW.double(), None, NODES)),
    ("path_points", "baselines", (X, ROW.to("meta"), None, NODES)),
    ("path_points", "index", (X, ROW, INDEX[:2], NODES)),
    ("path_points", "index", (X, ROW, INDEX.int(), NODES)),
    ("path_points", "index", (X, torch.tensor(0.0), INDEX, NODES)),
    ("path_points", "alphas", (X, ROW, None, NODES.float())),
    ("path_points", "alphas", (X, ROW, None, NODES.view(1, 2))),
    ("path_sum", "total", (X.half(), torch.zeros(8, 3), NODES)),
    ("path_sum", "gradients", (X, torch.zeros(7, 3), NODES)),
    ("path_sum", "gradients", (X, torch.zeros(8, 3, dtype=torch.int32), NODES)),
    ("path_sum", "weights", (X, torch.zeros(8, 3), NODES.float())),
    ("times_change", "gradients", (torch.zeros(3, 3), X, ROW, None)),
    ("times_change", "gradients", (X.double(), X, ROW, None)),
    ("times_change", "baselines", (X, X, torch.zeros(3), None)),
    ("random_points", "coefficients", (X, ROW, None, torch.zeros(3))),
    ("random_points", "coefficients", (X, ROW, None, torch.zeros(4).half())),
    ("noisy_copies", "noise", (X, torch.zeros(8, 2), 0.1, 2, 0)),
    ("noisy_copies", "noise", (X, torch.zeros(8, 3).double(), 0.1, 2, 0)),
    ("noisy_copies", "samples", (X, torch.zeros(8, 3), 0.1, 0, 0)),
    ("noisy_copies", "start", (X, torch.zeros(8, 3), 0.1, 2, 1)),
    ("noisy_copies", "start", (X, torch.zeros(8, 3), 0.1, 2, -1)),
    ("moments", "total", (X.half(), None, torch.zeros(8, 3), 2, 0)),
    ("moments", "squares", (X, torch.zeros(3, 3), torch.zeros(8, 3), 2, 0)),
    ("moments", "squares", (X, X.double(), torch.zeros(8, 3), 2, 0)),
    ("moments", "values", (X, None, torch.zeros(8, 2), 2, 0)),
    ("moments", "start", (X, None, torch.zeros(9, 3), 2, 0)),
    ("rescale", "gradients", (X.long(), X, X, None, None, None, 0.0)),
    ("rescale", "x", (X, X.long(), X.long(), None, None, None, 0.0)),
    ("rescale", "x", (X, X[None], X, None, None, None, 0.0)),
    ("rescale", "x", (ROW, X, X, None, None, None, 0.0)),
    ("rescale", "x_ref", (X, X, X[:2], None, None, None, 0.0)),
    ("rescale", "x_ref", (X, X, X.double(), None, None, None, 0.0)),
    ("rescale", "x_ref", (X, X, X.to("meta"), None, None, None, 0.0)),
    ("rescale", "y", (X, X, X, X[:, :2], X, X, 0.0)),
    ("rescale", "y_ref", (X, X, X, X, None, X, 0.0)),
    ("rescale", "y_ref", (X, X, X, None, X, None, 0.0)),
    ("rescale", "slope", (X, X, X, X, X, None, 0.0)),
    ("rescale", "slope", (X, X, X, X, X, X.half(), 0.0)),
    ("rescale", "slope", (X, X, X, None, None, X, 0.0)),
    ("rescale", "eps", (X, X, X, None, None, None, -1.0)),
    ("rescale", "eps", (X, X, X, None, None, None, float("nan"))),
    ("coalition_rows", "inputs", (X[0, 0], X[0, 0], None, FEATURES, MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "baselines", (X, X[:2], None, FEATURES, MEMBERS, INDEX[:2], INDEX[:2])),
    ("coalition_rows", "baselines", (X, X[:, :2], None, FEATURES, MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "baselines", (X, X.double(), None, FEATURES, MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "index", (X, X, INDEX[:3], FEATURES, MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "index", (X, X[0, 0], INDEX, FEATURES, MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "features", (X, ROW, None, FEATURES.long(), MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "features", (X, ROW, None, FEATURES[0], MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "features", (X, ROW, None, FEATURES.expand(2, 3), MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "features", (X, ROW, None, FEATURES.to("meta"), MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "coalitions", (X, ROW, None, FEATURES, MEMBERS.float(), INDEX, INDEX)),
    ("coalition_rows", "coalitions", (X, ROW, None, FEATURES, MEMBERS[0], INDEX, INDEX)),
    ("coalition_rows", "which", (X, ROW, None, FEATURES, MEMBERS, INDEX[:3], INDEX)),
    ("coalition_rows", "which", (X, ROW, None, FEATURES, MEMBERS, INDEX.int(), INDEX)),
    ("coalition_rows", "examples", (X, ROW, None, FEATURES, MEMBERS, INDEX, INDEX[None])),
    ("coalition_rows", "examples", (X, ROW, None, FEATURES, MEMBERS, INDEX, INDEX.to("meta"))),
    ("lasso", "rows", (X, X.double(), X.double(), 0.1, 0.1, 9)),
    ("lasso", "rows", (X[None].cfloat(), X[None, :, 0].double(), X[None, :, 0].double(), 0.1, 0.1, 9)),
    ("lasso", "values", (X[None], X[None].double(), X[None, :, 0].double(), 0.1, 0.1, 9)),
    ("lasso", "values", (X[None], X[None, :, 0], X[None, :, 0].double(), 0.1, 0.1, 9)),
    ("lasso", "weights", (X[None], X[None, :, 0].double(), X[None, :2, 0].double(), 0.1, 0.1, 9)),
    ("lasso", "weights", (X[None], X[None, :, 0].double(), X[None, :, 0].double().to("meta"), 0.1, 0.1, 9)),
    ("lasso", "alpha", (X[None], X[None, :, 0].double(), X[None, :, 0].double(), 0.0, 0.1, 9)),
]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("op", "name", "arguments"), REFUSED)
def test_bad_arguments_are_named(op: str, name: str, arguments: tuple[Any, ...], backend: str) -> None:
    with fusum.config(backend=backend), pytest.raises(ValueError, match=rf"^{name}: got .*; expected "):
        getattr(ops, op)(*arguments)


OUTSIDE: list[tuple[str, str, tuple[Any, ...]]] = [
    *networks.OUTSIDE_NETWORKS,
    ("path_points", "index", (X, ROW, INDEX + 1, NODES)),
    ("coalition_rows", "index", (X, ROW, INDEX + 1, FEATURES, MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "features", (X, ROW, None, FEATURES + 5, MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "features", (X, ROW, None, FEATURES - 1, MEMBERS, INDEX, INDEX)),
    ("coalition_rows", "features", (X, ROW, None, FEATURES, MEMBERS[:, :0], INDEX, INDEX)),
    ("coalition_rows", "which", (X, ROW, None, FEATURES, MEMBERS, INDEX + 2, INDEX)),
    ("coalition_rows", "which", (X, ROW, None, FEATURES, MEMBERS[:0], INDEX, INDEX)),
    ("coalition_rows", "examples", (X, ROW, None, FEATURES, MEMBERS, INDEX, INDEX - 1)),
    ("coalition_rows", "examples", (X, ROW, None, FEATURES, MEMBERS, INDEX, INDEX + 4)),
]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("op", "name", "arguments"), OUTSIDE)
def test_numbers_out_of_range_are_named(op: str, name: str, arguments: tuple[Any, ...], backend: str) -> None:
    with fusum.config(backend=backend), pytest.raises(IndexError, match=rf"^{name}: got .*; expected values from 0 to"):
        getattr(ops, op)(*arguments)


@needs_kernels
@pytest.mark.parametrize("op", ["path_sum", "moments", "coalition_rows"])
def test_more_than_2_to_31_elements(op: str) -> None:
    # Zeros that nobody has written take no memory: the only touched rows are the first and the last.
    count, row = 2**12, 2**19 + 1
    rows = torch.from_numpy(np.zeros((count, row), dtype=np.float16))
    rows[0, -1], rows[-1, 0], rows[-1, -1] = 1, 2, 4
    total = torch.zeros(1, row)
    if op == "coalition_rows":
        features, ends = torch.zeros(1, row).int(), torch.tensor([0, count - 1])
        found = ops.coalition_rows(rows, rows[:1], None, features, MEMBERS, torch.zeros(2).long(), ends)
        total += found.float().sum(0)
    elif op == "path_sum":
        ops.path_sum(total, rows, torch.ones(count).double())
    else:
        ops.moments(total, None, rows, count, 0)
    assert (total[0, 0], total[0, -1], total.sum()) == (2, 5, 7)
