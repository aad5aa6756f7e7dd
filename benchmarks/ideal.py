"""The ideal loops: each method by hand in plain PyTorch, with the fewest model evaluations and one autograd root.

They are the yardstick of the benchmarks, so they use nothing of fusum. `rows` is the chunk: the most rows that the
model sees at once. The other arguments have captum's names and the random draws captum's order.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Model = Callable[..., Tensor]
Tensors = tuple[Tensor, ...]


@cache
def gauss_legendre(steps: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], each [steps]."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy(0.5 * (1 + nodes)).to(device, dtype), torch.from_numpy(0.5 * weights).to(device, dtype)


def cuts(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover range(total)."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def gradients(model: Model, inputs: Tensors, target: int | None) -> Tensors:
    """The gradients of each row's output with respect to that row, by one autograd root."""
    leaves = tuple(x.requires_grad_() for x in inputs)
    # TorchScript's optimising executor compiles again for new batch sizes and is no faster after.
    scripted = isinstance(model, torch.jit.ScriptModule)
    plain = torch.jit.optimized_execution(False) if scripted else nullcontext()  # type: ignore[attr-defined]
    with plain:
        outputs = model(*leaves)
        return torch.autograd.grad((outputs if target is None else outputs[:, target]).sum(), leaves)


def gradients_in_chunks(model: Model, inputs: Tensors, rows: int, target: int | None) -> Tensors:
    """`gradients` with at most `rows` rows at once."""
    parts = [gradients(model, tuple(x[cut] for x in inputs), target) for cut in cuts(len(inputs[0]), rows)]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))


def mean_over_samples(values: Tensor, samples: int) -> Tensor:
    """[B * samples, ...] -> [B, ...]."""
    return values.view(-1, samples, *values.shape[1:]).mean(1)


def integrated_gradients(
    model: Model, inputs: Tensors, rows: int, *, n_steps: int, target: int | None = None
) -> Tensors:
    """Integrated gradients from a baseline of zero; cuts points while a chunk holds all examples, else examples."""
    nodes, weights = gauss_legendre(n_steps, inputs[0].dtype, inputs[0].device)
    totals = tuple(torch.zeros_like(x) for x in inputs)
    for examples in cuts(len(inputs[0]), rows):
        part = tuple(x[examples] for x in inputs)
        batch = len(part[0])
        for points in cuts(n_steps, max(1, rows // batch)):
            lines = tuple((nodes[points].view(-1, *[1] * x.dim()) * x).flatten(0, 1) for x in part)
            for total, grad in zip(totals, gradients(model, lines, target), strict=True):
                total[examples] += torch.tensordot(weights[points], grad.unflatten(0, (-1, batch)), dims=1)
    return tuple(total.mul_(x) for total, x in zip(totals, inputs, strict=True))


def saliency(model: Model, inputs: Tensors, rows: int, *, target: int | None = None) -> Tensors:
    """Absolute gradients."""
    return tuple(grad.abs_() for grad in gradients_in_chunks(model, inputs, rows, target))


def gradient_shap(
    model: Model, inputs: Tensors, rows: int, *, baselines: Tensor, n_samples: int, target: int | None = None
) -> Tensors:
    """Gradients at random points between each input and random baselines, for one input tensor and no noise."""
    (x,) = inputs
    count = len(x) * n_samples
    base = baselines[torch.from_numpy(np.random.choice(len(baselines), count)).to(x.device)]
    change = x.repeat_interleave(n_samples, dim=0) - base
    share = torch.from_numpy(np.random.uniform(0.0, 1.0, count)).to(x).view(-1, *[1] * (x.dim() - 1))
    (grad,) = gradients_in_chunks(model, (torch.addcmul(base, share, change),), rows, target)
    return (mean_over_samples(grad.mul_(change), n_samples),)


def noise_tunnel(inner: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """SmoothGrad over another of these loops."""

    def smooth(
        model: Model, inputs: Tensors, rows: int, *, nt_samples: int, stdevs: float, **arguments: Any
    ) -> Tensors:
        copies = [x.repeat_interleave(nt_samples, dim=0) for x in inputs]
        noisy = tuple(torch.add(x, torch.randn_like(x), alpha=stdevs) for x in copies)
        return tuple(mean_over_samples(scores, nt_samples) for scores in inner(model, noisy, rows, **arguments))

    return smooth
