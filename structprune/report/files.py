"""Opens a model file of any kind without running what is in it."""

from __future__ import annotations

import base64
import re
import sys
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import nn

from structprune import StructPruneError, demo, load
from structprune.errors import brief
from structprune.report.allowed import look_here
from structprune.report.archives import OLD_EXPORT, Archive, is_archive
from structprune.report.libraries import build
from structprune.report.limits import (
    MOST_HEADER_BYTES,
    MOST_PICKLE_BYTES,
    MOST_PLAN_BYTES,
    MOST_RECORDS,
    Budget,
    Refused,
)
from structprune.report.pickles import Names, NamesRefused, Reader
from structprune.report.printable import printable
from structprune.report.rebuild import Rebuild
from structprune.report.soundness import check_sound
from structprune.report.storages import ArchiveStorages, FollowingStorages

# Where structprune.save puts the plan, and structprune.prune_checkpoint the names of its files: see docs/files.md.
_PLAN = "structprune.plan"
_INDEX = ".safetensors.index.json"
_SHOWN = 30
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network")
# What files from before PyTorch 1.6 begin with: torch.serialization.MAGIC_NUMBER as a pickle, and the version 1001.
_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."


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
        # Anything else, a pipe say, could keep us waiting.
        if not path.is_file() and not path.is_dir():
            raise FileError(f"{path}: no such file.")
        if _is_safetensors(path):
            return _load_safetensors(path, architecture)
        value = _trusted(path) if trust.everything else _untrusted(path, trust.allowed)
        return value if isinstance(value, Loaded) else _model_or_state(value, architecture, path)
    except NamesRefused as error:
        raise FileError(_names_refused(path, error.names)) from error
    except Refused as error:
        raise FileError(
            f"{path} was not opened: {error}. Take a good copy, or save the model anew with torch.save. If you trust "
            "where it comes from, let it do what it wants: --trust"
        ) from error
    except StructPruneError:
        raise
    except Exception as error:
        raise FileError(f"{path}: cannot be read ({brief(error)}).") from error


