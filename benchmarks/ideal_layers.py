"""The ideal loops of the layer methods: the model in two parts, cut at the layer.

What comes before the layer runs without a graph wherever no gradient of the inputs is wanted. The loops take the cut
that a workload's model has there; see ideal.py for `rows` and the rest.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .ideal import Model, Tensors, cuts, gauss_legendre, gradients
from .ideal_rules import GuidedReLU
from .models import BasicBlock

Cut = Callable[[Any], tuple[Model, Model]]  # a model -> what runs up to the layer, and what runs from there on
Loop = Callable[..., Tensors]


def chain(at: int) -> Cut:
    """The cut of an `nn.Sequential` before its module `at`."""
    return lambda model: (model[:at], model[at:])


def top(model: Any) -> tuple[Model, Model]:
    """The cut of `models.Dlrm` before its top MLP."""
    return model.interact, lambda x: torch.sigmoid(model.top(x))


def embeddings(model: Any) -> tuple[Model, Model]:
    """The cut of `models.Bert` behind its embeddings."""
    bert, classify = model.classifier.bert, model.classifier.classifier

    def after(states: Tensor, mask: Tensor) -> Tensor:
        keys = mask.bool()[:, None, None].expand(-1, 1, mask.shape[1], -1)
        scores: Tensor = classify(bert.pooler(bert.encoder(states, attention_mask=keys)[0]))
        return scores

    return bert.embeddings, after


def conductance(cut: Cut) -> Loop:
    """LayerConductance from a baseline of zero; cuts examples, so that each chunk has all points.

    The gradient at the last point is not needed.
    """

    def loop(model: nn.Module, inputs: Tensors, rows: int, *, n_steps: int, **_: Any) -> Tensors:
        before, after = cut(model)
        nodes, _weights = gauss_legendre(n_steps + 1, inputs[0].dtype, inputs[0].device)

        def chunk(part: Tensors) -> Tensor:
            with torch.no_grad():
                values = before(*[(nodes.view(-1, *[1] * x.dim()) * x).flatten(0, 1) for x in part])
            batch = len(part[0])
            (grad,) = gradients(after, (values[:-batch],), None)
            changes = values[batch:] - values[:-batch]
            return changes.mul_(grad).view(-1, batch, *values.shape[1:]).sum(0)

        sizes = cuts(len(inputs[0]), max(1, rows // (n_steps + 1)))
        parts = [chunk(tuple(x[examples] for x in inputs)) for examples in sizes]
        return (parts[0] if len(parts) == 1 else torch.cat(parts),)

    return loop


def integrated_gradients(cut: Cut) -> Loop:
    """LayerIntegratedGradients from a baseline of zero, for one input tensor and at most one more argument."""

    def loop(
        model: nn.Module,
        inputs: Tensors,
        rows: int,
        *,
        n_steps: int,
        target: int | None = None,
        additional_forward_args: Tensor | None = None,
    ) -> Tensors:
        before, after = cut(model)
        (x,) = inputs
        with torch.no_grad():
            values = before(torch.cat((x, torch.zeros_like(x[:1]))))
        base, change = values[-1:], values[:-1] - values[-1:]
        nodes, weights = gauss_legendre(n_steps, values.dtype, values.device)
        total = torch.zeros_like(change)
        for points in cuts(n_steps, max(1, rows // len(x))):
            share = nodes[points].view(-1, *[1] * change.dim())
            extra = () if additional_forward_args is None else (additional_forward_args.repeat(len(share), 1),)
            lines = torch.addcmul(base, share, change).flatten(0, 1)
            (grad,) = gradients(lambda values, extra=extra: after(values, *extra), (lines,), target)
            total += torch.tensordot(weights[points], grad.unflatten(0, (-1, len(x))), dims=1)
        return (total.mul_(change),)

    return loop


def activation(cut: Cut) -> Loop:
    """LayerActivation."""

    @torch.no_grad()
    def loop(model: nn.Module, inputs: Tensors, rows: int) -> Tensors:
        before, _ = cut(model)
        parts = [before(*[x[examples] for x in inputs]) for examples in cuts(len(inputs[0]), rows)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts),)

    return loop


def weighed(values: Tensor, grad: Tensor) -> Tensor:
    """A layer's values weighed by the mean of its gradient over places, summed over channels: [B, 1, H, W]."""
    return (grad.mean((2, 3), keepdim=True) * values).sum(1, keepdim=True)


def grad_cam(cut: Cut) -> Loop:
    """LayerGradCam."""

    def loop(model: nn.Module, inputs: Tensors, rows: int, *, target: int | None = None) -> Tensors:
        before, after = cut(model)
        with torch.no_grad():
            values = before(*inputs)
        (grad,) = gradients(after, (values,), target)
        return (weighed(values.detach(), grad),)

    return loop


def guided_forward(module: nn.Module, x: Tensor) -> Tensor:
    """ResNet-18 or a part of it, with guided ReLUs."""
    if isinstance(module, nn.ReLU):
        guided: Tensor = GuidedReLU.apply(x)  # type: ignore[no-untyped-call]
        return guided
    if isinstance(module, BasicBlock):
        return guided_forward(module.relu, guided_forward(module.residual, x) + guided_forward(module.shortcut, x))
    if isinstance(module, nn.Sequential):
        for inner in module:
            x = guided_forward(inner, x)
        return x
    found: Tensor = module(x)
    return found


def guided_grad_cam(cut: Cut) -> Loop:
    """GuidedGradCam of a layer without ReLUs behind it: the guided way back goes on from the layer's plain gradient."""

    def loop(model: nn.Module, inputs: Tensors, rows: int, *, target: int | None = None) -> Tensors:
        before, after = cut(model)
        leaf = inputs[0].detach().requires_grad_()
        values = guided_forward(before, leaf)  # type: ignore[arg-type]
        (grad,) = gradients(after, (values.detach(),), target)
        (guided,) = torch.autograd.grad(values, leaf, grad)
        scores = weighed(values.detach(), grad).relu_()
        return (guided * interpolate(scores, guided.shape[2:]),)

    return loop
