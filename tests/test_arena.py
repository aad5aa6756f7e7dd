"""Memory of large tensors is kept for the next ones while a call runs, and given back but for a limit."""

from __future__ import annotations

import gc
import resource
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fusum import ops
from fusum.attr import IntegratedGradients, Saliency
from fusum.engine import scope

pytestmark = pytest.mark.skipif(not ops.kernels_loaded(), reason=f"no compiled kernels: {ops.why_not()}")
LIMIT = 256 * 2**20


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def images(rows: int = 4, pixels: int = 64) -> Tensor:
    return torch.randn(rows, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))


def test_memory_is_reused_and_given_back() -> None:
    model, x = net(), images()
    Saliency(model).attribute(x, target=1)
    kept = ops.compiled.kept()
    assert 0 < kept <= LIMIT
    Saliency(model).attribute(x, target=1)
    assert ops.compiled.kept() <= kept + 2**20, "a second call needs no more than the first"
    IntegratedGradients(model).attribute(images(8, 128), target=1, n_steps=8)
    assert ops.compiled.kept() <= LIMIT


def test_the_other_threads_of_a_loop_reuse_memory_as_well() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 1024), nn.Tanh(), nn.Linear(1024, 512), nn.Tanh(), nn.Linear(512, 1)]
    method, x = IntegratedGradients(nn.Sequential(*layers)), torch.randn(2000, 8)

    def pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        method.attribute(x, n_steps=8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *later = [pages() for _ in range(6)]
    finally:
        torch.set_num_threads(before)
    activations = 2000 * 8 * (1024 + 512) * 4 // resource.getpagesize()
    assert min(later) < activations // 10, (first, later)


def test_scores_do_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net(), images()
    found = [IntegratedGradients(model).attribute(x, target=1, n_steps=5) for _ in range(3)]
    monkeypatch.setattr(scope, "_arena", None)
    expected = IntegratedGradients(model).attribute(x, target=1, n_steps=5)
    assert all(torch.equal(each, expected) for each in found)


def test_results_have_memory_of_their_own() -> None:
    model, x = net(), images(64)  # 3 MB
    first = Saliency(model).attribute(x, target=1)
    copy = first.clone()
    for target in (0, 2, 3):
        Saliency(model).attribute(x, target=target)
    assert torch.equal(first, copy)
    kept = ops.compiled.kept()
    del first
    gc.collect()
    assert ops.compiled.kept() == kept, "what is freed between calls goes back to the system"


def test_threads() -> None:
    model = net()
    inputs = [images(2 + i) for i in range(4)]
    expected = [Saliency(model).attribute(x, target=1) for x in inputs]

    def check(i: int) -> bool:
        return torch.equal(Saliency(model).attribute(inputs[i % 4], target=1), expected[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(80)))


def test_after_an_exception_nothing_is_kept_any_more() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Any:
            raise KeyError((x * 2).shape)

    with pytest.raises(KeyError):
        Saliency(Raises()).attribute(images())
    kept = ops.compiled.kept()
    x = images() * 2
    del x
    assert ops.compiled.kept() == kept


def test_a_tensor_made_in_a_call_may_grow_after_it() -> None:
    seen: list[Tensor] = []

    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x * 2).detach())
            return x.flatten(1).sum(1)

    Saliency(Keeps()).attribute(images())
    (tensor,) = seen
    before = tensor.clone()
    tensor.resize_(8, *tensor.shape[1:])
    assert torch.equal(tensor[:4], before)
