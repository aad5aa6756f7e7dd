"""Jobs when something is wrong: rows, files, models, disks, changed specs."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow, which reads the data of jobs, is not installed")
pytest.importorskip("tqdm", reason="tqdm, which jobs need, is not installed")

import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import fusum.attr as attr  # noqa: E402
from fusum import ArgumentError  # noqa: E402
from fusum.jobs import JobError, run  # noqa: E402
from fusum.jobs.cli import main  # noqa: E402
from job_cases import VOCABULARY, columns, flags, net, numbers, output, scores, spec, words, write  # noqa: E402


def table_with(rows: int, **changed: Any) -> Any:
    """The table with some values replaced: column={row: value}."""
    found = {name: list(values.to_pylist()) for name, values in zip(
        pa.table(columns(rows)).column_names, pa.table(columns(rows)).columns, strict=True)}  # fmt: skip
    types = {name: pa.table(columns(rows)).schema.field(name).type for name in found}
    for name, values in changed.items():
        for row, value in values.items():
            found[name][row] = value
    types["image"] = pa.list_(pa.float32())
    return pa.table({name: pa.array(values, types[name]) for name, values in found.items()})


def test_bad_rows_are_rejected_with_reasons_and_the_others_are_not_changed(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    bad = {"a": {3: None, 60: nan}, "b": {7: inf, 3: nan}, "label": {9: 3, 10: None, 11: -1}, "id": {20: None}}
    (tmp_path / "rows").mkdir()
    pq.write_table(table_with(130, **bad), tmp_path / "rows" / "x.parquet", row_group_size=50)
    summary = run(spec(tmp_path, method="Saliency", target="label", rows_per_part=30))
    rejected = output(tmp_path / "out", "rejected")
    assert rejected["row"].to_pylist() == [3, 7, 9, 10, 11, 20, 60]
    assert rejected["reason"].to_pylist() == [
        "a: null",
        "b: inf; expected a finite float32",
        "label: 3; expected 0 to 2",
        "label: null",
        "label: -1; expected 0 to 2",
        "id: null",
        "a: nan; expected a finite float32",
    ]
    assert rejected["source"].to_pylist() == ["x.parquet"] * 7
    assert rejected["id"].to_pylist() == [f"r0-{i}" if i != 20 else None for i in rejected["row"].to_pylist()]
    good = [i for i in range(130) if i not in rejected["row"].to_pylist()]
    table = output(tmp_path / "out")
    assert table["id"].to_pylist() == [f"r0-{i}" for i in good]
    assert (summary.rows, summary.rejected) == (130, 7)
    target = torch.from_numpy(columns(130)["label"])[good]
    direct = attr.Saliency(net()).attribute(numbers(pa.table(columns(130)))[good], target=target)
    torch.testing.assert_close(scores(table), direct)


def test_bad_lists_are_rejected(tmp_path: Path) -> None:
    bad = {"image": {1: [1.0] * 3, 2: None, 4: [1.0, None, 1.0, 1.0], 5: [float("inf")] * 4}}
    bad["tokens"] = {0: [], 6: [1, VOCABULARY], 7: [-1], 8: None, 9: [None], 12: [2] * 20}
    (tmp_path / "rows").mkdir()
    pq.write_table(table_with(40, **bad), tmp_path / "rows" / "x.parquet")
    image = {"columns": "image", "shape": [2, 2]}
    model = str(tmp_path / "flat.pt")
    torch.jit.script(nn.Sequential(nn.Flatten(), net())).save(model)
    run(spec(tmp_path, model=model, inputs=image, method="Saliency", output=str(tmp_path / "images")))
    rejected = output(tmp_path / "images", "rejected")
    assert dict(zip(rejected["row"].to_pylist(), rejected["reason"].to_pylist(), strict=True)) == {
        1: "image: a list of 3; expected 4",
        2: "image: null",
        4: "image: null in the list",
        5: "image: inf in the list; expected finite float32",
    }
    assert output(tmp_path / "images").num_rows == 36
    torch.jit.script(words()).save(model)
    ids = {"columns": "tokens", "vocabulary": VOCABULARY, "longest": 10}
    keys = {"model": model, "inputs": ids, "method": "LayerIntegratedGradients", "layer": "embedding", "baselines": 0}
    run(spec(tmp_path, output=str(tmp_path / "words"), **keys))
    rejected = output(tmp_path / "words", "rejected")
    assert dict(zip(rejected["row"].to_pylist(), rejected["reason"].to_pylist(), strict=True)) == {
        0: "tokens: a list of 0; expected 1 to 10",
        6: f"tokens: id {VOCABULARY}; expected 0 to {VOCABULARY - 1}",
        7: f"tokens: id -1; expected 0 to {VOCABULARY - 1}",
        8: "tokens: null",
        9: "tokens: null in the list",
        12: "tokens: a list of 20; expected 1 to 10",
    }


def test_max_rejected_stops_and_more_of_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    table = table_with(200, a=dict.fromkeys(range(5, 200, 20)))
    pq.write_table(table, tmp_path / "rows" / "x.parquet")
    with pytest.raises(JobError, match=r"max_rejected: \d rows were rejected; expected 3 at most"):
        run(spec(tmp_path, method="Saliency", max_rejected=3, rows_per_part=20))
    done = len(list((tmp_path / "out" / "parts").glob("*.parquet")))
    assert 4 <= done < 10
    summary = run(spec(tmp_path, method="Saliency", max_rejected=10, rows_per_part=20))
    assert summary.parts == 10 - done
    assert output(tmp_path / "out").num_rows == 190


def test_no_row_that_fits(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    pq.write_table(table_with(5, a=dict.fromkeys(range(5))), tmp_path / "rows" / "x.parquet")
    with pytest.raises(JobError, match=r"no row of .* can be explained: a: null"):
        run(spec(tmp_path))


@pytest.mark.parametrize("fault", ["cut", "no parquet", "column"])
def test_a_file_that_cannot_be_read_is_named_and_fatal_or_skipped(tmp_path: Path, fault: str) -> None:
    write(tmp_path / "rows" / "a.parquet", 60)
    broken = write(tmp_path / "rows" / "b.parquet", 60, seed=1)
    write(tmp_path / "rows" / "c.parquet", 60, seed=2)
    content = broken.read_bytes()
    if fault == "cut":
        broken.write_bytes(content[: len(content) // 2])
    elif fault == "no parquet":
        broken.write_bytes(b"nothing of the kind")
    else:
        pq.write_table(pa.table(columns(60, 1)).drop(["d"]), broken)
    with pytest.raises(JobError, match=r"b\.parquet cannot be read"):
        run(spec(tmp_path, method="Saliency"))
    assert not (tmp_path / "out").exists()
    summary = run(spec(tmp_path, method="Saliency", unreadable="skip"))
    assert [Path(path).name for path in summary.skipped] == ["b.parquet"]
    assert "b.parquet" in (tmp_path / "out" / "manifest-0.json").read_text()
    assert output(tmp_path / "out")["id"].to_pylist() == [f"r{s}-{i}" for s in (0, 2) for i in range(60)]


def test_a_file_broken_inside(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "a.parquet", 60)
    broken = write(tmp_path / "rows" / "b.parquet", 600, group=100)
    content = bytearray(broken.read_bytes())
    place = pq.ParquetFile(broken).metadata.row_group(3).column(0).data_page_offset
    content[place : place + 40] = b"\xff" * 40
    broken.write_bytes(content)
    with pytest.raises(JobError, match=r"b\.parquet cannot be read"):
        run(spec(tmp_path, method="Saliency"))
    summary = run(spec(tmp_path, method="Saliency", unreadable="skip"))
    assert [Path(path).name for path in summary.skipped] == ["b.parquet"]
    assert output(tmp_path / "out").num_rows >= 60 + 300


CHANGES: dict[str, dict[str, Any]] = {
    "arguments was .*, is": {"arguments": {"n_steps": 3}},
    "target was 1, is 2": {"target": 2},
    "seed was not given, is 5": {"seed": 5},
    "method was IntegratedGradients, is DeepLift": {"method": "DeepLift"},
}


@pytest.mark.parametrize("match", CHANGES)
def test_a_changed_spec_does_not_go_on(tmp_path: Path, match: str) -> None:
    run(spec(tmp_path))
    before = output(tmp_path / "out")
    with pytest.raises(JobError, match=f"{match}.*expected --overwrite or another folder"):
        run(spec(tmp_path, **CHANGES[match]))
    assert output(tmp_path / "out").equals(before)
    run(spec(tmp_path, **CHANGES[match]), overwrite=True)
    assert not output(tmp_path / "out").equals(before, check_metadata=True)
    assert run(spec(tmp_path, max_rejected=3, workers=1, **CHANGES[match])).parts == 0


def test_changed_files_do_not_go_on(tmp_path: Path) -> None:
    run(spec(tmp_path))
    write(tmp_path / "rows" / "two.parquet", 20, seed=5)
    assert run(spec(tmp_path)).rows == 20  # files may come
    write(tmp_path / "rows" / "two.parquet", 21, seed=5)
    with pytest.raises(JobError, match=r"data: two\.parquet has changed"):
        run(spec(tmp_path))
    (tmp_path / "rows" / "two.parquet").unlink()
    with pytest.raises(JobError, match=r"data: two\.parquet is gone"):
        run(spec(tmp_path))
    torch.jit.script(nn.Linear(4, 3)).save(str(tmp_path / "model.pt"))
    with pytest.raises(JobError, match="the file of model has changed"):
        run(spec(tmp_path))
    (tmp_path / "model.pt").unlink()
    with pytest.raises(ArgumentError, match=r"model: .*model\.pt cannot be read: No such file"):
        run(spec(tmp_path, model=str(tmp_path / "model.pt")))


def test_a_changed_function_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import torch\ndef make():\n    return torch.nn.Linear(4, 3)\n"
    (tmp_path / "made_for_jobs.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    run(spec(tmp_path, model="made_for_jobs:make"))
    (tmp_path / "made_for_jobs.py").write_text(source + "# another\n")
    with pytest.raises(JobError, match="the file of model has changed"):
        run(spec(tmp_path, model="made_for_jobs:make"))


def test_a_full_disk_leaves_a_folder_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, real, count = tmp_path / "whole", os.fsync, 0
    run(spec(tmp_path, output=str(whole), rows_per_part=20))

    def full(file: int) -> None:
        nonlocal count
        count += 1
        if count > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    given = flags(spec(tmp_path, rows_per_part=20))
    monkeypatch.setattr(os, "fsync", full)
    assert main(given) == 1
    assert "cannot be written: No space left on device; the parts that are there are whole" in capsys.readouterr().err
    monkeypatch.setattr(os, "fsync", real)
    assert 0 < output(tmp_path / "out").num_rows < 130
    (tmp_path / "out" / "parts" / ".half.parquet.7.tmp").write_bytes(b"of a process that was killed")
    assert main(given) == 0
    assert output(tmp_path / "out").equals(output(whole))
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_two_jobs_at_once_in_a_folder(tmp_path: Path) -> None:
    import fcntl

    run(spec(tmp_path))
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(JobError, match="another process is at work in"):
            run(spec(tmp_path))


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / "parts" / "x").write_text("mine")
    with pytest.raises(JobError, match=r"has parts, but no job\.json"):
        run(spec(tmp_path))


def test_an_error_of_the_model_names_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sometimes.py").write_text(
        "import torch\ncalls = 0\ndef make():\n    def f(x):\n        global calls\n        calls += 1\n"
        "        if calls > 60:\n            raise ValueError('not any more')\n        return x.sum(1)\n    return f\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(JobError, match=r"rows from number \d+ of one\.parquet cannot be explained: .*not any more"):
        run(spec(tmp_path, model="sometimes:make", target=None, batch=1, arguments={"n_steps": 2}))


def test_extra_is_named_where_it_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.modules['pyarrow'] = None; from importlib import util; find = util.find_spec\n"
    code += "util.find_spec = lambda name, *a: None if name == 'pyarrow' else find(name, *a)\nimport fusum\n"
    code += "import fusum.jobs"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "ImportError: fusum.jobs needs pyarrow: pip install 'fusum[jobs]'" in done.stderr


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["FUSUM_TEST_EVIL"],)


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What an evil file makes, if it is let."""
    monkeypatch.setenv("FUSUM_TEST_EVIL", str(tmp_path / "evil"))
    return tmp_path / "evil"


