"""Coalitions: drawn in the stream of captum's KernelShap, number for number, and rows of any dtype made from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fusum
from fusum import ops

FEATURES = [2, 3, 8, 15, 16, 17, 40, 900]  # randn has one stream below 16 numbers and another from there on
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
each_device = pytest.mark.parametrize("device", DEVICES)
each_backend = pytest.mark.parametrize("backend", ["auto", "reference"])
each_width = pytest.mark.parametrize("features", FEATURES)


def before_nothing() -> None:
    pass


def before_one_normal() -> None:
    torch.randn(1)  # they come in pairs: the generator keeps the second one


def before_many_numbers() -> None:
    torch.rand(700)
    torch.randn(3, dtype=torch.float64)


each_past = pytest.mark.parametrize("past", [before_nothing, before_one_normal, before_many_numbers])


def kernel_shap(features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What KernelShap gives a size: (M - 1) / (size * (M - size)), and 0 to none."""
    size = torch.arange(1, features, dtype=dtype)
    return torch.cat([torch.zeros(1, dtype=dtype), (features - 1) / (size * (features - size))])


def drawn(seed: int, past: Callable[[], None], draw: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What is drawn after a seed and a past, and the state of the generator then."""
    torch.manual_seed(seed)
    past()
    return draw(), torch.get_rng_state()


def by_captum(probabilities: Tensor, count: int) -> Tensor:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose stream is the measure, is not installed")
    generator: Any = captum_attr.KernelShap(torch.nn.Identity()).kernel_shap_perturb_generator(
        torch.zeros(1),
        num_select_distribution=torch.distributions.Categorical(probabilities),
        num_interp_features=probabilities.numel(),
    )
    rows = [next(generator) for _ in range(2 + count)]
    return torch.cat(rows[2:]).bool()


@each_backend
@each_past
@each_width
@pytest.mark.parametrize("seed", [0, 7, 2**40 + 1])
def test_the_stream_of_captum(seed: int, features: int, past: Callable[[], None], backend: str) -> None:
    probabilities = kernel_shap(features)
    expected, after = drawn(seed, past, lambda: by_captum(probabilities, 60))
    with fusum.config(backend=backend):
        found, state = drawn(seed, past, lambda: ops.draw_coalitions(probabilities, 60))
    assert found.dtype == torch.bool
    assert torch.equal(found, expected)
    assert torch.equal(state, after)


@pytest.mark.skipif(not ops.kernels_loaded(), reason=f"no compiled kernels: {ops.why_not()}")
@each_past
@each_width
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_draws_what_the_reference_draws(dtype: torch.dtype, features: int, past: Callable[[], None]) -> None:
    generator = torch.Generator().manual_seed(3)
    probabilities = torch.rand(2 * features, generator=generator, dtype=dtype)[::2]  # strided, and not of sum 1
    found, state = drawn(5, past, lambda: torch.ops.fusum.draw_coalitions(probabilities, 60))
    with fusum.config(backend="reference"):
        expected, after = drawn(5, past, lambda: ops.draw_coalitions(probabilities, 60))
    assert torch.equal(found, expected)
    assert torch.equal(state, after)


@each_backend
def test_sizes_and_features_have_their_chances(backend: str) -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25])
    with fusum.config(backend=backend):
        coalitions, _ = drawn(0, before_nothing, lambda: ops.draw_coalitions(4 * probabilities, 4000))
    sizes = coalitions.sum(1).bincount(minlength=5) / 4000
    torch.testing.assert_close(sizes, probabilities, rtol=0, atol=0.04)  # five standard deviations
    shares = coalitions[coalitions.sum(1) == 1].float().mean(0)
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0, atol=0.045)


@each_backend
def test_none_and_one_feature(backend: str) -> None:
    with fusum.config(backend=backend):
        assert ops.draw_coalitions(torch.ones(4), 0).shape == (0, 4)
        assert ops.draw_coalitions(torch.ones(1), 3).tolist() == [[False]] * 3
        always = ops.draw_coalitions(torch.tensor([0.0, 0.0, 1.0]), 50)
    assert (always.sum(1) == 2).all()


def test_the_op_is_whole() -> None:
    op = torch.ops.fusum.draw_coalitions.default
    assert torch.Tag.nondeterministic_seeded in op.tags
    torch.library.opcheck(op, (kernel_shap(8), 5))
    found = op(kernel_shap(8).to("meta"), 5)
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.bool, (5, 8))


ONES = torch.ones(3)
REFUSED: list[tuple[str, Tensor, int]] = [
    ("probabilities", ONES[None], 2),
    ("probabilities", ONES.half(), 2),
    ("probabilities", ONES * 0, 2),
    ("probabilities", ONES * -1, 2),
    ("probabilities", ONES * float("nan"), 2),
    ("probabilities", ONES * float("inf"), 2),
    ("count", ONES, -1),
]
if torch.cuda.is_available():
    REFUSED.append(("probabilities", ONES.cuda(), 2))


@each_backend
@pytest.mark.parametrize(("name", "probabilities", "count"), REFUSED)
def test_bad_arguments_are_named(name: str, probabilities: Tensor, count: int, backend: str) -> None:
    with fusum.config(backend=backend), pytest.raises(ValueError, match=rf"^{name}: got .*; expected "):
        ops.draw_coalitions(probabilities, count)


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16]
DTYPES += [torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]


@each_device
@each_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_coalition_rows_copy_any_dtype(dtype: torch.dtype, device: str, backend: str) -> None:
    numbers = torch.randn(2, 33, dtype=torch.complex128 if dtype.is_complex else torch.float64) * 9
    inputs = numbers.to(device, dtype).conj()[:, 1:]
    base = torch.ones(1, 32, dtype=dtype, device=device)
    features = torch.arange(32, dtype=torch.int32, device=device)[None] % 3
    members = torch.tensor([[True, False, False], [False, True, True]], device=device)
    which, examples = torch.tensor([[1, 0, 0], [0, 1, 0]], device=device)
    with fusum.config(backend=backend):
        for scalar in (False, True):
            found = ops.coalition_rows(inputs, base[0, 0] if scalar else base, None, features, members, which, examples)
            first = features[0] == 0
            kept = torch.stack([~first, first, first])
            assert torch.equal(found, torch.where(kept, inputs[examples], base))


@each_device
@each_backend
def test_coalition_rows_copy_nan_and_infinity(device: str, backend: str) -> None:
    odd = torch.tensor([[float("nan"), float("inf"), -float("inf"), -0.0, 1.0]], device=device)
    features = torch.zeros(1, 5, dtype=torch.int32, device=device)
    members = torch.tensor([[True], [False]], device=device)
    which, examples = torch.arange(2, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    with fusum.config(backend=backend):
        found = ops.coalition_rows(odd, odd.flip(1), None, features, members, which, examples)
    assert found.view(torch.int32).tolist() == torch.cat([odd, odd.flip(1)]).view(torch.int32).tolist()
