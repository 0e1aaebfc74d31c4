"""Opens a model file of any kind without running what is in it."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from structprune import StructPruneError, demo
from structprune.errors import brief
from structprune.report.exports import refused_in_export, repacked
from structprune.report.pickles import allowed_objects, look_here, read_pickle

# What TorchScript calls to read or write files, as it stands in the code of an archive.
_TOUCHES_FILES = re.compile(rb"\b(save|from_file)\b")
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network")


class FileError(StructPruneError):
    """A file cannot be opened, or not safely; the message says what to do."""


@dataclass(frozen=True)
class Loaded:
    """A model out of a file.

    Attributes:
        model: The module, on the CPU.
        example_inputs: Inputs that the file brought along, or ``None``.
        kind: What kind of file it was.
    """

    model: nn.Module
    example_inputs: Any
    kind: str


@dataclass(frozen=True)
class Trust:
    """What the user lets a file do.

    Attributes:
        everything: Run whatever the file says.
        allowed: Full names that are let through.
    """

    everything: bool = False
    allowed: frozenset[str] = frozenset()


def load_model(path: Path, architecture: str | None, trust: Trust) -> Loaded:
    """Open a model file.

    Raises:
        FileError: There is no such file, it is of no known kind, it is damaged, or opening it would run code.
    """
    try:
        return _load(path, architecture, trust)
    except FileError:
        raise
    except Exception as error:
        raise FileError(f"{path}: cannot be read ({brief(error)}).") from error


def _load(path: Path, architecture: str | None, trust: Trust) -> Loaded:
    if not path.is_file():
        raise FileError(f"{path}: no such file.")
    if path.suffix == ".safetensors":
        return _with_architecture(_read_safetensors(path), architecture, path)
    if not _is_archive(path):
        return _load_other(path, architecture, trust)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    _check_names(names, path)
    inner = {name.split("/", 1)[-1] for name in names}
    if "archive_format" in inner or any(n.startswith("models/") and n.endswith(".json") for n in inner):
        return _load_exported(path, trust)
    if "constants.pkl" in inner:
        return _load_script(path, trust)
    if "data.pkl" in inner:
        return _load_saved(path, architecture, trust)
    raise FileError(f"{path}: an archive that is no saved module, no exported program, no TorchScript.")


def _is_archive(path: Path) -> bool:
    """Whether torch would take it for one: it looks at the head, zipfile at the tail."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" and zipfile.is_zipfile(path)


def _check_names(names: Sequence[str], path: Path) -> None:
    """Two readers of one archive must see the same files: what is checked here is what torch reads."""
    folded = {name.lower() for name in names}
    if len(folded) < len(names) or len({name.split("/", 1)[0] for name in names}) > 1:
        raise FileError(f"{path} was not opened: its archive holds files of one name twice, or more than one folder.")


