"""Opens safetensors, alone or in shards with an index, and trusts nothing that they say.

safetensors itself holds a header against the size of its file before anything is allocated. It
reads (``pread``) instead of mapping: memory holds what was asked for, and a file that shrinks is
an error instead of a signal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from structprune.checkpoint.contents import DIGEST, Digest, read_json
from structprune.checkpoint.writing import DTYPES, Entry
from structprune.errors import CheckpointError, brief

INDEX = ".safetensors.index.json"
_LARGEST_INDEX = 100_000_000
_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


class TensorFiles(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint, each read when it is asked for.

    Attributes:
        path: What was opened.
        index: The index, if there is one.
        metadata: The texts in the header, by file; the files in the order of the index.
        entries: Dtype and shape of every tensor.
        file_of: The file that holds a tensor.

    Raises:
        CheckpointError: A file is missing, damaged, or disagrees with the index.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        found = _located(self.path)
        self.index = found if found.suffix == ".json" else None
        self.metadata: dict[Path, dict[str, str]] = {}
        self.entries: dict[str, Entry] = {}
        self.file_of: dict[str, Path] = {}
        self._digests: dict[Path, Digest] = {}
        self._opened: tuple[Path, Any] | None = None
        weight_map = _weight_map(found) if self.index else None
        for file in dict.fromkeys(weight_map.values()) if weight_map is not None else [found]:
            self._take(file)
        if weight_map is not None and weight_map != self.file_of:
            name = sorted(set(weight_map.items()) ^ set(self.file_of.items()))[0][0]
            raise CheckpointError(f"{found}: the index and the files disagree on where {name!r:.200} is.")

    def _take(self, file: Path) -> None:
        try:
            handle = self._handle(file)
            self.metadata[file] = dict(handle.metadata() or {})
            for name in handle.keys():
                if name in self.entries:
                    raise CheckpointError(f"{file} holds {name!r:.200}, and so does {self.file_of[name].name}.")
                part = handle.get_slice(name)
                self.entries[name] = Entry(_BY_NAME[part.get_dtype()], tuple(part.get_shape()))
                self.file_of[name] = file
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{file} cannot be read as safetensors ({brief(error)}).{_way_on(file)}") from error
        if DIGEST in self.metadata[file]:
            self._digests[file] = Digest()

    def _handle(self, file: Path) -> Any:
        """One file at a time is open."""
        if self._opened is None or self._opened[0] != file:
            if not file.is_file():
                raise CheckpointError(f"{file}: no such file.")
            self._opened = None
            self._opened = file, safe_open(file, framework="pt", device="cpu", backend="pread")
        return self._opened[1]

    def __getitem__(self, name: str) -> torch.Tensor:
        file = self.file_of[name]
        try:
            tensor: torch.Tensor = self._handle(file).get_tensor(name)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{file}: {name} cannot be read ({brief(error)}).") from error
        entry = self.entries[name]
        if (tensor.dtype, tuple(tensor.shape)) != (entry.dtype, entry.shape):
            raise CheckpointError(f"{file} was changed while it was read.")
        if file in self._digests:
            self._digests[file].add(name, tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def verify(self) -> None:
        """Hold what was read against the digests that structprune wrote; files of others have none.

        Raises:
            CheckpointError: A file is not as it was written.
        """
        for file, digest in self._digests.items():
            for name in digest.missing(n for n, f in self.file_of.items() if f == file):
                self[name]
            if digest.result(self.metadata[file]) != self.metadata[file][DIGEST]:
                raise CheckpointError(
                    f"{file} is damaged: its digest does not match its contents. Take a good copy, or save the "
                    "model anew."
                )


def _way_on(file: Path) -> str:
    """What to do with a file of another kind."""
    with file.open("rb") as opened:
        begins = opened.read(2)
    if begins not in (b"PK", b"\x80\2"):
        return ""
    return (
        " It looks like one of torch.save: model.load_state_dict(torch.load(path, weights_only=True)), and save the "
        "pruned model with structprune.save."
    )


def _located(path: Path) -> Path:
    """The index or the one safetensors file that a path means."""
    if path.is_dir():
        indices, files = sorted(path.glob(f"*{INDEX}")), sorted(path.glob("*.safetensors"))
        found = indices or files
        if len(found) != 1:
            raise CheckpointError(
                f"{path} holds {len(indices)} indices (*{INDEX}) and {len(files)} safetensors files: name the one "
                "to read."
            )
        return found[0]
    # Anything else, a pipe say, could keep us waiting.
    if "\0" in str(path) or not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    return path


def _weight_map(index: Path) -> dict[str, Path]:
    """Which file holds which tensor: files beside the index, whatever it says."""
    try:
        if index.stat().st_size > _LARGEST_INDEX:
            raise CheckpointError(f"{index} is larger than an index can be.")
        found = read_json(index.read_text(encoding="utf-8"), str(index)).get("weight_map")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index} cannot be read ({error}).") from error
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{index} has no weight_map, which says where the tensors are.")
    for name, file in found.items():
        if not isinstance(file, str) or "\0" in file or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} puts {name!r:.200} into {file!r:.200}: expected a .safetensors file beside it."
            )
    return {name: index.parent / file for name, file in found.items()}