def program(path: Path) -> Path:
    rows = torch.export.Dim("rows", min=1, max=512)
    torch.export.save(torch.export.export(net(), (torch.randn(4, 4),), dynamic_shapes=({0: rows},)), path)
    return path


def altered(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of an archive; changes: by the end of a record's name, a function of its content."""
    reader = torch._C.PyTorchFileReader(str(source))
    writer = torch._C.PyTorchFileWriter(str(target))
    for name in reader.get_all_records():
        if name.startswith(".data") or name in ("byteorder", "version"):
            continue
        content = reader.get_record(name)
        for end, change in changes.items():
            content = change(content) if name.endswith(end.replace("__", ".")) else content
        writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return target


def test_pickles_are_refused_unless_allowed(tmp_path: Path, evil: Path) -> None:
    torch.save(net(), tmp_path / "module.pt")
    match = r"is a pickled module.*may run any code that is in it; pass --allow-pickle"
    with pytest.raises(ArgumentError, match=match):
        run(spec(tmp_path, model=str(tmp_path / "module.pt")))
    run(spec(tmp_path, model=str(tmp_path / "module.pt"), allow_pickle=True))
    assert output(tmp_path / "out").num_rows == 130
    for name, write_it in {"zip": lambda f: torch.save(Evil(), f), "raw": lambda f: pickle.dump(Evil(), f)}.items():
        with open(tmp_path / name, "wb") as file:
            write_it(file)
        with pytest.raises(ArgumentError, match="may run any code"):
            run(spec(tmp_path, model=str(tmp_path / name), output=str(tmp_path / "none")))
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ArgumentError, match="holds a OrderedDict; expected a module"):
        run(spec(tmp_path, model=str(tmp_path / "weights.pt"), allow_pickle=True, output=str(tmp_path / "none")))
    assert not evil.exists()


