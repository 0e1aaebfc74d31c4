"""safetensors and plans that lie, and text that a terminal would obey."""

from __future__ import annotations

import base64
import json
import zlib
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch

import structprune
from structprune.checkpoint.contents import DIGEST, PLAN, Digest
from tests.hostile.kinds import HARMLESS, Place, Sample, kind
from tests.hostile.writing import (
    archive,
    called,
    layer,
    linear,
    listed,
    mapping,
    module,
    name,
    network,
    number,
    numbers,
    records,
    saved,
    sequential,
    storage,
    tensor,
    text,
)

ESCAPES = (
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "\r\x1b[1A",
    "\u202egnp.exe",
    "\x7f\x08\x08",
    "\u2066a\u2069",
)


def small() -> torch.nn.Module:
    """The architecture of the files here."""
    nn = torch.nn
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


_ARCH = ("--arch", "tests.hostile.headers:small")


def _file(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
    return path


@kind("is safetensors with a header that lies about sizes, places and itself")
def safetensors_headers(random: Random, place: Place) -> Sample:
    def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    path = place.folder / "model.safetensors"
    many = 10 ** random.randint(9, 18)
    headers = [
        {"0.weight": entry([many], 0, 4 * many)},
        {"0.weight": entry([many, many], 0, 4)},
        {"0.weight": entry([1], 0, 4), "0.bias": entry([1], 0, 4)},
        {"0.weight": entry([1], 4, 0)},
        {"0.weight": entry([1], -4, 0)},
        {"0.weight": entry([0, many], 0, 0)},
        {"0.weight": entry([1], 0, 4, "F31")},
        {"0.weight": 1},
        {random.choice(ESCAPES): entry([1], 0, 4)},
        {"__metadata__": {"a": 1}},
    ]
    variant = random.randrange(len(headers) + 5)
    if variant < len(headers):
        _file(path, json.dumps(headers[variant]).encode(), bytes(4))
    elif variant == len(headers):
        _file(path, b"{}", length=random.choice([1 << 62, 1 << 30, (1 << 64) - 1]))
    elif variant == len(headers) + 1:
        _file(path, b"[" * 5_000_000)
    elif variant == len(headers) + 2:
        _file(path, json.dumps({"__metadata__": {PLAN: "x" * 30_000_000}}).encode())
    elif variant == len(headers) + 3:
        many_entries = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(350_000))
        _file(path, b"{" + many_entries.encode() + b"}")
    else:
        _file(path, b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}', bytes(4))
    return Sample(path, _ARCH)


@cache
def _pruned() -> tuple[str, bytes]:
    """The plan of a good file, and the file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        made = structprune.prune_model(small(), 0.5, example_inputs=torch.zeros(1, 8))
        structprune.save(made, path)
        return structprune.plan_of(made).to_json(), path.read_bytes()


@kind("is a file of structprune's with a plan that unpacks to gigabytes, or does what no plan does")
def plans(random: Random, place: Place) -> Sample:
    good, whole = _pruned()
    document = json.loads(good)
    many = 10 ** random.randint(6, 12)
    variant = random.randrange(9)
    key = random.choice(sorted(document))
    if variant == 0:
        plan = base64.b85encode(zlib.compress(b"{" + b" " * 400_000_000, 1)).decode()
    elif variant == 1:
        plan = base64.b85encode(zlib.compress(b'{"a": [' + b"[]," * 20_000_000 + b"[]]}", 1)).decode()
    elif variant == 2:
        plan = "{" + '"a":[' * 100_000
    elif variant == 3:
        plan = json.dumps({**document, key: random.choice([None, many, "x", [], {}, [[[]]], random.choice(ESCAPES)])})
    elif variant == 4:
        plan = json.dumps({**document, "shapes": {"0.weight": [many, many]}})
    elif variant == 5:
        change = {"module": "", "name": random.choice(["forward", "__class__", "training"]), "old": 1, "new": many}
        plan = json.dumps({**document, "attributes": [change]})
    elif variant == 6:
        plan = json.dumps({**document, "model": random.choice(ESCAPES), "notes": [random.choice(ESCAPES)]})
    elif variant == 7:
        plan = good.replace("32", str(many))
    else:
        plan = random.choice(["", "x", "{}", "null", "\x1b[2J", '{"a": 1e999}'])
    return Sample(_with_plan(place.folder / "model.safetensors", whole, plan), _ARCH)


def _with_plan(path: Path, whole: bytes, plan: str) -> Path:
    """A good file with another plan, and the digest that belongs to it."""
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    header["__metadata__"][PLAN] = plan
    digest = Digest()
    for key, entry in header.items():
        if key != "__metadata__":
            start, end = entry["data_offsets"]
            values = torch.frombuffer(bytearray(data[start:end]), dtype=torch.float32).reshape(entry["shape"])
            digest.add(key, values)
    header["__metadata__"][DIGEST] = digest.result(header["__metadata__"])
    return _file(path, json.dumps(header).encode(), data)


@kind("has escape sequences, or text that runs backwards, in names, keys, classes, records, paths and errors", HARMLESS)
def terminal(random: Random, place: Place) -> Sample:
    escape = random.choice(ESCAPES)
    part = linear(8, 16)
    weights = {"0": bytes(8 * 16 * 4)}
    one = tensor(storage("0", 128), numbers(128), numbers(1))
    odd_path = place.folder / f"m{escape.replace('/', '')}.pt"
    variants = [
        lambda: saved(place.file, sequential({f"a{escape}": part}), weights),
        lambda: saved(place.file, network(**{escape: number(1)})),
        lambda: saved(place.file, mapping({escape: one}), weights),
        lambda: saved(place.file, module(name(f"mine.{escape}x", "Net"), {})),
        lambda: saved(place.file, module(name("mine", f"Net{escape}"), {})),
        lambda: saved(place.file, called(name(f"os{escape}", "system"), text("x"))),
        lambda: archive(place.file, records(part, weights, root=f"m{escape}")),
        lambda: archive(place.file, {**records(part, weights), f"m/{escape}": b"", f"m/{escape}x": b""}),
        lambda: saved(place.file, tensor(storage(escape, 128), numbers(8), numbers(1))),
        lambda: saved(odd_path, network()),
        lambda: saved(odd_path, listed(number(1))),
        lambda: saved(place.file, called(name("torch", "device"), text(escape))),
        lambda: saved(place.file, called(name("timm.layers.format", "Format"), text(escape))),
        lambda: saved(place.file, module(layer("Upsample"), {"mode": text(escape), "size": number(3)})),
        lambda: saved(
            place.file, sequential({"0": part, "1": module(layer("Upsample"), {"mode": text(escape)})}), weights
        ),
        lambda: saved(place.file, part[:-1] + text(escape) + b"b", weights),
    ]
    path = random.choice(variants)()
    return Sample(
        path, random.choice([(), ("--arch", "structprune.demo:resnet50"), ("--arch", f"torchvision:{escape}")])
    )
