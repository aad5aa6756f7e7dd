"""The whole road on real images: a small network as a TorchScript file, digits as Parquet, jobs, checks, a picture.

`make demo` runs this file; everything it makes goes to demo_out/. The job is in digits.toml, beside this file.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import fusum
import fusum.attr
from fusum.__main__ import main as command

OUT = Path("demo_out")
FILES = OUT / "digits"
# The flags that a method's job has besides digits.toml; what they say is what `calls` gives the classes.
JOBS = {
    "IntegratedGradients": [],
    "NoiseTunnel": [
        "--argument=attribution_method=IntegratedGradients", "--argument=nt_samples=8", "--argument=stdevs=0.1",
        "--argument=n_steps=16",
    ],
    "GradientShap": [
        "--argument=n_samples=25", "--argument=stdevs=0.05", f"--baselines={FILES / 'references.parquet'}",
    ],
}  # fmt: skip
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


def write_images(path: Path, images: Tensor) -> None:
    """Images as Parquet: a number and a list of 64 pixels a row."""
    pixels = pa.FixedSizeListArray.from_arrays(images.flatten().numpy(), images[0].numel())
    pq.write_table(pa.table({"number": np.arange(len(images)), "image": pixels}), path)


def job(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """`fusum run digits.toml` with a method's flags; predicted classes, scores and deltas, read from its Parquet."""
    output = FILES / name
    toml = str(Path(__file__).with_suffix(".toml"))
    if command(["run", toml, f"--method={name}", f"--output={output}", "--overwrite", *JOBS[name]]):
        raise SystemExit(f"{name}: the job did not end well")
    table = pq.read_table(output / "parts")
    assert table["id"].to_pylist() == list(range(len(table)))
    scores = torch.from_numpy(table["attributions"].combine_chunks().flatten().to_numpy().copy())
    target, deltas = (torch.from_numpy(table[column].to_numpy().copy()) for column in ("target", "convergence_delta"))
    return target, scores.reshape(-1, 1, 8, 8), deltas


def check(name: str, deltas: Tensor, change: Tensor) -> str:
    """Completeness: an image's scores add up to the change of its logit from the baseline; delta is what is missing."""
    if name == "GradientShap":  # one random point a sample: exact only on average, so report the average
        return f"mean delta {deltas.mean():+.3f} (a random estimate; mean logit change {change.mean():.1f})"
    share = deltas.abs().max().item() / change.abs().mean().item()
    if not share <= TOLERANCE:
        raise SystemExit(f"{name}: completeness is broken: a delta is {share:.1%} of the mean logit change")
    return f"largest delta {deltas.abs().max():.4f} ({share:.2%} of the mean logit change; limit {TOLERANCE:.0%})"


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


def compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """One call in both libraries: the same scores, and the time of each."""
    scores, _, seconds = run(ours)
    their_scores, _, their_seconds = run(theirs)
    # On average: where rounding takes a ReLU's input to the other side of zero, some scores of an image differ by more.
    apart = ((scores - their_scores).abs().mean() / their_scores.abs().mean()).item()
    if not apart <= 1e-4:
        raise SystemExit(f"{name}: scores differ from captum's by {apart:.0e} of their mean")
    times = f"captum {their_seconds:7.3f} s   fusum {seconds:7.3f} s   {their_seconds / seconds:5.1f} x"
    print(f"  {name:20} {times}   scores apart by {apart:.0e}")


def compare_all(model: Any, images: Tensor, predicted: Tensor, references: Tensor, scores: Tensor) -> None:
    """The jobs' calls in both libraries; scores are those of the job of integrated gradients."""
    ours = calls(fusum.attr, model, images, predicted, references)
    direct, _, _ = run(ours["IntegratedGradients"])
    torch.testing.assert_close(scores, direct, rtol=1e-3, atol=1e-4)  # the same chunks, so to rounding
    print(f"  IntegratedGradients: the job's scores are those of the class, to {(scores - direct).abs().max():.0e}")
    if importlib.util.find_spec("captum") is None:
        print("  captum is not installed here, so nothing is compared (.venv/bin/pip install captum, then make demo)")
        return
    theirs = calls(importlib.import_module("captum.attr"), model, images, predicted, references)
    for name, call in ours.items():
        compare(name, call, theirs[name])


def main() -> None:
    FILES.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    train_images, images, train_labels, labels = digits()
    print(f"1. Training a small network on {len(train_images)} images of digits")
    model = train(train_images, train_labels)
    accuracy = (model(images).argmax(1) == labels).float().mean().item()
    print(f"  accuracy on {len(images)} held-out images: {accuracy:.1%}")

    print(f"2. Saving it as TorchScript, {FILES / 'model.pt'}, and the images as Parquet")
    torch.jit.trace(model, images[:2]).save(FILES / "model.pt")
    write_images(FILES / "images.parquet", images)
    write_images(FILES / "references.parquet", train_images[:50])

    reason = fusum.ops.why_not()
    kernels = "in use" if reason is None else f"not in use: {reason}"
    print(f"3. Explaining all {len(images)} held-out images: fusum run examples/digits.toml (kernels {kernels})")
    scores: dict[str, Tensor] = {}
    deployed = torch.jit.load(FILES / "model.pt")
    for name in JOBS:
        sys.stdout.flush()
        predicted, scores[name], deltas = job(name)
        with torch.no_grad():
            change = deployed(images) - deployed(torch.zeros_like(images))
        print(f"  {name:20} {check(name, deltas, change.gather(1, predicted[:, None])[:, 0])}")

    print("4. The same calls without jobs, in fusum and in captum")
    compare_all(deployed, images, predicted, train_images[:50], scores["IntegratedGradients"])

    print(f"5. Drawing {OUT / 'heatmaps.png'} from the Parquet files in {FILES}")
    draw(OUT / "heatmaps.png", images, labels, predicted, scores)


if __name__ == "__main__":
    main()
