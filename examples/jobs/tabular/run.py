"""A table as a job: scikit-learn's diabetes data as Parquet, a small network as TorchScript, `fusum run`, a check.

`make jobs` runs this file; everything it makes goes to demo_out/diabetes/.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from fusum.attr import IntegratedGradients

OUT = Path("demo_out/diabetes")


def write_rows(path: Path) -> tuple[list[str], Tensor, Tensor]:
    """The table as Parquet; its features' names, their values [442, 10] and what is to be predicted [442]."""
    data = load_diabetes()
    values = data.data.astype("float32")
    columns = {name: values[:, i] for i, name in enumerate(data.feature_names)}
    pq.write_table(pa.table({"patient": np.arange(len(values)), **columns}), path)
    return data.feature_names, torch.from_numpy(values), torch.from_numpy(data.target).float()


def train(values: Tensor, wanted: Tensor, epochs: int = 80) -> nn.Module:
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    goal = (wanted - wanted.mean()) / wanted.std()
    for _ in range(epochs):
        loss = nn.functional.mse_loss(model(values * 20)[:, 0], goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"  explained variance of the training rows: {1 - loss.item():.0%}")
    scale = nn.Linear(10, 10, bias=False)  # so that the file takes the table's own numbers
    scale.weight.data = 20 * torch.eye(10)
    return nn.Sequential(scale, *model).eval()


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    print(f"1. Writing {OUT / 'rows.parquet'}, training a network, saving it as {OUT / 'model.pt'}")
    names, values, wanted = write_rows(OUT / "rows.parquet")
    model = train(values, wanted)
    torch.jit.script(model).save(str(OUT / "model.pt"))

    print("2. fusum run examples/jobs/tabular/job.toml")
    job = str(Path(__file__).with_name("job.toml"))
    subprocess.run([sys.executable, "-m", "fusum", "run", job, "--overwrite"], check=True)

    print("3. Checking the rows of its output against fusum.attr called directly")
    table = pq.read_table(OUT / "scores" / "parts")
    found = torch.from_numpy(np.stack(table["attributions"].to_numpy()))
    expected = IntegratedGradients(model).attribute(values, values.mean(0, keepdim=True), n_steps=50)
    assert table["id"].to_pylist() == list(range(len(values)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    print(f"  {len(found)} rows, largest difference {(found - expected).abs().max().item():.0e}")

    print("4. The features of most influence, by their mean absolute score in standard deviations of the outcome")
    for score, name in sorted(zip(found.abs().mean(0).tolist(), names, strict=True), reverse=True)[:4]:
        print(f"  {name:4} {score:.3f}")


if __name__ == "__main__":
    main()
