"""What a job is. One table of keys serves the TOML file, the flags and Python: the fields of ``Spec`` and ``Input``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ArgumentError, ArgumentTypeError
from ..settings import flag, positive_int

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

C = TypeVar("C", bound="Checked")
Check = Callable[[str, Any], Any]
FLOATS = ("float32", "float64", "float16", "bfloat16")


class JobError(RuntimeError):
    """A job that cannot start or go on; the message says why, and what is to be done."""


def key(check: Check, about: str, default: Any = MISSING, free: bool = False) -> Any:
    """A field: its check, its help, and whether it may change (free) when a job is resumed."""
    return field(default=default, metadata={"check": check, "help": about, "free": free})


def bad(name: str, value: Any, expected: str) -> ArgumentTypeError:
    """The error of a key that got a value of no use."""
    return ArgumentTypeError(f"{name}: got {value!r}; expected {expected}")


def text(name: str, value: Any) -> str:
    """value if it is text that is not empty."""
    if not isinstance(value, str) or not value:
        raise bad(name, value, "text")
    return value


def one_of(*words: str) -> Check:
    """A check for one of some words."""

    def check(name: str, value: Any) -> Any:
        if value not in words:
            raise bad(name, value, f"one of {list(words)}")
        return value

    return check


def integer(name: str, value: Any) -> int:
    """value if it is an integer of at least 0."""
    if type(value) is not int or value < 0:
        raise bad(name, value, "an integer of at least 0")
    return value


def integers(name: str, value: Any) -> tuple[int, ...]:
    """A list of integers as a tuple."""
    if not isinstance(value, (list, tuple)) or not value or any(type(item) is not int for item in value):
        raise bad(name, value, "a list of integers")
    return tuple(value)


def index_or(check: Check) -> Check:
    """A check that lets integers pass."""
    return lambda name, value: value if type(value) is int else check(name, value)


def auto_or(check: Check) -> Check:
    """A check that lets "auto" pass."""
    return lambda name, value: value if value == "auto" else check(name, value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not items:
        raise bad(name, value, "names of columns")
    return tuple(text(name, item.strip() if isinstance(item, str) else item) for item in items)


def _baselines(name: str, value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value):
        return value
    if isinstance(value, str) and value.startswith("sample:") and not value[7:].isdigit():
        raise bad(name, value, '"sample:" and how many rows, such as "sample:100"')
    return text(name, value)


def _arguments(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise bad(name, value, "a table of arguments")
    try:
        json.dumps(_plain(value))
    except TypeError as error:
        raise ArgumentTypeError(f"{name}: {error}; expected what a file can hold: numbers, texts, lists") from None
    return dict(value)


def _inputs(name: str, value: Any) -> tuple[Input, ...]:
    items = value if isinstance(value, (list, tuple)) else [value]
    found = tuple(_input(f"{name}[{i}]", item) for i, item in enumerate(items))
    if not any(each.explain for each in found):
        raise bad(name, value, "at least one tensor that is explained")
    return found


def _input(name: str, value: Any) -> Input:
    if isinstance(value, (str, Mapping)):
        return build(Input, {"columns": value} if isinstance(value, str) else value, f"{name}.")
    if not isinstance(value, Input):
        raise bad(name, value, "a table of keys, or names of columns as text")
    return value


class Checked:
    """A dataclass whose fields are brought into form by the checks in their metadata; None is a default's alone."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                object.__setattr__(self, each.name, each.metadata["check"](each.name, value))

    def as_dict(self) -> dict[str, Any]:
        """The keys that are not at their defaults, in JSON's types."""
        pairs = [(each, getattr(self, each.name)) for each in fields(self)]  # type: ignore[arg-type]
        return {each.name: _plain(value) for each, value in pairs if value != _default(each)}


def _default(each: Field[Any]) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


def _plain(value: Any) -> Any:
    if isinstance(value, Checked):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, kw_only=True)
