"""The rules of the layout: who may import whom, what stands where, and how long it may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "fusum"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
NATIVE = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})

# What a part may import of fusum; the leaves may be imported by all.
LEAVES = {"errors", "settings", "profile", "progress", "backward"}
MAY_IMPORT = {
    "_utils": set(),
    "attr": {"plan", "engine"},
    "engine": {"plan", "ops", "rules"},
    "rules": {"plan", "ops"},
    "plan": {"ops"},
    "ops": set(),
    "errors": set(),
    "settings": set(),
    "profile": set(),
    "progress": set(),
    "backward": set(),
    "patch": {"attr", "engine"},
    "jobs": {"attr", "engine", "plan", "__init__"},
    "__init__": {"attr", "patch"},
    "__main__": {"ops", "engine", "patch", "jobs", "__init__"},
}
LONGEST_FILE, LONGEST_FUNCTION = 400, 40


def part_of(path: Path) -> str:
    """attr/base.py -> attr; patch.py -> patch."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported_parts(tree: ast.Module, path: Path) -> Iterator[str]:
    """The parts of fusum that a file imports, also inside functions."""
    here = ["fusum", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            names = [".".join([*module, alias.name]) for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "fusum":
                yield parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "__init__"


def breaches(path: Path, source: str) -> list[str]:
    part = part_of(path)
    allowed = MAY_IMPORT.get(part, set()) | LEAVES | {part}
    return sorted(set(imported_parts(ast.parse(source), path)) - allowed)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path: Path) -> None:
    assert part_of(path) in MAY_IMPORT, "a new part: say in MAY_IMPORT what it may import"
    assert not breaches(path, path.read_text())


def test_leaves_import_no_other_part_than_leaves() -> None:
    for leaf in LEAVES:
        parts = set(imported_parts(ast.parse((PACKAGE / f"{leaf}.py").read_text()), PACKAGE / f"{leaf}.py"))
        assert parts <= LEAVES


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("plan/x.py", "from ..engine import run"),
        ("plan/x.py", "from ..engine.run import run"),
        ("plan/x.py", "from ..rules import turn"),
        ("engine/x.py", "import fusum.attr"),
        ("engine/x.py", "def f():\n    from fusum.attr.base import Attribution"),
        ("attr/x.py", "from ..ops import path_sum"),
        ("settings.py", "from . import attr"),
        ("plan/x.py", "from fusum import config"),
    ],
)
def test_a_breach_is_seen(file: str, source: str) -> None:
    assert breaches(PACKAGE / file, source)


def test_an_allowed_import_is_not_a_breach() -> None:
    source = "from .. import ops\nfrom ..plan.spec import Plan\nfrom ..errors import ArgumentError\nimport torch"
    assert not breaches(PACKAGE / "engine" / "x.py", source)


def _imports_captum(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "captum" for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "captum":
            return True
        if isinstance(node, ast.Constant) and node.value == "captum.attr":
            return True
    return False


def test_only_patch_imports_captum() -> None:
    assert [path.name for path in SOURCES if _imports_captum(path)] == ["patch.py"]


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *NATIVE], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < LONGEST_FILE


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    assert not {name: length for name, length in lengths.items() if length >= LONGEST_FUNCTION}


def test_every_op_has_a_reference_body() -> None:
    from fusum.ops import reference
    from fusum.ops.library import schemas

    names = {schema.split("(")[0] for schema in schemas()}
    assert len(names) >= 6
    assert set(reference.BODIES) == names
    assert all(callable(body) for body in reference.BODIES.values())


def test_every_op_has_one_file_a_backend() -> None:
    from fusum.ops.library import schemas

    names = {schema.split("(")[0] for schema in schemas()}
    assert {path.stem for path in (ROOT / "csrc" / "ops" / "cpu").glob("*.cpp")} == names
    # Random coalitions come from the CPU's generator, whatever the device; perceptrons are only fused there.
    only_cpu = {"draw_coalitions", "perceptron", "perceptron_outputs"}
    assert {path.stem for path in (ROOT / "csrc" / "ops" / "cuda").glob("*.cu")} == names - only_cpu


def test_python_is_seen_in_one_place_only() -> None:
    assert NATIVE
    for path in NATIVE:
        text = path.read_text()
        mentions = "Python.h" in text or "torch/extension.h" in text or "pybind" in text
        assert not mentions or path.parent == ROOT / "csrc" / "python", path


def test_formulas_are_free_of_torch() -> None:
    for path in (ROOT / "csrc" / "math").iterdir():
        included = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not [line for line in included if any(word in line for word in ("torch", "ATen", "c10", "cuda"))], path
