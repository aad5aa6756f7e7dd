"""A small table, models in files and specs: the subjects of the tests of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from fusum.jobs import Spec

FEATURES = ("a", "b", "c", "d")
VOCABULARY = 30


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


class Words(nn.Module):
    """Token ids [rows, length] and their mask to [rows, 2]; padding changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        there = mask.unsqueeze(2).to(torch.float32)
        return self.out(torch.tanh((self.embedding(ids) * there).sum(1) / there.sum(1)))


def words() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Words().eval()


def columns(rows: int, seed: int = 0) -> dict[str, Any]:
    """Numbers, an id, a label, an image of 2 x 2 as a fixed-size list, and token ids."""
    draw = np.random.default_rng(seed)
    numbers = draw.standard_normal((rows, 4)).astype("float32")
    found: dict[str, Any] = {name: numbers[:, i] for i, name in enumerate(FEATURES)}
    found["id"] = [f"r{seed}-{i}" for i in range(rows)]
    found["label"] = draw.integers(0, 3, rows)
    found["image"] = pa.FixedSizeListArray.from_arrays(numbers.reshape(-1), 4)
    lengths = draw.integers(1, 9, rows)
    found["tokens"] = [draw.integers(1, VOCABULARY, n).tolist() for n in lengths]
    return found


def write(path: Path, rows: int, group: int = 50, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns(rows, seed)), path, row_group_size=group)
    return path


def numbers(table: Any) -> Tensor:
    """The tensor of the four columns."""
    return torch.from_numpy(np.stack([table[name].to_numpy() for name in FEATURES], 1).astype("float32"))


def spec(folder: Path, **keys: Any) -> Spec:
    """A job on folder/rows, of folder/model.pt unless keys say otherwise."""
    if "model" not in keys and not (folder / "model.pt").exists():
        torch.jit.script(net()).save(str(folder / "model.pt"))
    if "data" not in keys and not (folder / "rows").exists():
        write(folder / "rows" / "one.parquet", 130)
    usual = {
        "model": str(folder / "model.pt"),
        "data": str(folder / "rows"),
        "output": str(folder / "out"),
        "id": "id",
        "inputs": "a,b,c,d",
        "method": "IntegratedGradients",
        "target": 1,
    }
    return Spec(**{**usual, **keys})


def output(folder: Path, name: str = "parts") -> Any:
    """All rows of an output folder, in the order of the names of its files."""
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / name).glob("*.parquet"))])


def scores(table: Any, name: str = "attributions") -> Tensor:
    values = table[name].combine_chunks()
    return torch.from_numpy(values.flatten().to_numpy().reshape(len(values), -1).copy())


def flags(given: Spec) -> list[str]:
    """A spec as flags of the command."""
    keys = given.as_dict()
    found = [f"--argument={name}={value}" for name, value in keys.pop("arguments", {}).items()]
    found += ["--inputs=" + ",".join(each["columns"]) for each in keys.pop("inputs")]
    return found + [f"--{name.replace('_', '-')}={value}" for name, value in keys.items()]