def _untrusted(path: Path, extra: frozenset[str]) -> Any:
    """What a file holds, read by ``Reader`` alone."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size, budget = path.stat().st_size, Budget()
        if is_archive(file):
            return _out_of_archive(path, Archive(file), budget, extra)
        file.seek(0)
        start = file.read(len(_BEFORE_1_6))
        if start != _BEFORE_1_6:
            raise FileError(
                f"{path}: cannot be opened safely, it is of no kind that is known. Expected a file of torch.save, or "
                ".safetensors. An old one that you trust opens with --trust."
            )
        return _from_before_1_6(file, size, budget, extra)


def _out_of_archive(path: Path, archive: Archive, budget: Budget, extra: frozenset[str]) -> Any:
    for marks, kind, saved in (
        (("constants.pkl", "code/"), "TorchScript, a program of its own", "the Python module that it was made of"),
        (
            ("archive_format", "models/", OLD_EXPORT),
            "an exported program",
            "the Python module that it was exported from",
        ),
    ):
        if any(name.startswith(marks) for name in archive.sizes):
            raise FileError(
                f"{path} was not opened: it is {kind}, and PyTorch runs such a file while it opens it. Save {saved} "
                "with torch.save and give that file. If you trust where this one comes from: --trust"
            )
    if "data.pkl" not in archive.sizes:
        raise FileError(f"{path}: an archive that is no saved module, no exported program, no TorchScript.")
    archive.check_stored()
    data, names = archive.read("data.pkl", MOST_PICKLE_BYTES), Names(extra)
    names.check(BytesIO(data))
    reader = Reader(ArchiveStorages(archive, budget).named, Rebuild(budget, values_known=True), budget, names)
    value = reader.read(BytesIO(data))
    check_sound(value, names.trusts)
    return value


def _from_before_1_6(file: BinaryIO, size: int, budget: Budget, extra: frozenset[str]) -> Any:
    """Pickles one after the other: the system that saved it, the object, the order of the values; then these."""
    start = file.tell()
    pickles = BytesIO(file.read(MOST_PICKLE_BYTES))
    storages, names = FollowingStorages(size, budget), Names(extra)
    reader = Reader(storages.named, Rebuild(budget, values_known=False), budget, names)
    system = reader.read(pickles)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("it was saved on a big-endian machine, or is damaged")
    after_system = pickles.tell()
    names.check(pickles)
    pickles.seek(after_system)
    value = reader.read(pickles)
    keys = reader.read(pickles)
    file.seek(start + pickles.tell())
    storages.fill(file, keys)
    check_sound(value, names.trusts)
    return value


def _names_refused(path: Path, refused: Mapping[str, str]) -> str:
    more = f"\n  and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    refused = dict(list(refused.items())[:_SHOWN])
    listed = "\n".join(f"  {printable(name[:300], lines=False)}: {reason}" for name, reason in refused.items()) + more
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


def _trusted(path: Path) -> Any:
    """What a file holds, read by PyTorch, which runs what is in it."""
    with path.open("rb") as file:
        names = zipfile.ZipFile(file).namelist() if is_archive(file) else []
    inner = {name.split("/", 1)[-1] for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if inner & {"archive_format", OLD_EXPORT} or any(
            n.startswith("models/") and n.endswith(".json") for n in inner
        ):
            return _load_exported(path)
        if "constants.pkl" in inner:
            return Loaded(torch.jit.load(str(path), map_location="cpu"), None, "TorchScript")  # type: ignore[no-untyped-call]
        return torch.load(path, map_location="cpu", weights_only=False)


def _load_exported(path: Path) -> Loaded:
    program = torch.export.load(str(path))
    args, kwargs = program.example_inputs or ((), {})
    model = program.module()
    if kwargs:
        return Loaded(model, (lambda m: m(*args, **kwargs)) if args else dict(kwargs), "exported program")
    return Loaded(model, tuple(args) or None, "exported program")


def demo_model() -> Loaded:
    """The built-in ResNet-50."""
    torch.manual_seed(0)
    return Loaded(demo.resnet50(), None, "built-in")


def _model_or_state(value: Any, architecture: str | None, path: Path) -> Loaded:
    if isinstance(value, nn.Module):
        return Loaded(value, None, "saved module")
    state = _state_of(value, path)
    return _with_state(_named_network(architecture, len(state), path), state, architecture, path)


def _named_network(architecture: str | None, tensors: int, path: Path) -> nn.Module:
    if tensors > MOST_RECORDS:
        raise FileError(f"{path} holds {tensors:,} tensors, more than any network has: take a good copy.")
    if architecture is None:
        raise FileError(
            f"{path} holds weights only, {tensors} tensors, and not the network that they belong to. Name it: "
            "--arch torchvision:resnet50, --arch timm:NAME or --arch package.module:function."
        )
    try:
        return build(architecture, look_here)
    except Refused as error:
        raise FileError(str(error)) from error


def _with_state(model: nn.Module, state: Mapping[str, Any], architecture: str | None, path: Path) -> Loaded:
    """Put a state dict into the network that the user names."""
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


def _is_safetensors(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".safetensors" or path.name.endswith(_INDEX)


def _load_safetensors(path: Path, architecture: str | None) -> Loaded:
    """Weights, of the network that the user names or of what a plan in the same file left of it."""
    folder = path if path.is_dir() else path.parent
    files = [path] if path.suffix == ".safetensors" else sorted(filter(Path.is_file, folder.glob("*.safetensors")))
    if not files:
        raise FileError(f"{folder}: there is no .safetensors file in it.")
    tensors, plan = 0, ""
    for file in files:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
        if length > MOST_HEADER_BYTES:
            raise FileError(
                f"{file}: its header has {length:,} bytes, more than {MOST_HEADER_BYTES:,}: take a good copy."
            )
        with safe_open(file, framework="pt", backend="pread") as weights:
            tensors += len(weights.keys())
            plan = (weights.metadata() or {}).get(_PLAN, plan)
            if not _is_small(plan):
                raise FileError(f"{file}: its plan unpacks to more than {MOST_PLAN_BYTES:,} bytes: take a good copy.")
    model = _named_network(architecture, tensors, path)
    if plan or path.suffix != ".safetensors":
        return Loaded(load(path, model), None, "pruned by structprune")
    with safe_open(path, framework="pt", backend="pread") as weights:
        return _with_state(model, {name: weights.get_tensor(name) for name in weights.keys()}, architecture, path)


def _is_small(plan: str) -> bool:
    """A plan is JSON; beside small weights it is compressed, and may unpack to any size."""
    stream = zlib.decompressobj()
    if plan and not plan.lstrip().startswith("{"):
        stream.decompress(base64.b85decode(plan), MOST_PLAN_BYTES)
    return stream.eof or len(stream.unconsumed_tail) == 0


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
