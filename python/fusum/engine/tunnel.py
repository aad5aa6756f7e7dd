"""NoiseTunnel: scores of noisy copies, folded to moments while they come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .. import ops, progress
from ..errors import ArgumentError
from ..plan import points as draw
from ..plan.arguments import as_extra, check_inputs
from ..plan.spec import Noise, Other
from .batch import Tensors

Scores = tuple[Tensor | None, ...]
# samples, noise, stdevs -> (first copy, scores of some copies, their deltas), in order.
Score = Callable[[int, Tensors, tuple[float, ...]], Iterable[tuple[int, Scores, Tensor | None]]]


def smooth(noise: Noise, inputs: Tensors, score: Score) -> tuple[Scores, Tensor | None]:
    """The moments of the scores of noisy copies, and the copies' deltas, one partition after the other."""
    stdevs = noise.stdevs if isinstance(noise.stdevs, tuple) else (noise.stdevs,) * len(inputs)
    if len(stdevs) != len(inputs):
        raise ArgumentError(
            f"stdevs: got {len(stdevs)}; expected one number, or one for each of the {len(inputs)} inputs"
        )
    examples = next(len(x) for x in inputs if x is not None)
    moments = Moments(noise.kind, noise.samples)
    deltas = []
    full, rest = divmod(noise.samples, noise.partition)
    for samples in [noise.partition] * full + [rest] * bool(rest):
        drawn = draw.noise(inputs, samples)
        for start, scores, delta in score(samples, drawn, stdevs):
            moments.add(scores, start, samples, examples)
            if delta is not None:
                deltas.append(delta)
    return moments.result(), torch.cat(deltas) if deltas else None


class Moments:
    """Running sums of scores, and of their squares where the kind needs them."""

    __slots__ = ("_dtypes", "_kind", "_samples", "_totals")

    def __init__(self, kind: str, samples: int) -> None:
        self._kind, self._samples = kind, samples
        self._totals: list[tuple[Tensor, Tensor | None] | None] = []
        self._dtypes: list[torch.dtype | None] = []

    def add(self, scores: Scores, start: int, samples: int, examples: int) -> None:
        """Add the scores of copies from start on, samples copies an example side by side."""
        if not self._totals:
            self._totals = [None if s is None else self._zeros(s, examples) for s in scores]
            self._dtypes = [None if s is None else s.dtype for s in scores]
        for total, s in zip(self._totals, scores, strict=True):
            if total is not None and s is not None:
                ops.moments(total[0], total[1], s, samples, start)

    def _zeros(self, scores: Tensor, examples: int) -> tuple[Tensor, Tensor | None]:
        # In float64: samples run into the thousands, and the variance is a difference of two large sums.
        total = torch.zeros((examples, *scores.shape[1:]), dtype=torch.float64, device=scores.device)
        return total, None if self._kind == "smoothgrad" else torch.zeros_like(total)

    def result(self) -> Scores:
        """Mean, mean square or variance over the samples, in the scores' dtype."""
        return tuple(
            None if total is None else self._finish(*total).to(dtype)
            for total, dtype in zip(self._totals, self._dtypes, strict=True)
        )

    def _finish(self, total: Tensor, squares: Tensor | None) -> Tensor:
        if squares is None:
            return total / self._samples
        if self._kind == "smoothgrad_sq":
            return squares / self._samples
        return squares / self._samples - (total / self._samples) ** 2


def smooth_other(noise: Noise, other: Other, inputs: Any) -> Any:
    """A tunnel over a method without a plan: its own attribute is called on the noisy copies."""
    xs = inputs if isinstance(inputs, tuple) else (inputs,)
    examples = check_inputs(xs, any_type=True)
    progress.expect(noise.samples * examples)
    real = tuple(x if x is None or x.is_floating_point() else x.float() for x in xs)
    expanded: dict[int, dict[str, Any]] = {}
    form: list[bool] = []

    def score(samples: int, drawn: Tensors, stdevs: tuple[float, ...]) -> Iterable[tuple[int, Scores, Tensor | None]]:
        if samples not in expanded:  # once for all partitions of one size: captum draws their baselines once
            expanded[samples] = _expand(other.kwargs, xs, samples, noise.draw_baselines)
        noisy = tuple(
            None
            if x is None or z is None
            else ops.noisy_copies(x, z, stdev, samples, 0).requires_grad_(other.wants_gradient)
            for x, z, stdev in zip(real, drawn, stdevs, strict=True)
        )
        found = other.attribute(noisy if isinstance(inputs, tuple) else noisy[0], **expanded[samples])
        scores, delta = found if other.returns_delta else (found, None)
        progress.advance(samples * examples)
        form[:] = [isinstance(scores, tuple)]
        parts = scores if isinstance(scores, tuple) else (scores,)
        yield 0, tuple([s if s is None else s.detach() for s in parts]), delta

    with torch.no_grad():  # the inner method turns gradients on where it needs them
        scores, delta = smooth(noise, real, score)
    result = scores if form[0] else scores[0]
    return (result, delta) if other.returns_delta else result


def _expand(kwargs: dict[str, Any], inputs: Tensors, samples: int, drawn: bool) -> dict[str, Any]:
    """kwargs for samples copies of every example, copies side by side, as captum hands them to the inner method."""
    expanded = dict(kwargs)
    if kwargs.get("additional_forward_args") is not None:
        extra = as_extra(kwargs["additional_forward_args"])
        expanded["additional_forward_args"] = tuple(_copies(a, samples) for a in extra)
    target = kwargs.get("target")
    if isinstance(target, list):
        expanded["target"] = [t for t in target for _ in range(samples)]
    elif isinstance(target, Tensor) and target.numel() > 1:
        expanded["target"] = _copies(target, samples)
    if "baselines" in kwargs:
        expanded["baselines"] = _expand_baselines(kwargs["baselines"], inputs, samples, drawn)
    mask = kwargs.get("feature_mask")
    if mask is not None:
        masks = mask if isinstance(mask, tuple) else (mask,)
        copied = tuple(_copies(m, samples) if len(m) > 1 else m for m in masks)
        expanded["feature_mask"] = copied if isinstance(mask, tuple) else copied[0]
    return expanded


def _expand_baselines(baselines: Any, inputs: Tensors, samples: int, drawn: bool) -> tuple[Any, ...]:
    if baselines is None:
        return tuple(0 for _ in inputs)
    items = baselines if isinstance(baselines, tuple) else (baselines,)
    if len(items) != len(inputs):
        raise ArgumentError(f"baselines: got {len(items)}; expected one for each of the {len(inputs)} inputs")
    expanded = []
    for b, x in zip(items, inputs, strict=True):
        if isinstance(b, Tensor) and x is not None and drawn:
            b = b[draw.choices(len(b), len(x) * samples, b.device)]
        elif isinstance(b, Tensor) and x is not None and len(b) == len(x) > 1:
            b = _copies(b, samples)
        expanded.append(b)
    return tuple(expanded)


def _copies(a: Any, samples: int) -> Any:
    return a.repeat_interleave(samples, dim=0) if isinstance(a, Tensor) and a.dim() else a