class Input(Checked):
    """One tensor that the model takes, and the columns it is made of.

    Several columns, or one of numbers, are stacked: [rows, columns]. One column of lists is a row each: [rows, *shape].
    With ``vocabulary`` the lists are token ids of any lengths: rows of like length are batched together and padded.
    """

    columns: tuple[str, ...] = key(_names, "columns of numbers, stacked in this order, or one column of lists")
    shape: tuple[int, ...] | None = key(integers, "of a row's tensor; default: as many numbers as there are", None)
    dtype: str | None = key(one_of(*FLOATS, "int64"), "default: the job's; of token ids int64", None)
    explain: bool = key(flag, "false: an additional argument, which the model takes after the inputs", True)
    vocabulary: int | None = key(positive_int, "the lists are token ids, below this", None)
    pad: int = key(integer, "the id that fills the ends of shorter lists", 0)
    mask: bool = key(flag, "give the model a mask (int64, 1: no padding) as an additional argument", True)
    longest: int | None = key(positive_int, "lists of more ids are rejected", None)
    static: bool = key(flag, "pad all lists to longest, for a model exported for one length", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocabulary is None:
            if self.pad or self.longest or self.static:
                raise ArgumentError("vocabulary: missing; pad, longest and static are of lists of token ids")
        elif len(self.columns) > 1 or self.shape is not None or self.dtype not in (None, "int64"):
            raise ArgumentError("vocabulary: token ids are one column of lists, int64 and without shape")
        elif self.pad >= self.vocabulary:
            raise ArgumentError(f"pad: got {self.pad}; expected an id below the vocabulary of {self.vocabulary}")
        elif self.static and self.longest is None:
            raise ArgumentError("static: got true without longest; expected the length to pad to")


@dataclass(frozen=True, kw_only=True)
class Spec(Checked):
    """A job. Each field is a key of the TOML file and a flag; a bad one raises ArgumentError that names it."""

    model: str = key(text, "a TorchScript file, a .pt2 file of torch.export, or package.module:function that makes one")
    data: str = key(text, "Parquet, Arrow (.arrow, .feather, .ipc) or CSV: a file, a folder or a glob")
    output: str = key(text, "folder for parts/, rejected/ and the manifest")
    id: str = key(text, "the column that names a row; it is copied to the output")
    inputs: tuple[Input, ...] = key(_inputs, "tensors of columns: tables of the keys below, or names of columns a,b,c")
    method: str = key(text, "a class of fusum.attr")
    arguments: dict[str, Any] = field(
        metadata={"check": _arguments, "help": "the method's own, of its class or of attribute", "free": False},
        default_factory=dict,
    )
    layer: str | None = key(text, "dotted name of a layer, for methods of layers and neurons", None)
    neuron: int | tuple[int, ...] | None = key(index_or(integers), "index, or list of indices, in that layer", None)
    target: int | str | None = key(index_or(text), 'an output, a column that says which, or "predicted"', None)
    baselines: float | str | None = key(
        _baselines, 'a number, "mean" (of columns), "sample:K" (K random rows), or a file with the same columns', None
    )
    device: str = key(text, "of the model: cpu, cuda, cuda:1", "cpu")
    dtype: str = key(
        one_of(*FLOATS), "of tensors, and of models that are no .pt2: float32, float64, float16, bfloat16", "float32"
    )
    scores: str = key(one_of("float32", "float16"), "type of attributions in the output: float32 or float16", "float32")
    sum_last: bool = key(flag, "sum attributions over their last dimension, such as an embedding's", False)
    batch: int | str = key(auto_or(positive_int), '"auto" or how many rows the method is given at once', "auto")
    rows_per_part: int | str = key(auto_or(positive_int), '"auto" or rows of a part, which is one row group', "auto")
    seed: int = key(integer, "of all random draws; they do not depend on workers or interruptions", 0)
    unreadable: str = key(one_of("fail", "skip"), 'at a file that cannot be read: "fail" or "skip" it', "fail", True)
    max_rejected: int | None = key(integer, "stop when more rows than these were rejected", None, True)
    workers: int = key(positive_int, "processes on this machine: one a CUDA device, or sharing CPU cores", 1, True)
    engine: str = key(one_of("local", "ray"), '"ray": workers are actors on a Ray cluster', "local", True)
    allow_pickle: bool = key(flag, "load a pickled module, which may run any code it likes", False, True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(each.vocabulary and each.explain for each in self.inputs) and isinstance(self.baselines, str):
            raise ArgumentError(f"baselines: got {self.baselines!r} for token ids; expected an id")
        from .methods import method_of  # it reads a Spec

        method_of(self)

    @staticmethod
    def from_toml(path: str | Path, **keys: Any) -> Spec:
        """The job of a TOML file, with keys put over the file's; raises ArgumentError naming a key or the file."""
        return build(Spec, {**read_toml(path), **keys})

    @property
    def columns(self) -> list[str]:
        """The columns of the data that are read."""
        target = [] if self.target_column is None else [self.target_column]
        return list(dict.fromkeys([self.id, *target, *(name for each in self.inputs for name in each.columns)]))

    @property
    def target_column(self) -> str | None:
        """The column that says which output is explained, if one does."""
        return self.target if isinstance(self.target, str) and self.target != "predicted" else None


def build(cls: type[C], given: Mapping[str, Any], where: str = "") -> C:
    """A Spec or Input of named values; raises ArgumentError for unknown and missing names."""
    known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise ArgumentError(f"{where}{name}: got an unknown key; expected one of {list(known)}")
    for name, each in known.items():
        if name not in given and _default(each) is MISSING:
            raise ArgumentError(f"{where}{name}: missing; expected {each.metadata['help']}")
    return cls(**given)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two specs as_dict, in words, apart from keys that may change."""
    found = []
    for each in fields(Spec):
        was, now = [str(spec.get(each.name, "not given")) for spec in (old, new)]
        if was != now and not each.metadata["free"]:
            found.append(f"{each.name} was {was}, is {now}")
    return found


def read_toml(path: str | Path) -> dict[str, Any]:
    """The keys in a TOML file."""
    try:
        return dict(tomllib.loads(Path(path).read_text()))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path}: cannot be read as TOML: {error}") from None


def literal(value: str) -> Any:
    """A flag's text as TOML would read it, or else as text."""
    try:
        return tomllib.loads(f"x = {value}")["x"]
    except ValueError:
        return value
