"""Models that would show how images lie inside: they share memory, write over it, draw, or read it in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# What follows a convolution [B, 8, 6, 6] -> [B, ...].
Tail = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A convolution, a tail that may show its layout, and sums."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.tail = nn.Conv2d(3, 8, 3, padding=1), tail
        self.last = nn.Conv2d(8, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tail(self.conv(x))
        if y.dim() == 4 and y.shape[1] == 8:
            y = torch.tanh(self.last(y))
        flat = y.reshape(len(x), -1)
        ramp = torch.linspace(-1, 1, flat.shape[1])
        return torch.stack([(flat * ramp).mean(1), flat.pow(2).mean(1)], 1)


class ViewsBothWays(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view(len(x), -1).mul(3).view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (gradient.view(len(x), -1) * x.view(len(x), -1).sign() * 3).view(x.shape)


def written_view(y: Tensor) -> Tensor:
    y.view(len(y), -1).mul_(2)
    return y


def written_flat(y: Tensor) -> Tensor:
    flat = torch.flatten(y, 1)
    flat.add_(1)
    return torch.cat([flat, y.reshape(len(y), -1)], 1)


def written_behind_a_view(y: Tensor) -> Tensor:
    flat = y.view(len(y), -1)
    y.relu_()
    return flat * 2


def views_of_views(y: Tensor) -> Tensor:
    a = y.contiguous()
    b = a.view(len(y), 8, 36)
    c = y.view(len(y), -1)
    b[:, 2].mul_(3)
    c[:, :7].add_(1)
    return y + a


def a_copy_is_none(y: Tensor) -> Tensor:
    z = y.permute(0, 2, 3, 1).reshape(len(y), -1)
    z.add_(1)
    return torch.cat([y.flatten(1), z], 1)


def written_in_place(y: Tensor) -> Tensor:
    y = y * 1
    y[:, 0] = 0
    y[:, :, 1:3] *= 2
    y[y > 1] = 0.5
    y.select(1, 3).copy_(y[:, 4])
    torch.add(y, 1, out=y) if not y.requires_grad else y.add_(1)
    return y.masked_fill_(y < -1, 0.25)


def dimensions_in_place(y: Tensor) -> Tensor:
    y = y.clone()
    y.unsqueeze_(1)
    y.squeeze_(1)
    return y.transpose_(2, 3)


def draws(y: Tensor) -> Tensor:
    noise = torch.rand_like(y) + torch.empty_like(y).bernoulli_(0.5)
    copy = y.clone().detach()
    copy.uniform_()
    y = F.dropout(y, 0.3, training=True) + F.dropout2d(y, 0.3, training=True)
    return y * noise + copy + F.rrelu(y, training=True)


def by_steps(y: Tensor) -> Tensor:
    n = len(y)
    windows = y.as_strided((n, 8, 5, 5), (8 * 36, 36, 6, 1))
    return windows.reshape(n, -1) + y.unfold(2, 5, 1).unfold(3, 5, 1)[..., 0, 0].reshape(n, -1)[:, :1]


def other_ranks(y: Tensor) -> Tensor:
    deep = y + torch.arange(2.0).reshape(2, 1, 1, 1, 1)
    means = (
        y.mean(1).view(len(y), -1)
        + y.sum((2, 3)).view(len(y), -1)[:, :1]
        + y.mean((2, 3), keepdim=True).view(-1, 8)[:, :1]
    )
    return deep.transpose(0, 1).reshape(len(y), -1).mean(1, keepdim=True) * 0.1 + means * 0.1


def many_layers(y: Tensor) -> Tensor:
    a = F.group_norm(y, 2) + F.instance_norm(y) + F.layer_norm(y, [8, 6, 6])
    b = F.interpolate(F.max_pool2d(a, 2), scale_factor=2, mode="bilinear") + F.avg_pool2d(y, 3, 1, 1)
    c = F.pad(b, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1] + F.adaptive_max_pool2d(y, 6)
    d = F.pixel_unshuffle(F.pixel_shuffle(c, 2), 2).softmax(1) + F.local_response_norm(y, 3)
    return F.hardswish(torch.cat([d[:, :3], y[:, 3:]], 1)) + F.prelu(y, torch.full((8,), 0.1))


def transposed(y: Tensor) -> Tensor:
    torch.manual_seed(1)
    up = F.conv_transpose2d(y, torch.randn(8, 4, 2, 2), stride=2)
    return F.conv2d(torch.cat([up, F.interpolate(y, scale_factor=2.0)[:, :4]], 1), torch.randn(8, 1, 3, 3), groups=8)


def weights_of_inputs(y: Tensor) -> Tensor:
    weight = y.mean(0).mean((1, 2)).reshape(1, 8, 1, 1).expand(8, 8, 3, 3)
    return F.conv2d(y, weight, padding=1)


def weights_that_change(y: Tensor) -> Tensor:
    torch.manual_seed(1)
    weight = torch.randn(8, 8, 3, 3)
    with torch.no_grad():
        first = F.conv2d(y, weight, padding=1)
        weight.mul_(-2)
        return y + first * F.conv2d(y, weight, padding=1)


def parts(y: Tensor) -> Tensor:
    a, b = y.chunk(2, 1)
    n = len(y)
    shuffled = torch.stack([a, b], 2).view(n, 8, 6, 6)
    return shuffled + torch.einsum("nchw,cd->ndhw", y, torch.eye(8)) + y.movedim(1, -1).contiguous().movedim(-1, 1)


def vmapped(y: Tensor) -> Tensor:
    return torch.func.vmap(lambda one: one.view(-1).cumsum(0).view(one.shape))(y)


def own_gradient(y: Tensor) -> Tensor:
    return ViewsBothWays.apply(y)


def again(y: Tensor) -> Tensor:
    return checkpoint(lambda t: t.view(len(t), -1).tanh().view(t.shape), y, use_reentrant=False)


def without_gradient(y: Tensor) -> Tensor:
    with torch.no_grad():
        mask = (y.view(len(y), -1) > 0).view(y.shape)
    return y * mask


def listed(y: Tensor) -> Tensor:
    both = [y * 1, y * 2]
    torch._foreach_mul_(both, 2.0)
    return both[0] + both[1]


TAILS: dict[str, Tail] = {
    tail.__name__: tail
    for tail in (
        *(written_view, written_flat, written_behind_a_view, views_of_views, a_copy_is_none, written_in_place),
        *(dimensions_in_place, draws, by_steps, other_ranks, many_layers, transposed, weights_of_inputs),
        *(weights_that_change, parts, vmapped, own_gradient, again, without_gradient, listed),
    )
}
