"""The values of tensors in a file: records of an archive, or what follows the pickle in files from before 1.6."""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from structprune.report.allowed import StorageKind
from structprune.report.archives import Archive
from structprune.report.limits import Budget, Refused


@dataclass(frozen=True)
class Storage:
    """Values of one dtype."""

    values: torch.UntypedStorage
    dtype: torch.dtype


class ArchiveStorages:
    """Storages that are records of an archive, each read when it is first named."""

    def __init__(self, archive: Archive, budget: Budget) -> None:
        self._archive = archive
        self._budget = budget
        self._read: dict[str, torch.UntypedStorage] = {}
        order = archive.read("byteorder", 16).strip() if "byteorder" in archive.sizes else b"little"
        if order not in (b"little", b"big"):
            raise Refused("its byte order is neither little nor big")
        self._swaps = order.decode() != sys.byteorder

    def named(self, identity: Any) -> Storage:
        """The storage that a pickle names: its kind, its record, where it was, and how many values it has."""
        kind, key, numel = _identified(identity, 5)
        record = f"data/{key}"
        if self._archive.sizes.get(record) != numel * kind.dtype.itemsize:
            raise Refused(f"the storage {key!r:.40} is not as large as it says")
        if key not in self._read:
            self._budget.store(self._archive.sizes[record])
            values = torch.empty(self._archive.sizes[record], dtype=torch.uint8)
            self._archive.read_into(record, values.numpy().data)
            self._read[key] = values.untyped_storage()
            if self._swaps:
                self._read[key].byteswap(kind.dtype)  # type: ignore[no-untyped-call]
        return Storage(self._read[key], kind.dtype)


class FollowingStorages:
    """Storages that stand behind the pickle that names them; they are filled afterwards."""

    def __init__(self, file_size: int, budget: Budget) -> None:
        self._left = file_size
        self._budget = budget
        self._made: dict[str, Storage] = {}

    def named(self, identity: Any) -> Any:
        """The storage that a pickle names, or the class of a module, which stood beside its source."""
        if type(identity) is tuple and len(identity) == 4 and identity[0] == "module":
            return identity[1]
        kind, key, numel = _identified(identity, 6)
        if key not in self._made:
            nbytes = numel * kind.dtype.itemsize
            self._left -= nbytes
            if self._left < 0:
                raise Refused(f"the storage {key!r:.40} is larger than the file")
            self._budget.store(nbytes)
            self._made[key] = Storage(torch.empty(nbytes, dtype=torch.uint8).untyped_storage(), kind.dtype)
        whole, view = self._made[key], identity[5]
        if whole.values.nbytes() != numel * kind.dtype.itemsize:
            raise Refused(f"the storage {key!r:.40} has two sizes")
        return whole if view is None else _part(whole, view)

    def fill(self, file: BinaryIO, keys: Any) -> None:
        """Read the values, in the order of the keys."""
        if type(keys) is not list or set(map(str, keys)) != set(self._made) or len(keys) != len(self._made):
            raise Refused("the values in it are not those of its tensors")
        for key in keys:
            storage = self._made[key]
            head = file.read(8)
            expected = storage.values.nbytes() // storage.dtype.itemsize
            if len(head) != 8 or struct.unpack("<q", head)[0] != expected:
                raise Refused(f"the storage {key!r:.40} is not as large as it says")
            values = torch.empty(0, dtype=torch.uint8).set_(storage.values)
            if len(values) and file.readinto(values.numpy().data) != len(values):  # type: ignore[attr-defined]
                raise Refused("it breaks off")
            if sys.byteorder == "big":
                storage.values.byteswap(storage.dtype)  # type: ignore[no-untyped-call]


def _identified(identity: Any, length: int) -> tuple[StorageKind, str, int]:
    if type(identity) is tuple and len(identity) == length and identity[0] == "storage":
        kind, key, _, numel = identity[1:5]
        if isinstance(kind, StorageKind) and type(key) is str and type(numel) is int and numel >= 0:
            return kind, key, numel
    raise Refused("it names a storage in a way that torch.save does not use")


def _part(whole: Storage, view: Any) -> Storage:
    """A storage within another one."""
    if type(view) is not tuple or len(view) != 3 or any(type(number) is not int for number in view[1:]):
        raise Refused("it names a storage in a way that torch.save does not use")
    start, length = (number * whole.dtype.itemsize for number in view[1:])
    if not 0 <= start <= start + length <= whole.values.nbytes():
        raise Refused("a storage reaches behind the one that it is part of")
    return Storage(whole.values[start : start + length], whole.dtype)
