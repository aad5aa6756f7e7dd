"""The whole road on real images: train a small network, keep only its TorchScript file, explain it, check, draw.

`make demo` runs this file; everything it makes goes to demo_out/.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import fusum
import fusum.attr

OUT = Path("demo_out")
TOLERANCE = 0.05  # largest share of a change in the logit that integrated gradients may fail to explain


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 images of 8x8 pixels, scaled to 0..1: training and held-out images, then their labels."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(data.target)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    return parts[0], parts[1], parts[2], parts[3]


def train(images: Tensor, labels: Tensor, epochs: int = 12) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 3 * 3, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        for rows in order.split(64):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if (epoch + 1) % 4 == 0:
            print(f"  epoch {epoch + 1} of {epochs}, loss {loss.item():.4f}", flush=True)
    return model.eval()


def calls(attr: Any, model: Any, images: Tensor, target: Tensor, references: Tensor) -> dict[str, Callable[[], Any]]:
    """One call per method. `attr` is fusum.attr or captum.attr: the classes have the same names and arguments."""
    ig, shap = attr.IntegratedGradients(model), attr.GradientShap(model)
    tunnel = attr.NoiseTunnel(attr.IntegratedGradients(model))
    common: dict[str, Any] = {"target": target, "return_convergence_delta": True}
    return {
        "IntegratedGradients": lambda: ig.attribute(images, n_steps=50, **common),
        "NoiseTunnel": lambda: tunnel.attribute(images, nt_samples=8, stdevs=0.1, n_steps=16, **common),
        "GradientShap": lambda: shap.attribute(images, baselines=references, n_samples=25, stdevs=0.05, **common),
    }


def run(call: Callable[[], Any]) -> tuple[Tensor, Tensor, float]:
    """Scores, deltas and seconds of the second of two calls from the same seeds (the first one warms up)."""
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        start = time.perf_counter()
        scores, deltas = call()
        seconds = time.perf_counter() - start
    return scores.detach(), deltas.detach(), seconds


def check(name: str, deltas: Tensor, change: Tensor) -> str:
    """Completeness: an image's scores add up to the change of its logit from the baseline; delta is what is missing."""
    per_image = deltas.reshape(len(change), -1)
    if name == "GradientShap":  # one random point a sample: exact only on average, so report the average
        return f"mean delta {per_image.mean():+.3f} (a random estimate; mean logit change {change.mean():.1f})"
    share = per_image.abs().amax(1).max().item() / change.abs().mean().item()
    if not share <= TOLERANCE:
        raise SystemExit(f"{name}: completeness is broken: a delta is {share:.1%} of the mean logit change")
    return f"largest delta {per_image.abs().max():.4f} ({share:.2%} of the mean logit change; limit {TOLERANCE:.0%})"


def draw(path: Path, images: Tensor, labels: Tensor, predicted: Tensor, scores: dict[str, Tensor]) -> None:
    """One column a digit: red pixels speak for the predicted class, blue ones against it; a line outlines it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = [int((labels == digit).nonzero()[0]) for digit in range(10)]
    figure, axes = plt.subplots(1 + len(scores), 10, figsize=(12.5, 5.2), layout="constrained")
    for column, image in enumerate(columns):
        axes[0, column].imshow(images[image, 0], cmap="gray_r", vmin=0, vmax=1)
        axes[0, column].set_title(f"predicted {predicted[image]}", fontsize=10)
        for row, values in enumerate(scores.values(), start=1):
            heat = values[image, 0] / values[image].abs().max()
            drawn = axes[row, column].imshow(heat, cmap="RdBu_r", vmin=-1, vmax=1)
            axes[row, column].contour(images[image, 0], levels=[0.5], colors="0.35", linewidths=0.8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color="0.8")
    names = ("image", "Integrated\nGradients", "NoiseTunnel of\nInt. Gradients", "GradientShap")
    for axis, label in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11, labelpad=10)
    bar = figure.colorbar(drawn, ax=axes[1:, :], shrink=0.7, aspect=25, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["against", "0", "for"])
    bar.outline.set_visible(False)
    figure.suptitle("Which pixels made the network say so? Scores for the predicted class, each image on its own scale")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def compare(name: str, call: Callable[[], Any], scores: Tensor, seconds: float) -> None:
    theirs, _, their_seconds = run(call)
    torch.testing.assert_close(scores, theirs, rtol=1e-3, atol=1e-4)
    print(f"  {name:20} captum {their_seconds:7.3f} s   fusum {seconds:7.3f} s   {their_seconds / seconds:5.1f} x")


def main() -> None:
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(0)

    train_images, images, train_labels, labels = digits()
    print(f"1. Training a small network on {len(train_images)} images of digits")
    model = train(train_images, train_labels)
    accuracy = (model(images).argmax(1) == labels).float().mean().item()
    print(f"  accuracy on {len(images)} held-out images: {accuracy:.1%}")

    print(f"2. Saving it as TorchScript, {OUT / 'digits.pt'}; from here on only that file is used")
    torch.jit.trace(model, images[:2]).save(OUT / "digits.pt")
    deployed = torch.jit.load(OUT / "digits.pt")

    reason = fusum.ops.why_not()
    kernels = "in use" if reason is None else f"not in use: {reason}"
    print(f"3. Explaining all {len(images)} held-out images (kernels {kernels})")
    references = train_images[:50]
    with torch.no_grad():
        outputs = deployed(images)
        predicted = outputs.argmax(1)
        rows = torch.arange(len(images))
        change = outputs[rows, predicted] - deployed(torch.zeros_like(images))[rows, predicted]
    scores: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    for name, call in calls(fusum.attr, deployed, images, predicted, references).items():
        scores[name], deltas, seconds[name] = run(call)
        print(f"  {name:20} {len(images) / seconds[name]:9,.0f} rows/s   {check(name, deltas, change)}")

    print("4. The same calls in captum")
    if importlib.util.find_spec("captum") is None:
        print("  captum is not installed here, so nothing is compared (.venv/bin/pip install captum, then make demo)")
    else:
        captum_attr = importlib.import_module("captum.attr")
        for name, call in calls(captum_attr, deployed, images, predicted, references).items():
            compare(name, call, scores[name], seconds[name])

    print(f"5. Writing {OUT / 'heatmaps.png'} and {OUT / 'attributions.npz'}")
    draw(OUT / "heatmaps.png", images, labels, predicted, scores)
    arrays = {"images": images, "labels": labels, "predicted": predicted, **scores}
    np.savez_compressed(OUT / "attributions.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})


if __name__ == "__main__":
    main()
