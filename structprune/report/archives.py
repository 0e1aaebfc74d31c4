"""Reads the archives that ``torch.save`` writes, strictly, and every byte once.

There are many readers of zip files, and they disagree on files that are made for it. Here is the only
one that touches a file that is not trusted: what it does not list does not exist.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from structprune.report.limits import MOST_RECORDS, Refused

# Names of ZIP's own structures, see PKWARE's APPNOTE.
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
_LONGEST_NAME = 1_000
# What ``torch.export`` of PyTorch 2.6 writes beside others, in no folder.
OLD_EXPORT = "serialized_exported_program.json"
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class _Record:
    name: str
    header: int
    size: int
    stored: bool


def is_archive(file: BinaryIO) -> bool:
    """Whether a file begins as an archive, which is what torch looks at too."""
    file.seek(0)
    return file.read(4) == _LOCAL


class Archive:
    """The records of an archive.

    Attributes:
        sizes: The size of every record in bytes, by its name without the folder that all are in.

    Raises:
        Refused: The archive is not as ``torch.save`` writes them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        records = _records(file)
        roots = {record.name.partition("/")[0] for record in records}
        if OLD_EXPORT in roots:
            self._records, self.sizes = {}, {OLD_EXPORT: 0}  # refused for what it is, and never read
            return
        self._records = {record.name.partition("/")[2]: record for record in records}
        if len(roots) > 1 or len({name.lower() for name in self._records}) < len(records):
            raise Refused("its archive holds files of one name twice, or more than one folder")
        for record in records:
            if any(part in ("", ".", "..") for part in record.name.split("/")):
                raise Refused(f"its archive holds a file of the name {record.name!r:.200}")
        self.sizes = {name: record.size for name, record in self._records.items()}

    def check_stored(self) -> None:
        """Refuse packed records: they may unpack to any size."""
        for record in self._records.values():
            if not record.stored:
                raise Refused(f"{record.name!r:.200} in its archive is compressed, which torch.save does not do")

    def read(self, name: str, most: int) -> bytes:
        """A record as a whole, if it has no more than ``most`` bytes."""
        if self.sizes[name] > most:
            raise Refused(f"its {name} has {self.sizes[name]:,} bytes, more than {most:,}")
        buffer = bytearray(self.sizes[name])
        self.read_into(name, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, name: str, buffer: memoryview) -> None:
        """A record's bytes, into memory of exactly its size."""
        record = self._records[name]
        self._file.seek(record.header)
        head = _exactly(self._file, 30)
        name_length, extra_length = struct.unpack("<HH", head[26:])
        if head[:4] != _LOCAL or _text(_exactly(self._file, name_length)) != record.name:
            raise Refused(f"its archive says two things about {record.name!r:.200}")
        self._file.seek(extra_length, 1)
        if self._file.readinto(buffer) != record.size:  # type: ignore[attr-defined]
            raise Refused("its archive breaks off")


def _records(file: BinaryIO) -> list[_Record]:
    """What the directory at the end of the file lists."""
    count, length, start = _directory(file)
    if count > MOST_RECORDS or length > count * (46 + _LONGEST_NAME):
        raise Refused(f"its archive lists more than {MOST_RECORDS:,} files, or long names")
    file.seek(start)
    listing = _exactly(file, length)
    records, at = [], 0
    for _ in range(count):
        record, at = _entry(listing, at)
        records.append(record)
    if at != length:
        raise Refused("the directory of its archive is longer than what it lists")
    # Records that share bytes would be more than the file, however small it is.
    bounds = sorted((record.header, record.header + 30 + record.size) for record in records)
    if any(end > following for (_, end), (following, _) in pairwise([*bounds, (start, 0)])):
        raise Refused("the files in its archive overlap")
    return records


def _directory(file: BinaryIO) -> tuple[int, int, int]:
    """Number of records, and length and start of their directory."""
    end = file.seek(-22, 2)
    tail = _exactly(file, 22)
    if tail[:4] != _END or tail[20:] != b"\0\0":
        raise Refused("its archive breaks off, or has something behind it")
    disks, here, count, length, start = struct.unpack("<HHHII", tail[4:8] + tail[10:20])
    if disks or here:
        raise Refused("its archive is one of several parts")
    file.seek(max(end - 20, 0))
    locator = _exactly(file, 20)
    if locator[:4] == _LOCATOR:
        end64_at = end - 20 - 56
        file.seek(max(end64_at, 0))
        end64 = _exactly(file, 56)
        wide = struct.unpack("<QQQ", end64[32:56])
        narrow = ((count, _FULL16), (length, _FULL32), (start, _FULL32))
        agree = all(n in (w, full) for w, (n, full) in zip(wide, narrow, strict=True))
        if end64[:4] != _END64 or struct.unpack("<Q", locator[8:16])[0] != end64_at or not agree:
            raise Refused("its archive has two directories")
        count, length, start = wide
        end = end64_at
    if start + length != end:
        raise Refused("its archive has something before it, or between its parts")
    return count, length, start


def _entry(listing: bytes, at: int) -> tuple[_Record, int]:
    head = listing[at : at + 46]
    if head[:4] != _CENTRAL or len(head) < 46:
        raise Refused("the directory of its archive is damaged")
    flags, method = struct.unpack("<HH", head[8:12])
    packed, size, name_length, extra_length, comment_length = struct.unpack("<IIHHH", head[20:34])
    header = struct.unpack("<I", head[42:46])[0]
    name_end = at + 46 + name_length
    name = _text(listing[at + 46 : name_end])
    wide = _wide(listing[name_end : name_end + extra_length])
    size, packed, header = (next(wide) if n == _FULL32 else n for n in (size, packed, header))
    stored = method == 0 and packed == size and not flags & 1
    return _Record(name, header, packed, stored), name_end + extra_length + comment_length


def _wide(extra: bytes) -> Iterator[int]:
    """Numbers that do not fit into 32 bits stand in a field of their own, in order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[at : at + 4])
        if kind == 1:
            for position in range(at + 4, at + 4 + length - 7, 8):
                yield struct.unpack("<Q", extra[position : position + 8])[0]
        at += 4 + length
    raise Refused("the directory of its archive is damaged")


def _text(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused("a name in its archive is no text") from error


def _exactly(file: BinaryIO, length: int) -> bytes:
    found = file.read(length)
    if len(found) != length:
        raise Refused("its archive breaks off")
    return found
