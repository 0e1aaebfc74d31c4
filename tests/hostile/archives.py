"""Archives that two readers see differently, that unpack to more than they are, or are broken."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path
from random import Random

from tests.hostile.kinds import Place, kind
from tests.hostile.writing import VALUES, archive, called, name, network, records, saved, text


def _evil(place: Place) -> bytes:
    return b"\x80\x02" + called(name("os", "system"), text(f"touch {place.marker}")) + b"."


@kind("unpacks to a thousand times its size")
def zip_bomb(random: Random, place: Place) -> Path:
    size = 10 ** random.randint(8, 9)
    held = records(network(), VALUES)
    record = random.choice(["m/data.pkl", "m/data/0", "m/byteorder", "m/version"])
    packing = random.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(place.file, "w", packing, compresslevel=1) as made:
        made.writestr("m/data.pkl", held.pop("m/data.pkl"), zipfile.ZIP_STORED)
        for key, data in held.items():
            made.writestr(key, data, zipfile.ZIP_STORED)
        if record not in ("m/data.pkl", *held):
            made.writestr(record, bytes(size))
    if record in ("m/data.pkl", *held):
        with zipfile.ZipFile(place.file, "w", packing, compresslevel=1) as made:
            for key, data in records(network(), VALUES).items():
                made.writestr(key, bytes(size) if key == record else data)
    return place.file


@kind("has another program under the same or a similar name")
def two_of_one_name(random: Random, place: Place) -> Path:
    second = random.choice(
        ["m/data.pkl", "m/DATA.PKL", "other/data.pkl", "m/data.pkl/", "data.pkl", "/data.pkl", "m//data.pkl"]
    )
    held = records(network(), VALUES)
    with warnings.catch_warnings(), zipfile.ZipFile(place.file, "w") as made:
        warnings.simplefilter("ignore")
        first = random.random() < 0.5
        if first:
            made.writestr(second, _evil(place))
        for record, data in held.items():
            made.writestr(record, data)
        if not first:
            made.writestr(second, _evil(place))
    return place.file


@kind("has something before, behind or between what it lists, or lists it elsewhere")
def moved_directory(random: Random, place: Place) -> Path:
    good = saved(place.file, network()).read_bytes()
    evil = archive(place.folder / "evil.pt", {"m/data.pkl": _evil(place), "m/byteorder": b"little"}).read_bytes()
    (place.folder / "evil.pt").unlink()
    end = len(good) - 22
    length, start = struct.unpack("<II", good[end + 12 : end + 20])
    directory = good[start:end]

    def ended(data: bytes, count: int, size: int, at: int, comment: bytes = b"") -> bytes:
        return data + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, size, at, len(comment)) + comment

    count = struct.unpack("<H", good[end + 10 : end + 12])[0]
    place.file.write_bytes(
        random.choice(
            [
                evil + good,
                good + evil,
                good + b"\0" * 100,
                good[:4] + bytes(64) + good[4:],
                ended(good[:end], count, length, start, comment=evil[:1000]),
                ended(good[:end], count + 1, length, start),
                ended(good[:end], count - 1, length, start),
                ended(good[:end], 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
                ended(good[:end], count, 0x7FFFFFFF, 0),
                ended(good[:start] + bytes(50) + directory, count, length, start + 50)[:-1],
                ended(good[:start] + directory + bytes(30), count, length, start),
                good[: len(good) // 2],
                good[:-1],
            ]
        )
    )
    return place.file


@kind("has a directory in 64 bits that says something else than the one in 32")
def two_directories(random: Random, place: Place) -> Path:
    good = saved(place.file, network()).read_bytes()
    end = len(good) - 22
    count = struct.unpack("<H", good[end + 10 : end + 12])[0]
    length, start = struct.unpack("<II", good[end + 12 : end + 20])
    wide = random.choice(
        [
            (1, length, start),
            (count, length, 0),
            (count, 1 << 60, start),
            (1 << 60, length, start),
            (count, length, 1 << 62),
        ]
    )
    end64 = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, wide[0], *wide)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, random.choice([end, 0, 1 << 60]), 1)
    place.file.write_bytes(good[:end] + end64 + locator + good[end:])
    return place.file


@kind("says one thing in its directory and another one where the data are")
def two_headers(random: Random, place: Place) -> Path:
    data = bytearray(saved(place.file, network()).read_bytes())
    start = struct.unpack("<I", data[len(data) - 6 : len(data) - 2])[0]
    variant = random.randrange(6)
    if variant == 0:
        data[data.index(b"m/data.pkl")] = ord("x")
    elif variant == 1:
        data[start + 42 : start + 46] = struct.pack("<I", 60)
    elif variant == 2:
        # Two records of the same bytes.
        second = data.index(b"PK\x01\x02", start + 4)
        data[second + 42 : second + 46] = data[start + 42 : start + 46]
    elif variant == 3:
        data[start + 20 : start + 28] = struct.pack("<II", 0x7FFFFFFF, 0x7FFFFFFF)
    elif variant == 4:
        data[start + 24 : start + 28] = struct.pack("<I", 0x7FFFFFFF)
    else:
        data[start + 8] |= 1
    place.file.write_bytes(data)
    return place.file


@kind("lists a million records")
def many_records(random: Random, place: Place) -> Path:
    good = records(network(), VALUES)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for record, data in good.items():
            made.writestr(record, data)
        for i in range(random.choice([0, 70_000])):
            made.writestr(f"m/{i}", b"")
    if len(out.getvalue()) < 1_000_000:
        data = out.getvalue()
        start = struct.unpack("<I", data[-6:-2])[0]
        entry = data[start : data.index(b"PK\x01\x02", start + 4)]
        many = entry * 1_000_000
        place.file.write_bytes(
            data[:start] + many + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFE, 0xFFFE, len(many), start, 0)
        )
    else:
        place.file.write_bytes(out.getvalue())
    return place.file


@kind("is of the tar format from before PyTorch 0.2, or another archive")
def other_archives(random: Random, place: Place) -> Path:
    with tarfile.open(place.file, random.choice(["w", "w:gz"])) as tar:
        for member in ("storages", "tensors", "pickle", "../escaped", str(place.marker)):
            info = tarfile.TarInfo(member)
            data = _evil(place)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return place.file


@kind("breaks off, or has damaged bytes, anywhere")
def damaged(random: Random, place: Place) -> Path:
    data = bytearray(saved(place.file, network()).read_bytes())
    if random.random() < 0.5:
        del data[random.randrange(1, len(data) - 1) :]
    else:
        # Not in the values of tensors, where nobody could tell.
        at = random.randrange(40, data.index(b"PK\x03\x04", 40) - 40)
        data[at : at + 30] = random.randbytes(30)
    place.file.write_bytes(data)
    return place.file
