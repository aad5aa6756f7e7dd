"""The ideal loops of the methods that fit a linear model to coalitions that every example has of its own.

Coalitions are drawn as captum draws them, and those of an example that are alike run once. One input tensor of a few
features; see ideal.py for `rows` and the rest.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .ideal import Model, Tensors, cuts


@torch.no_grad()
def values(model: Model, x: Tensor, coalitions: Tensor, rows: int, target: int | None) -> Tensor:
    """The explained numbers at coalitions bool [B, n, M] of the elements: [B, n]."""
    count = coalitions.shape[2]
    bits = 1 << torch.arange(count, device=x.device)
    examples = torch.arange(len(x), device=x.device)[:, None]
    numbers, place = ((coalitions * bits).sum(2) + (examples << count)).unique(return_inverse=True)
    found = []
    for part in cuts(len(numbers), rows):
        some = numbers[part]
        batch = x[some >> count] * (some[:, None] & bits != 0)
        out = model(batch)
        found.append((out if target is None else out[:, target]).flatten())
    return torch.cat(found)[place]


def draws(x: Tensor, n: int, draw: Callable[[], Tensor]) -> Tensor:
    """draw() for each example, and behind each what fitting a model to it draws in captum: [B, n, M]."""
    found = torch.empty(len(x), n, x.shape[1], dtype=torch.bool)
    for each in found:
        each[:] = draw()
        torch.empty((), dtype=torch.int64).random_()
        torch.empty(x.shape[1] + 1).uniform_()
    return found.to(x.device)


def kernel_shap(model: Model, inputs: Tensors, rows: int, *, n_samples: int, target: int | None = None) -> Tensors:
    """KernelShap from a baseline of zero: the values at the two ends are met exactly."""
    (x,) = inputs
    count = x.shape[1]
    sizes = torch.arange(count)
    likely = (count - 1) / (sizes * (count - sizes)).float()
    likely[0] = 0

    def draw() -> Tensor:
        chosen = torch.ones(n_samples, count, dtype=torch.bool)
        chosen[1] = False
        for row in chosen[2:]:
            size = int(torch.multinomial(likely, 1, replacement=True))
            keys = torch.randn(count)
            row[:] = keys > keys.kthvalue(count - size).values
        return chosen

    coalitions = draws(x, n_samples, draw)
    found = values(model, x, coalitions, rows, target).double()
    total = (found[:, :1] - found[:, 1:2]) / count
    members = coalitions[:, 2:].double()
    left = found[:, 2:] - found[:, 1:2] - members.sum(2) * total
    # The last feature has what the others lack of the total.
    members = members[..., :-1] - members[..., -1:]
    across = members.mT
    scores = torch.linalg.solve(across @ members, across @ left[..., None])[..., 0]
    return ((torch.cat([scores, -scores.sum(1, keepdim=True)], 1) + total).float(),)


def lime(model: Model, inputs: Tensors, rows: int, *, n_samples: int, target: int | None = None) -> Tensors:
    """Lime from a baseline of zero, with scikit-learn's Lasso."""
    from sklearn.linear_model import Lasso  # no other workload needs it

    (x,) = inputs
    even = torch.full((n_samples, x.shape[1]), 0.5)
    coalitions = draws(x, n_samples, lambda: torch.bernoulli(even) != 0)
    found = values(model, x, coalitions, rows, target)
    members = coalitions.to(x.dtype)
    near = torch.cosine_similarity(members * x[:, None], x[:, None], dim=2)
    weights = ((1 - near).square() / -2).exp()
    each: Any = zip(members.cpu().numpy(), found.cpu().numpy(), weights.cpu().numpy(), strict=True)
    fits = [torch.from_numpy(Lasso(alpha=0.01).fit(*one).coef_) for one in each]
    return (torch.stack(fits).to(x),)


def exactly(loop: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """A loop of Shapley values for a method that n_samples make exact."""

    def run(model: Model, inputs: Tensors, rows: int, *, n_samples: int, **arguments: Any) -> Tensors:
        return loop(model, inputs, rows, **arguments)

    return run
