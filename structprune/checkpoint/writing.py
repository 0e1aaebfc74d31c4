"""Writes safetensors one tensor at a time, and puts them in place when they are whole.

The library's own writer wants all tensors in memory at once, in that of the CPU.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from structprune.checkpoint.contents import DIGEST, Digest, raw_bytes
from structprune.compat import FLOAT8_E8M0
from structprune.errors import CheckpointError

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip
if FLOAT8_E8M0 is not None:
    DTYPES[FLOAT8_E8M0] = "F8_E8M0"
# What safetensors refuses to read.
_LARGEST_HEADER = 100_000_000
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of its values."""
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: Path, entries: Mapping[str, Entry], value: Callable[[str], torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file that holds a digest of itself.

    Args:
        path: A file that does not exist.
        entries: Dtype and shape of every tensor.
        value: Gives the tensor for a name; asked for one after the other.
        metadata: Texts by key.

    Raises:
        CheckpointError: The header is larger than readers take.
        OSError: The file cannot be written.
    """
    # The widest first, as the library does: then every tensor starts at a multiple of its item's size.
    names = sorted(entries, key=lambda n: (-entries[n].dtype.itemsize, n))
    metadata = {**metadata, DIGEST: _NO_DIGEST}
    header = _header(names, entries, metadata)
    if len(header) > _LARGEST_HEADER:
        raise CheckpointError(
            f"{path}: names and plan take {len(header):,} bytes, safetensors reads no more than 100 MB."
        )
    digest = Digest()
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            tensor = value(name)
            digest.add(name, tensor)
            file.write(raw_bytes(tensor))
        # No text of ours has bare quotes inside: in JSON they are escaped.
        file.seek(8 + header.index(f'"{DIGEST}":"{_NO_DIGEST}"'.encode()) + len(DIGEST) + 4)
        file.write(digest.result(metadata).encode())
        file.flush()
        os.fsync(file.fileno())


def _header(names: list[str], entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    described: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name in names:
        entry = entries[name]
        offsets = [start, start + entry.nbytes]
        described[name] = {"dtype": DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        start = offsets[1]
    text = json.dumps(described, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write under, a file or a folder, which takes its place if all goes well.

    What was written is on the disk before it gets the name: after a loss of power ``path`` is the old or the new one.

    Raises:
        CheckpointError: Something cannot be written; ``path`` is as it was.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        for written in _below(partial):
            _sync(written)
        os.replace(partial, path)
        if hasattr(os, "O_DIRECTORY"):
            # Some file systems sync no folders, and what is in place already is no failure.
            with suppress(OSError):
                _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error}).") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _below(path: Path) -> Iterator[Path]:
    """A file, or what a folder holds and then itself, where folders can be synced."""
    if not path.is_dir():
        yield path
        return
    for inside in sorted(path.iterdir()):
        yield from _below(inside)
    if hasattr(os, "O_DIRECTORY"):
        yield path


def _sync(path: Path) -> None:
    """Have a file or a folder on the disk itself."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
