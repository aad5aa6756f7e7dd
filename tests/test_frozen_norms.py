"""Batch normalisations by fixed statistics keep nothing of images, and nobody can tell otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from checkers import assert_same
from fusum import config, ops
from fusum.attr import DeepLift, InputXGradient, IntegratedGradients, Saliency
from models import noise

pytestmark = [
    pytest.mark.usefixtures("never_compiled"),
    pytest.mark.skipif(not ops.kernels_loaded(), reason=f"no compiled kernels: {ops.why_not()}"),
]
ROWS = {"laid out": 9, "as they lie": 1}


class Net(nn.Module):
    """A convolution and a normalisation of its own; what follows it is given."""

    def __init__(self, affine: bool = True, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8, affine=affine, **options)
        self.last = nn.Linear(8, 3)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        if affine:
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.conv(x)).relu().mean((2, 3)))


def images(rows: int) -> Tensor:
    side = 16 if rows > 1 else 192
    return noise(rows, 3, side, side)


def node_names(y: Tensor) -> set[str]:
    """The functions that y goes back through."""
    names, stack = set(), [y.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and (node.name() not in names or "Accumulate" not in node.name()):
            names.add(node.name())
            stack.extend(n for n, _ in node.next_functions)
    return names


def expected(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Input times gradient by torch alone."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    return (x * gradient).detach()


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.5}], ids=str)
def test_gradients_are_the_same(rows: int, options: dict[str, Any]) -> None:
    model, x = Net(**options), images(rows)
    want = expected(model, x)
    assert_same(InputXGradient(model).attribute(x, target=1), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_images_are_not_kept(rows: int) -> None:
    net, kept = Net(), []

    def model(x: Tensor) -> Tensor:
        image, saved = net.conv(x), list[int]()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            hidden = net.norm(image)
        kept.append((image.numel() in saved, {n for n in node_names(hidden) if "Norm" in n}))
        return net.last(hidden.relu().mean((2, 3)))

    InputXGradient(model).attribute(images(rows), target=1)
    torch.set_grad_enabled(True)
    model(images(rows).requires_grad_())
    (is_kept, ours), (torch_keeps, torchs) = kept
    assert torch_keeps
    assert not is_kept
    assert torchs == {"NativeBatchNormBackward0"}
    assert len(ours) == 1
    assert ours != torchs


def test_training_and_mixed_types_are_left_to_torch() -> None:
    net, names = Net(), []

    def model(x: Tensor) -> Tensor:
        hidden = F.batch_norm(net.conv(x), net.norm.running_mean.clone(), net.norm.running_var.clone(), training=True)
        names.append(node_names(hidden))
        hidden = F.batch_norm(hidden.bfloat16(), net.norm.running_mean, net.norm.running_var)
        names.append(node_names(hidden))
        return net.last(hidden.float().mean((2, 3)))

    InputXGradient(model).attribute(images(9), target=1)
    assert all("NativeBatchNormBackward0" in found for found in names)


def test_a_model_that_takes_gradients_itself() -> None:
    net = Net()

    def model(x: Tensor) -> Tensor:
        if not x.requires_grad:
            x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((net(x) ** 2).sum(), x, create_graph=True)
        return (gradient**2).flatten(1)[:, :3]

    x = images(9)
    want = expected(model, x)
    assert_same(InputXGradient(model).attribute(x, target=1), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_a_model_that_transforms_functions() -> None:
    net = Net()

    def model(x: Tensor) -> Tensor:
        tangent = torch.func.jvp(net, (x,), (torch.ones_like(x),))[1]
        return tangent + torch.func.grad(lambda z: net(z).sum())(x).flatten(1)[:, :3]

    x = images(9)
    want = expected(model, x)
    assert_same(InputXGradient(model).attribute(x, target=1), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_of_checkpoints(rows: int, reentrant: bool) -> None:
    net, x = Net(), images(rows)

    def model(x: Tensor) -> Tensor:
        hidden = checkpoint(lambda z: net.norm(net.conv(z)).relu(), x, use_reentrant=reentrant)
        return net.last(hidden.mean((2, 3)))

    if reentrant:  # torch itself refuses gradients of chosen inputs there
        with pytest.raises(RuntimeError, match="use_reentrant"):
            InputXGradient(model).attribute(x, target=1)
        return
    want = expected(net, x)
    assert_same(InputXGradient(model).attribute(x, target=1), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_weights_that_depend_on_what_is_explained() -> None:
    net = Net()

    def model(x: Tensor, style: Tensor) -> Tensor:
        norm = net.norm
        hidden = F.batch_norm(net.conv(x), norm.running_mean, norm.running_var, style.mean(0), norm.bias)
        return net.last(hidden.mean((2, 3)))

    x, style = images(9), noise(9, 8)
    with config(backend="reference"):
        want = Saliency(model).attribute((x, style), target=1)
    found = Saliency(model).attribute((x, style), target=1)
    assert float(found[1].abs().min()) > 0
    assert_same(found, want, rtol=1e-4, atol=1e-6)


def test_a_model_that_takes_gradients_of_its_weights_is_refused() -> None:
    net = Net()

    def model(x: Tensor) -> Tensor:
        out = net(x)
        (gradient,) = torch.autograd.grad(out.sum(), net.norm.weight, create_graph=True)
        return out * gradient.sum()

    with pytest.raises(RuntimeError, match=r"batch normalisation's weights itself.*backend=\"reference\""):
        InputXGradient(model).attribute(images(9), target=1)
    with config(backend="reference"):
        assert InputXGradient(model).attribute(images(9), target=1).shape == (9, 3, 16, 16)


def test_every_limit_gives_the_same() -> None:
    model, x = Net(), images(9)
    whole = IntegratedGradients(model).attribute(x, target=1, n_steps=6)
    for size in (1, 4, 9):
        cut = IntegratedGradients(model).attribute(x, target=1, n_steps=6, internal_batch_size=size)
        assert_same(cut, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))
    assert_same(DeepLift(model).attribute(x, target=1).sum((1, 2, 3)), (model(x) - model(x * 0))[:, 1].detach(), 1e-4)
