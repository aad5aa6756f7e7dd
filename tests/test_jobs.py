"""Jobs: what a spec says, how columns become tensors, and that scores are those of fusum.attr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow, which reads the data of jobs, is not installed")
pytest.importorskip("tqdm", reason="tqdm, which jobs need, is not installed")

import pyarrow.csv  # noqa: E402
import pyarrow.feather  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import fusum.attr as attr  # noqa: E402
from fusum import ArgumentError  # noqa: E402
from fusum.__main__ import main  # noqa: E402
from fusum.jobs import Input, JobError, Spec, run  # noqa: E402
from fusum.jobs.columns import Columns, Unit  # noqa: E402
from fusum.jobs.data import Data  # noqa: E402
from job_cases import FEATURES, VOCABULARY, columns, net, numbers, output, scores, spec, words, write  # noqa: E402

WORDS = {"columns": "tokens", "vocabulary": VOCABULARY}
TOKENS = {"inputs": WORDS, "method": "LayerIntegratedGradients", "layer": "embedding", "baselines": 0}


def script(module: nn.Module, path: Path) -> str:
    torch.jit.script(module).save(str(path))
    return str(path)


def test_every_column_is_what_fusum_attr_says(tmp_path: Path) -> None:
    summary = run(spec(tmp_path, arguments={"n_steps": 9}))
    table = output(tmp_path / "out")
    inputs = numbers(pa.table(columns(130)))
    # Units of 50 rows, as a chunk's rounding may depend on its rows.
    model = net()
    found = [
        attr.IntegratedGradients(model).attribute(x, target=1, n_steps=9, return_convergence_delta=True)
        for x in inputs.split(50)
    ]
    torch.testing.assert_close(scores(table), torch.cat([s for s, _ in found]), rtol=1e-5, atol=1e-7)
    delta = torch.from_numpy(table["convergence_delta"].to_numpy().copy())
    torch.testing.assert_close(delta, torch.cat([d for _, d in found]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(table["prediction"].to_numpy().copy()), model(inputs)[:, 1].detach())
    assert table["id"].to_pylist() == columns(130)["id"]
    assert set(table["target"].to_pylist()) == {1}
    assert (summary.rows, summary.rejected, summary.parts) == (130, 0, 3)
    said = json.loads(table.schema.metadata[b"fusum"])
    assert said["shapes"] == {"attributions": [4]}
    assert said["spec"]["arguments"] == {"n_steps": 9}
    assert len(said["model_sha256"]) == 64
    assert said["version"]


@pytest.mark.parametrize("target", ["predicted", "label", None])
def test_targets(tmp_path: Path, target: str | None) -> None:
    keys: dict[str, Any] = {"target": target, "method": "Saliency"}
    if target is None:
        keys["model"] = script(nn.Linear(4, 1), tmp_path / "one.pt")
    run(spec(tmp_path, **keys))
    table, inputs = output(tmp_path / "out"), numbers(pa.table(columns(130)))
    assert table["convergence_delta"].null_count == 130
    if target is None:
        assert table["target"].null_count == 130
        return
    expected = net()(inputs).argmax(1) if target == "predicted" else torch.from_numpy(columns(130)["label"])
    assert table["target"].to_pylist() == expected.tolist()
    assert len(set(expected.tolist())) > 1
    out = net()(inputs).gather(1, expected[:, None])[:, 0]
    torch.testing.assert_close(torch.from_numpy(table["prediction"].to_numpy().copy()), out.detach())
    direct = attr.Saliency(net()).attribute(inputs, target=expected)
    torch.testing.assert_close(scores(table), direct)


@pytest.mark.parametrize("form", ["csv", "arrow", "file", "glob"])
def test_formats_of_data(tmp_path: Path, form: str) -> None:
    table = pa.table(columns(130)).drop(["image", "tokens"])
    (tmp_path / "rows").mkdir()
    if form == "csv":
        pyarrow.csv.write_csv(table, tmp_path / "rows" / "x.csv")
    elif form == "arrow":
        pyarrow.feather.write_feather(table, str(tmp_path / "rows" / "x.arrow"), compression="uncompressed")
    else:
        write(tmp_path / "rows" / "x.parquet", 130)
    data = {"file": "rows/x.parquet", "glob": "rows/*.parq*"}.get(form, "rows")
    run(spec(tmp_path, method="Saliency", data=str(tmp_path / data), rows_per_part=40))
    found = output(tmp_path / "out")
    assert found["id"].to_pylist() == columns(130)["id"]
    torch.testing.assert_close(scores(found), attr.Saliency(net()).attribute(numbers(table), target=1))


def test_names_of_columns_may_hold_dots(tmp_path: Path) -> None:
    table = pa.table(columns(130)).rename_columns({"b": "a.b", "c": "a.c"})
    (tmp_path / "rows").mkdir()
    pq.write_table(table, tmp_path / "rows" / "x.parquet")
    run(spec(tmp_path, method="Saliency", inputs="a,a.b,a.c,d"))
    expected = attr.Saliency(net()).attribute(numbers(pa.table(columns(130))), target=1)
    torch.testing.assert_close(scores(output(tmp_path / "out")), expected)


def test_no_row_group_is_in_memory_as_a_whole(tmp_path: Path) -> None:
    rows = 2_000_000
    table = pa.table({"id": range(rows), **{name: np.random.rand(rows) for name in FEATURES}})
    (tmp_path / "rows").mkdir()
    pq.write_table(table, tmp_path / "rows" / "x.parquet", row_group_size=rows)
    size = table.nbytes
    del table
    data = Data(spec(tmp_path, rows_per_part=10_000))
    before, most, read = pa.total_allocated_bytes(), 0, 0
    for _, part in data.units(lambda _: True):
        most, read = max(most, pa.total_allocated_bytes() - before), read + part.num_rows
    assert read == rows
    assert most < size // 4


def test_lists_have_a_shape(tmp_path: Path) -> None:
    model = script(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3)), tmp_path / "conv.pt")
    run(spec(tmp_path, model=model, inputs={"columns": "image", "shape": [1, 2, 2]}, method="InputXGradient"))
    table = output(tmp_path / "out")
    inputs = numbers(pa.table(columns(130))).view(130, 1, 2, 2)
    direct = attr.InputXGradient(torch.jit.load(model)).attribute(inputs, target=1)
    torch.testing.assert_close(scores(table), direct.flatten(1))
    assert json.loads(table.schema.metadata[b"fusum"])["shapes"] == {"attributions": [1, 2, 2]}


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x * y * scale


def test_several_inputs_and_an_argument(tmp_path: Path) -> None:
    inputs = ["a", "b", {"columns": "c", "explain": False}]
    run(spec(tmp_path, model=script(Two(), tmp_path / "two.pt"), inputs=inputs, target=None, method="InputXGradient"))
    table, x = output(tmp_path / "out"), numbers(pa.table(columns(130)))
    product = x[:, :1] * x[:, 1:2] * x[:, 2:3]
    torch.testing.assert_close(scores(table, "attributions_0"), product)
    torch.testing.assert_close(scores(table, "attributions_1"), product)


@pytest.mark.parametrize("sum_last", [False, True])
def test_token_ids_are_padded_and_scores_are_not(tmp_path: Path, sum_last: bool) -> None:
    model = script(words(), tmp_path / "words.pt")
    run(spec(tmp_path, model=model, sum_last=sum_last, arguments={"n_steps": 5}, **TOKENS))
    table, module = output(tmp_path / "out"), words()
    method = attr.LayerIntegratedGradients(module, "embedding")
    width = 1 if sum_last else 6
    for ids, found in zip(columns(130)["tokens"], table["attributions"].to_pylist(), strict=True):
        row = torch.tensor([ids])
        expected = method.attribute(row, 0, target=1, n_steps=5, additional_forward_args=(torch.ones_like(row),))
        expected = expected.sum(-1) if sum_last else expected
        assert len(found) == len(ids) * width
        torch.testing.assert_close(torch.tensor(found), expected.flatten(), rtol=1e-4, atol=1e-6)
    shape = json.loads(table.schema.metadata[b"fusum"])["shapes"]["attributions"]
    assert shape == ([-1] if sum_last else [-1, 6])


def test_scores_of_a_layer_that_is_no_tokens_keep_their_shape(tmp_path: Path) -> None:
    keys = {**TOKENS, "method": "LayerActivation", "layer": "out", "baselines": None, "target": None}
    run(spec(tmp_path, model=script(words(), tmp_path / "words.pt"), **keys))
    table = output(tmp_path / "out")
    assert pa.types.is_fixed_size_list(table.schema.field("attributions").type)
    assert table["prediction"].null_count == 130


def test_rows_of_like_length_are_batched_together() -> None:
    table = pa.table({"id": range(100), "tokens": [[1] * (1 + i * 7 % 50) for i in range(100)]})
    keys = {"model": "m", "data": "d", "output": "o", "id": "id", "target": 0, **TOKENS}
    rows = Columns(Spec(**keys, batch=10)).rows(table, Unit("u", "d", 0, 0), None)
    lengths = [batch.padded for batch in rows.batches]
    assert len(lengths) == 10
    assert lengths == sorted(lengths)
    assert lengths[0] < 6
    ids, mask = rows.batches[0].tensors
    assert torch.equal(ids != 0, mask.bool())


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("NeuronGradient", {"layer": "0", "neuron": 2, "target": None}),
        ("LayerConductance", {"layer": "1"}),
        ("NoiseTunnel", {"arguments": {"attribution_method": "IntegratedGradients", "nt_samples": 3, "n_steps": 4}}),
        ("Occlusion", {"arguments": {"sliding_window_shapes": [2]}}),
        ("FeatureAblation", {"arguments": {"feature_mask": [0, 0, 1, 1]}, "baselines": 0.5}),
        ("DeepLift", {"baselines": "mean", "arguments": {"multiply_by_inputs": False}}),
        ("DeepLiftShap", {"baselines": "sample:5"}),
        ("GradientShap", {"baselines": "sample:7", "arguments": {"n_samples": 3, "stdevs": 0.1}}),
        ("LayerActivation", {"layer": "0", "target": None}),
    ],
)
def test_methods(tmp_path: Path, method: str, keys: dict[str, Any]) -> None:
    summary = run(spec(tmp_path, method=method, **keys))
    table = output(tmp_path / "out")
    assert summary.rows == table.num_rows == 130
    assert scores(table).isfinite().all()
    assert scores(table).abs().sum() > 0
    has_delta = method in ("LayerConductance", "NoiseTunnel", "DeepLift", "DeepLiftShap", "GradientShap")
    assert table["convergence_delta"].null_count == (0 if has_delta else 130)


def test_means_and_samples_are_of_the_data(tmp_path: Path) -> None:
    inputs = numbers(pa.table(columns(130)))
    run(spec(tmp_path, method="DeepLift", baselines="mean", output=str(tmp_path / "mean")))
    direct = attr.DeepLift(net()).attribute(inputs, inputs.double().mean(0, keepdim=True).float(), target=1)
    torch.testing.assert_close(scores(output(tmp_path / "mean")), direct, rtol=1e-4, atol=1e-6)
    run(spec(tmp_path, method="DeepLiftShap", baselines="sample:130", output=str(tmp_path / "all")))
    every = attr.DeepLiftShap(net()).attribute(inputs, inputs, target=1)
    torch.testing.assert_close(scores(output(tmp_path / "all")), every, rtol=1e-4, atol=1e-6)


def test_baselines_from_a_file(tmp_path: Path) -> None:
    write(tmp_path / "base.parquet", 1, seed=9)
    run(spec(tmp_path, baselines=str(tmp_path / "base.parquet")))
    base = numbers(pa.table(columns(1, seed=9)))
    direct = attr.IntegratedGradients(net()).attribute(numbers(pa.table(columns(130))), base, target=1)
    torch.testing.assert_close(scores(output(tmp_path / "out")), direct, rtol=1e-4, atol=1e-6)
    write(tmp_path / "base.parquet", 2, seed=9)
    with pytest.raises(ArgumentError, match="got 2 rows; IntegratedGradients takes one"):
        run(spec(tmp_path, baselines=str(tmp_path / "base.parquet"), output=str(tmp_path / "other")))


def test_draws_depend_on_the_seed_alone(tmp_path: Path) -> None:
    keys = {"method": "GradientShap", "baselines": "sample:7", "arguments": {"stdevs": 0.3}}
    found = []
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        torch.manual_seed(len(found))
        run(spec(tmp_path, seed=seed, output=str(tmp_path / name), **keys))
        found.append(scores(output(tmp_path / name)))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_half_scores(tmp_path: Path) -> None:
    run(spec(tmp_path, scores="float16"))
    table = output(tmp_path / "out")
    assert table.schema.field("attributions").type == pa.list_(pa.float16(), 4)
    big = nn.Linear(4, 2)
    nn.init.constant_(big.weight, 1e6)
    with pytest.raises(JobError, match=r'too large for float16; expected scores = "float32"'):
        run(spec(tmp_path, scores="float16", model=script(big, tmp_path / "big.pt"), output=str(tmp_path / "big")))


@pytest.mark.parametrize("reader", ["pandas", "polars", "duckdb"])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_others_read_the_output(tmp_path: Path, reader: str, kind: str) -> None:
    module = pytest.importorskip(reader, reason=f"{reader} is not installed")
    run(spec(tmp_path, scores=kind))
    files = str(tmp_path / "out" / "parts" / "*.parquet")
    if reader == "duckdb":
        rows = module.sql(f"select id, attributions from '{files}' order by filename").fetchall()
    elif reader == "polars":
        rows = module.read_parquet(files).select("id", "attributions").rows()
    else:
        frame = module.read_parquet(tmp_path / "out" / "parts")
        rows = list(zip(frame["id"], frame["attributions"], strict=True))
    assert {row[0] for row in rows} == set(columns(130)["id"])
    expected = dict(zip(output(tmp_path / "out")["id"].to_pylist(), scores(output(tmp_path / "out")), strict=True))
    for name, values in rows:
        torch.testing.assert_close(torch.tensor([float(v) for v in values]), expected[name].float())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("target", ["predicted", "label", 1])
def test_a_cuda_device_gives_the_same(tmp_path: Path, target: Any) -> None:
    keys: dict[str, Any] = {"target": target, "baselines": "mean", "rows_per_part": 20}
    for device in ("cpu", "cuda"):
        run(spec(tmp_path, device=device, output=str(tmp_path / device), **keys))
    on = [output(tmp_path / device) for device in ("cpu", "cuda")]
    assert on[0].select(["id", "target"]).equals(on[1].select(["id", "target"]))
    torch.testing.assert_close(scores(on[1]), scores(on[0]), rtol=1e-3, atol=1e-5)


BAD = {
    "method: got 'Magic'": {"method": "Magic"},
    "method: got 'Attribution'": {"method": "Attribution"},
    "arguments.steps: IntegratedGradients takes none of that name; expected internal": {"arguments": {"steps": 3}},
    "arguments.sliding_window_shapes: missing": {"method": "Occlusion"},
    "arguments.attribution_method: got None": {"method": "NoiseTunnel"},
    "arguments.nt_samples: IntegratedGradients takes none": {"arguments": {"nt_samples": 3}},
    "layer: missing; LayerConductance": {"method": "LayerConductance"},
    "layer: got 'x'; Saliency takes none": {"method": "Saliency", "layer": "x"},
    "neuron: missing": {"method": "NeuronGradient", "layer": "0", "target": None},
    "target: got 1; LayerActivation": {"method": "LayerActivation", "layer": "0"},
    "baselines: got 0.5; Saliency": {"method": "Saliency", "baselines": 0.5},
    "baselines: GradientShap needs rows": {"method": "GradientShap"},
    "baselines: got 'sample:x'": {"baselines": "sample:x"},
    "target: got True": {"target": True},
    "dtype: got 'int8'": {"dtype": "int8"},
    "batch: got 0": {"batch": 0},
    "seed: got -1": {"seed": -1},
    r"inputs\[0\].size: got an unknown key": {"inputs": {"columns": "a", "size": 3}},
    r"inputs\[0\].columns: missing": {"inputs": {"shape": [3]}},
    "at least one tensor that is explained": {"inputs": {"columns": "a", "explain": False}},
    "pad: got 40": {"inputs": {"columns": "tokens", "vocabulary": 30, "pad": 40}},
    "vocabulary: missing": {"inputs": {"columns": "tokens", "pad": 4}},
    "static: got true without longest": {"inputs": {"columns": "tokens", "vocabulary": 30, "static": True}},
    "for token ids; expected an id": {**TOKENS, "baselines": "mean"},
}


@pytest.mark.parametrize("match", BAD)
def test_a_bad_key_is_named(match: str) -> None:
    usual = {"model": "m", "data": "d", "output": "o", "id": "id", "inputs": "a", "method": "IntegratedGradients"}
    with pytest.raises(ArgumentError, match=match):
        Spec(**{**usual, "target": 1, **BAD[match]})


@pytest.mark.parametrize(
    ("match", "keys"),
    [
        ("no column 'e', but", {"inputs": "a,e"}),
        ("column 'tokens' is list", {"inputs": "tokens"}),
        ("column 'id' is string; expected numbers", {"inputs": "a,id"}),
        ("column 'image' is .*; expected numbers, as of", {"inputs": "image,a"}),
        ("expected one of 2, as shape is", {"inputs": {"columns": "a,b,c,d", "shape": [2]}}),
        ("column 'a' is float; expected integers", {"inputs": {"columns": "a", "dtype": "int64"}}),
        ("target: column 'a' is float", {"target": "a"}),
        ("data: got nowhere, where there is no file", {"data": "nowhere"}),
        ("model: nothing.pt cannot be read: No such file", {"model": "nothing.pt"}),
        ("expected package.module:function", {"model": "job_cases:nothing"}),
        ("target: got index 7", {"target": 7}),
        ("device: got 'gpu'", {"device": "gpu"}),
        ("layer", {"method": "LayerConductance", "layer": "nope"}),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path: Path, match: str, keys: dict[str, Any]) -> None:
    with pytest.raises((ArgumentError, JobError), match=match):
        run(spec(tmp_path, **keys))
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {**spec(tmp_path).as_dict(), "inputs": "a,b,c,d"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
    (tmp_path / "job.toml").write_text("\n".join([*lines, "[arguments]", "n_steps = 50"]))
    job = ["run", str(tmp_path / "job.toml"), "--argument", "n_steps=4"]
    assert main([*job, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["columns"]["attributions"].startswith("fixed_size_list")
    assert not (tmp_path / "out").exists()
    assert main([*job, "--target", "predicted", "--rows-per-part", "30"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 130
    said = json.loads(output(tmp_path / "out").schema.metadata[b"fusum"])["spec"]
    assert (said["arguments"], said["target"], said["rows_per_part"]) == ({"n_steps": 4}, "predicted", 30)
    assert main([*job, "--target", "2"]) == 1
    assert "target was predicted, is 2" in capsys.readouterr().err
    assert main([*job, "--argument", "steps=4"]) == 2


def test_help_shows_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out
    for name in Spec.__dataclass_fields__:
        assert (
            f"--{name.replace('_', '-').removesuffix('s') if name == 'arguments' else name.replace('_', '-')}" in text
        )
        assert f"key {name}:" in text
    assert all(name in text for name in Input.__dataclass_fields__)


def test_a_file_and_python_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        'model = "m"\ndata = "d"\noutput = "o"\nid = "id"\nmethod = "Saliency"\ninputs = [{columns = ["a", "b"]}]\n'
    )
    expected = Spec(model="m", data="d", output="o", id="id", method="Saliency", inputs=(Input(columns=("a", "b")),))
    assert Spec.from_toml(path) == expected
    path.write_text("model = ")
    with pytest.raises(ArgumentError, match="cannot be read as TOML"):
        Spec.from_toml(path)
