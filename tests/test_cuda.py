"""The case table on a GPU: kernels, reference ops and captum give the same numbers there."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import fusum
import fusum.attr
from cases import CASES, Case, on
from checkers import assert_same

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def exact_matrix_products() -> Iterator[None]:
    """TF32 would hide differences larger than rounding."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def on_gpu(case: Case, attr: Any, module: nn.Module | None = None) -> Any:
    """The case's result with its model, inputs and arguments on the GPU, brought back."""
    subject = case.subject.module if module is None else module
    keywords = _pytree.tree_map(lambda x: x.cuda() if isinstance(x, Tensor) else x, case.keywords())
    found = case.attribute(attr, deepcopy(subject).cuda(), **keywords)
    return _pytree.tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, found)


@pytest.mark.parametrize("case", on(CASES))
def test_kernels_give_the_numbers_of_the_reference(case: Case) -> None:
    with fusum.config(backend="reference"):
        expected = on_gpu(case, fusum.attr)
    assert_same(on_gpu(case, fusum.attr), expected, rtol=1e-4, atol=1e-5)


# A peer that is a function holds a model on the CPU.
PEERS = [c for c in CASES if not c.no_peer and isinstance(c.subject.peer or c.subject.module, nn.Module)]


@pytest.mark.parametrize("case", on(PEERS))
def test_the_numbers_of_captum_on_the_same_gpu(case: Case) -> None:
    captum_attr = pytest.importorskip("captum.attr", reason="captum, whose numbers are the measure, is not installed")
    assert_same(on_gpu(case, fusum.attr), on_gpu(case, captum_attr, case.subject.peer), rtol=1e-4, atol=1e-5)


def test_chunks_follow_from_free_memory() -> None:
    """More work than one chunk holds is cut, and the peak stays near the budget."""
    case = next(case for case in CASES if case.name == "IG-mlp")
    module, x = deepcopy(case.subject.module).cuda(), case.subject.inputs.cuda().repeat(2000, 1)
    method = fusum.attr.IntegratedGradients(module)
    with fusum.config(memory="8MB"):
        method.attribute(x, target=0)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = method.attribute(x, target=0)
        assert torch.cuda.max_memory_allocated() - before < 64 * 2**20
    assert_same(found, method.attribute(x, target=0, internal_batch_size=10_000), rtol=1e-4, atol=1e-5)