def test_programs_load_and_explain(tmp_path: Path) -> None:
    run(spec(tmp_path, model=str(program(tmp_path / "m.pt2"))))
    direct = attr.IntegratedGradients(net()).attribute(numbers(pa.table(columns(130))), target=1)
    torch.testing.assert_close(scores(output(tmp_path / "out")), direct, rtol=1e-4, atol=1e-6)


def _evil_pickle(_: bytes) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    return buffer.getvalue()


def _in_json(old: str, new: str) -> Any:
    def change(content: bytes) -> bytes:
        text = content.decode()
        assert old in text
        return text.replace(old, new).encode()

    return change


ATTACKS = {
    "pickle of other things": {"sample_inputs/model__pt": _evil_pickle},
    "pickle .weight_0": {"weights_config__json": _in_json('"use_pickle": false', '"use_pickle": true')},
    "operator": {"models/model__json": _in_json("torch.ops.aten.tanh.default", "torch.os.mkdir")},
    "expression": {"models/model__json": _in_json("Symbol('", "__import__('os').mkdir('")},
    "guards": {"models/model__json": _in_json('"guards_code": []', '"guards_code": ["__import__(\'os\').getpid()"]')},
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_programs_that_would_run_code_are_refused(tmp_path: Path, evil: Path, kind: str) -> None:
    source = program(tmp_path / "m.pt2")
    run(spec(tmp_path, model=str(altered(source, tmp_path / "same.pt2")), output=str(tmp_path / "same")))
    path = altered(source, tmp_path / "evil.pt2", **ATTACKS[kind])
    with pytest.raises(ArgumentError, match=r"evil\.pt2 holds .* may run any code"):
        run(spec(tmp_path, model=str(path)))
    assert not evil.exists()


def test_what_is_no_model(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as file:
        file.writestr("x/data", "nothing")
    with pytest.raises(ArgumentError, match=r"x\.pt2 is a pickle"):
        run(spec(tmp_path, model=str(tmp_path / "x.pt2")))