def build(architecture: str) -> nn.Module:
    """Make the network that ``--arch`` names, with random weights.

    Raises:
        FileError: The library is missing or does not know the name.
    """
    home, _, name = architecture.partition(":")
    if not name:
        raise FileError(f"--arch {architecture}: expected torchvision:NAME, timm:NAME or package.module:function.")
    try:
        if home == "torchvision":
            made = importlib.import_module("torchvision.models").get_model(name, weights=None)
        elif home == "timm":
            made = importlib.import_module("timm").create_model(name, pretrained=False)
        else:
            made = _own(home, name)()
    except ImportError as error:
        raise FileError(f"--arch {architecture}: {home} cannot be imported ({error}).") from error
    except Exception as error:
        raise FileError(f"--arch {architecture}: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise FileError(f"--arch {architecture}: returned a {type(made).__name__}, expected an nn.Module.")
    return made


def _own(home: str, name: str) -> Callable[[], Any]:
    look_here()
    found: Callable[[], Any] = getattr(importlib.import_module(home), name)
    return found


def demo_model() -> Loaded:
    """The built-in ResNet-50."""
    torch.manual_seed(0)
    return Loaded(demo.resnet50(), None, "built-in")


def _load_saved(path: Path, architecture: str | None, trust: Trust) -> Loaded:
    """What ``torch.save`` wrote: a module or a state dict."""
    if trust.everything:
        value = torch.load(path, map_location="cpu", weights_only=False)
        return _model_or_state(value, architecture, path)
    reading = read_pickle(_record(path, "data.pkl"), trust.allowed)
    if reading.refused:
        raise FileError(_refusal(path, reading.refused))
    with warnings.catch_warnings(), torch.serialization.safe_globals(allowed_objects(reading.names, trust.allowed)):
        warnings.simplefilter("ignore")
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise FileError(f"{path}: cannot be read ({brief(error)}).") from error
    return _model_or_state(value, architecture, path)


def _refusal(path: Path, refused: Mapping[str, str]) -> str:
    # A name is the file's own text: it may hold what a terminal would obey.
    listed = "\n".join(f"  {name.encode('unicode_escape').decode()}: {reason}" for name, reason in refused.items())
    # What Python itself brings reaches everything; what a script defined cannot be imported from anywhere.
    closed = {"__main__", *sys.stdlib_module_names}
    names = [
        name
        for name in refused
        if "." in name and all(part.isidentifier() for part in name.split(".")) and name.split(".")[0] not in closed
    ]
    allow = f"allow what you know: {' '.join(f'--allow {name}' for name in names)}\n  or " if names else ""
    return (
        f"{path} was not opened: reading it would run code that it names.\n{listed}\n"
        f"If you trust where it comes from, {allow}let it do what it wants: --trust"
    )


def _record(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        full = next(n for n in archive.namelist() if n.split("/", 1)[-1] == name)
        return archive.read(full)


def _model_or_state(value: Any, architecture: str | None, path: Path) -> Loaded:
    if isinstance(value, nn.Module):
        return Loaded(value, None, "saved module")
    return _with_architecture(value, architecture, path)


def _with_architecture(value: Any, architecture: str | None, path: Path) -> Loaded:
    """Put a state dict into the network that the user names."""
    state = _state_of(value, path)
    if architecture is None:
        raise FileError(
            f"{path} holds weights only, {len(state)} tensors, and not the network that they belong to. Name it: "
            "--arch torchvision:resnet50, --arch timm:NAME or --arch package.module:function."
        )
    model = build(architecture)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        shown = "\n".join(line.strip()[:300] for line in lines[1:4])
        raise FileError(f"{path} does not fit --arch {architecture}:\n{shown}") from error
    return Loaded(model, None, "state dict")


def _state_of(value: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in _NESTED:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    if not isinstance(value, Mapping) or not any(isinstance(v, torch.Tensor) for v in value.values()):
        raise FileError(f"{path} holds a {type(value).__name__}, expected a module or a state dict.")
    state = {str(k): v for k, v in value.items()}
    # DataParallel and DistributedDataParallel put a word in front of every name.
    wrapped = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state.items()}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except Exception as error:
        raise FileError(f"{path}: cannot be read ({brief(error)}).") from error
    return state


def _load_script(path: Path, trust: Trust) -> Loaded:
    """TorchScript is a language of its own, without Python; some of its operators reach files."""
    # Loading runs __setstate__ already, and forks hide in a graph: the text of all methods is read before.
    with zipfile.ZipFile(path) as archive:
        texts = [archive.read(name) for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
    if any(_TOUCHES_FILES.search(text) for text in texts) and not trust.everything:
        raise FileError(_refusal(path, {"TorchScript that saves": "it reads or writes files"}))
    try:
        script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise FileError(f"{path}: cannot be read as TorchScript ({brief(error)}).") from error
    return Loaded(script, None, "TorchScript")


def _load_exported(path: Path, trust: Trust) -> Loaded:
    """A ``torch.export`` archive: torch itself would evaluate expressions in it and unpickle the rest."""
    if not trust.everything:
        refused = refused_in_export(path)
        if refused:
            raise FileError(_refusal(path, refused))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.load(str(path) if trust.everything else repacked(path))
            model = program.module()
        except Exception as error:
            raise FileError(f"{path}: cannot be read as an exported program ({brief(error)}).") from error
    args, kwargs = program.example_inputs or ((), {})
    if kwargs:
        return Loaded(model, (lambda m: m(*args, **kwargs)) if args else dict(kwargs), "exported program")
    return Loaded(model, tuple(args) or None, "exported program")


def _load_other(path: Path, architecture: str | None, trust: Trust) -> Loaded:
    """A file that is no archive: a pickle from before PyTorch 1.6, or something else."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=not trust.everything)
    except Exception as error:
        raise FileError(
            f"{path}: cannot be opened safely ({brief(error)}). Expected a file of torch.save, torch.export.save "
            "or torch.jit.save, or .safetensors. An old one that you trust opens with --trust."
        ) from error
    return _model_or_state(value, architecture, path)


def shapes_of(given: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Example inputs of the shapes that ``--input`` names, ``1,3,224,224`` or ``1,16:int64``.

    Raises:
        FileError: A shape or dtype cannot be read.
    """
    tensors = []
    for text in given:
        sizes, _, dtype_name = text.partition(":")
        dtype = getattr(torch, dtype_name or "float32", None)
        if not re.fullmatch(r"\d+(,\d+)*", sizes) or not isinstance(dtype, torch.dtype):
            raise FileError(
                f"{text!r} is no input: expected sizes and perhaps a dtype, as in 1,3,224,224 or 1,16:int64."
            )
        shape = [int(size) for size in sizes.split(",")]
        floating = dtype.is_floating_point
        generator = torch.Generator().manual_seed(0)
        tensors.append(
            torch.randn(shape, generator=generator).to(dtype) if floating else torch.zeros(shape, dtype=dtype)
        )
    return tuple(tensors)
