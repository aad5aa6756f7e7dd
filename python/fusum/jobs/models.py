"""The model of a job: TorchScript, torch.export's .pt2, or package.module:function; no file runs Python of its own."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import io
import json
import os
import re
import sys
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from .spec import JobError, Spec

_OPERATORS = re.compile(r"(torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.(_?sym|_sym)_\w+)\Z")
# What an expression of sizes may hold: torch evaluates these as Python.
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.Constant, ast.Name, ast.Load, ast.Subscript, ast.Tuple, ast.keyword,
)  # fmt: skip
_CALLS = {"Symbol", "Integer", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "Eq", "Ne", "Abs"}
_SIZES = {"size", "stride", "storage_offset", "shape"}
_ADVICE = "pass --allow-pickle (allow_pickle = true) if you know who made it"


def load_model(spec: Spec, device: torch.device) -> Any:
    """The model on a device, in evaluation mode where it comes from a file.

    Raises:
        ArgumentError: there is none, or it is of another kind than expected, or a pickle and those are not allowed.
    """
    if _is_function(spec.model):
        return _of_function(spec, device)
    try:
        kind, why = _kind(spec.model)
        if (why or kind == "pickle") and not spec.allow_pickle:
            raise ArgumentError(f"model: {spec.model} {why}: loading it may run any code that is in it; {_ADVICE}")
        if kind == "program":
            return _of_program(spec, device)
        load: Any = torch.jit.load if kind == "TorchScript" else partial(torch.load, weights_only=False)
        found = load(spec.model, map_location=device)
    except ArgumentError:
        raise
    except Exception as error:  # a file may be wrong in any way
        raise ArgumentError(f"model: {spec.model} cannot be loaded: {error}") from error
    if not isinstance(found, nn.Module):
        raise ArgumentError(f"model: {spec.model} holds a {type(found).__name__}; expected a module")
    return found.eval().to(getattr(torch, spec.dtype))


def model_hash(spec: Spec) -> str | None:
    """sha256 of the model's file, or of the source file of its function; None where that has none."""
    if not _is_function(spec.model):
        return file_hash(spec.model, "model")
    try:
        source = inspect.getsourcefile(inspect.unwrap(_function(spec.model)))
    except TypeError:
        return None
    return file_hash(source, "model") if source and os.path.isfile(source) else None


def file_hash(path: str, name: str) -> str:
    """sha256 of a file; name: the key that it was given as."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise ArgumentError(f"{name}: {path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _is_function(model: str) -> bool:
    return ":" in model and not os.path.exists(model) and not model.endswith((".pt", ".pt2", ".pth"))


def _function(model: str) -> Any:
    module, _, name = model.partition(":")
    here = os.getcwd()
    if not getattr(sys.flags, "safe_path", False) and here not in sys.path:
        sys.path.insert(0, here)  # as python -m does
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"model: {model}: {error}; expected package.module:function") from error
    if not callable(found):
        raise ArgumentError(f"model: {model} is a {type(found).__name__}; expected a function that returns a model")
    return found


def _of_function(spec: Spec, device: torch.device) -> Any:
    found = _function(spec.model)()
    if isinstance(found, nn.Module):
        return found.to(device, getattr(torch, spec.dtype))
    if not callable(found) and not isinstance(found, torch.export.ExportedProgram):
        raise ArgumentError(f"model: {spec.model} returned a {type(found).__name__}; expected a callable")
    return found


def _of_program(spec: Spec, device: torch.device) -> Any:
    program = torch.export.load(spec.model)
    if device.type == "cpu":
        return program
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _kind(path: str) -> tuple[str, str | None]:
    """TorchScript, program or pickle, and why the last two are not to be trusted, if they are not."""
    if not os.path.isfile(path):
        raise ArgumentError(f"model: there is no file {path}; expected one, or package.module:function")
    try:
        reader = torch._C.PyTorchFileReader(path)  # reads an archive as torch's loaders do, which zipfile may not
        names = reader.get_all_records()
    except RuntimeError:
        return "pickle", "is a pickle (or no model at all)"
    if "constants.pkl" in names:
        return "TorchScript", None
    if any(name.startswith("models/") for name in names):
        return "program", _distrust(reader, names)
    return "pickle", "is a pickled module (or weights alone)"


def _distrust(reader: Any, names: list[str]) -> str | None:
    """Why a .pt2 file is not to be loaded, in words: torch.export.load unpickles and evaluates what it finds.

    What torch.export.save writes of a model of tensors passes.
    """
    for name in names:
        if name.startswith("data/aotinductor") or name.endswith((".so", ".cubin")):
            return f"holds compiled code ({name})"
        content = reader.get_record(name) if name.endswith((".pt", ".json")) else b""
        if name.endswith(".pt") and content and not _is_plain(content):
            return f"holds a pickle of other things than tensors ({name})"
        if name.startswith(("data/weights/", "data/constants/")) and name.endswith(".json"):
            for item in json.loads(content)["config"].values():
                if item["use_pickle"]:
                    return f"holds a pickle ({item['path_name']})"
        if name.startswith("models/"):
            strange = _strange(json.loads(content))
            if strange is not None:
                return f"holds an expression that is none of sizes, or an operator that is none ({strange!r})"
    return None


def _is_plain(pickled: bytes) -> bool:
    try:
        torch.load(io.BytesIO(pickled), weights_only=True)
    except Exception:  # whatever is wrong with it: it is not plain tensors
        return False
    return True


def _strange(tree: Any, name: str = "") -> str | None:
    """The first expression or operator in a program that torch would evaluate, and that is not of the usual kind."""
    if isinstance(tree, dict):
        found = (_strange(item, key) for key, item in tree.items())
    elif isinstance(tree, list):
        found = (_strange(item, name) for item in tree)
    else:
        checked = isinstance(tree, str) and name in ("expr_str", "guards_code", "target")
        ok = not checked or (_OPERATORS.match(tree) if name == "target" else _is_of_sizes(tree))
        return None if ok else tree
    return next((each for each in found if each is not None), None)


def _is_of_sizes(expression: str) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    for node in nodes:
        if isinstance(node, ast.Call):
            called = node.func
            if not (isinstance(called, ast.Name) and called.id in _CALLS) and not isinstance(called, ast.Attribute):
                return False
        elif isinstance(node, ast.Attribute):
            if node.attr not in _SIZES:
                return False
        elif not isinstance(node, _NODES):
            return False
    return True


def device_of(spec: Spec, local_rank: int | None = None) -> torch.device:
    """The device of a spec; of "cuda" the one of a process's number, if it has one."""
    try:
        device = torch.device(spec.device)
    except RuntimeError:
        raise ArgumentError(f"device: got {spec.device!r}; expected cpu, cuda or such as cuda:1") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise JobError("device: got cuda, but torch sees no CUDA device; expected cpu")
    index = device.index if device.index is not None else local_rank or 0
    if index >= torch.cuda.device_count():
        raise JobError(f"device: got cuda:{index}; this machine has {torch.cuda.device_count()}")
    return torch.device("cuda", index)
