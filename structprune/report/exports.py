"""What a ``torch.export`` archive may hold: ``torch.export.load`` evaluates, unpickles and links what it finds."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from structprune.report.pickles import read_pickle

# What an exported program may call: operators that touch no file, and arithmetic on sizes. torch would take any
# path that starts with "torch.", and from there everything can be reached.
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prim|prims|torchvision|higher_order|quantized_decomposed)\.(?!(?:save|from_file)\b)\w+(\.\w+)?"
    r"|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_MEMBER = re.compile(
    r"models/[\w.\-]+\.json|data/(weights|constants)/((weight|tensor)_\d+|[\w.\-]+_config\.json)"
    r"|data/sample_inputs/[\w.\-]+\.pt|archive_(format|version)|version|byteorder|\.data/\w+|\.format_version"
    r"|\.storage_alignment"
)
_NAME = re.compile(r"[\w.:\-]*")
_EXPRESSION = re.compile(r"-?\d+|[su]\d+|True|False")


def repacked(path: Path) -> io.BytesIO:
    """What was checked and nothing else, so that torch reads the same; inputs are loaded and saved anew."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if "/data/sample_inputs/" in name:
                inputs = torch.load(io.BytesIO(data), weights_only=True)
                buffer = io.BytesIO()
                torch.save(inputs, buffer)
                data = buffer.getvalue()
            new.writestr(name, data)
    out.seek(0)
    return out


def refused_in_export(path: Path) -> dict[str, str]:
    """What in an exported program is more than names, numbers and plain tensors."""
    refused: dict[str, str] = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            if not _MEMBER.fullmatch(name.split("/", 1)[-1]):
                refused[name] = "it is no part of a plain exported program (compiled code, or a pickled object)"
            if name.endswith(".json"):
                refused.update(_refused_in_json(json.loads(data)))
            elif name.endswith((".pt", ".pth")) or data[:2] == b"\x80\x02":
                refused.update(_refused_in_record(data))
    return refused


def _refused_in_record(data: bytes) -> dict[str, str]:
    pickled = [data]
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            pickled = [inner.read(n) for n in inner.namelist() if n.endswith(".pkl")]
    found: dict[str, str] = {}
    for one in pickled:
        reading = read_pickle(one)
        found.update(reading.refused)
        found.update({name: "exported programs hold tensors only" for name in reading.names if not _is_torch(name)})
    return found


def _is_torch(name: str) -> bool:
    return name.startswith(("torch.", "collections."))


def _refused_in_json(value: Any, key: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        found: dict[str, str] = {}
        operator = value.get("target") if "inputs" in value and "outputs" in value else None
        if operator is not None and not _OPERATOR.fullmatch(str(operator)):
            found[str(operator)[:60]] = "it is no operator that computes"
        for inner, item in value.items():
            if inner == "use_pickle" and item:
                found["pickled constants"] = "torch.export.load unpickles them without a check"
            if inner == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(item)):
                found[str(item)[:60]] = "it is no plain tensor"
            if inner == "guards_code" and item:
                found["guards"] = "Python code that torch.export.load runs, for dynamic shapes"
            if inner != "metadata":
                found.update(_refused_in_json(item, inner))
        return found
    if isinstance(value, list):
        return {k: v for item in value for k, v in _refused_in_json(item, key).items()}
    if isinstance(value, str):
        pattern = _EXPRESSION if "expr" in key else _NAME if key in ("name", "target", "arg", "as_name") else None
        if pattern is not None and not pattern.fullmatch(value):
            return {repr(value[:60]): f"no plain {'expression' if 'expr' in key else 'name'}"}
    return {}
