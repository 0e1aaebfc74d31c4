"""Tensors and storages that are not what they say, and sizes that only bite when a network runs."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import torch
from torch import nn

from tests.hostile.kinds import HARMLESS, Place, Sample, kind
from tests.hostile.writing import (
    FALSE,
    NONE,
    VALUES,
    before_1_6,
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
    ordered,
    parameter,
    row,
    saved,
    sequential,
    storage,
    tensor,
    text,
)


def _held(random: Random, made: bytes) -> bytes:
    weight = module(layer("Linear"), {}, parameters={"weight": parameter(made), "bias": NONE})
    return random.choice([mapping({"weight": made}), sequential({"0": weight}), network(table=made)])


@kind("shows a small storage as a tensor of terabytes, or one beyond its end")
def aliased_tensors(random: Random, place: Place) -> Path:
    many = 10 ** random.randint(7, 17)
    stored = storage("0", 128)
    made = random.choice(
        [
            tensor(stored, numbers(many), numbers(0)),
            tensor(stored, numbers(many, many), numbers(0, 0)),
            tensor(stored, numbers(0, many), numbers(1, 1)),
            tensor(stored, numbers(many), numbers(1)),
            tensor(stored, numbers(8), numbers(many)),
            tensor(stored, numbers(8), numbers(1), offset=many),
            tensor(stored, numbers(8), numbers(-1)),
            tensor(stored, numbers(-8), numbers(1)),
            tensor(stored, numbers(8), numbers(1), offset=-4),
            tensor(stored, numbers(*[2] * 60), numbers(*[0] * 60)),
            tensor(stored, numbers(8), numbers(1, 1)),
        ]
    )
    return saved(place.file, _held(random, made))


@kind("shows one storage as thousands of tensors, each as large as all of it")
def many_views(random: Random, place: Place) -> Sample:
    size = 4_000_000
    once = tensor(storage("0", size), numbers(size), numbers(1))
    path = saved(place.file, mapping({f"t{i}": once for i in range(5_000)}), {"0": bytes(4 * size)})
    return Sample(path, weights=4 * size)


@kind("has storages that are larger, smaller or elsewhere than they say")
def lying_storages(random: Random, place: Place) -> Path:
    made = random.choice(
        [
            storage("0", 10**12),
            storage("0", 129),
            storage("0", 64),
            storage("0", -1),
            storage("0", 128, "DoubleStorage"),
            storage("../../../../etc/passwd", 128),
            storage("1\0", 128),
            storage("missing", 128),
            storage("\x1b[2J", 128),
            row(text("storage"), name("torch", "float32"), text("0"), text("cpu"), number(128)) + b"Q",
            row(text("storage"), layer("Linear"), text("0"), text("cpu"), number(128)) + b"Q",
            row(text("module"), layer("Linear"), text("x.py"), text("class Linear: pass")) + b"Q",
            number(1) + b"Q",
            row() + b"Q",
        ]
    )
    return saved(place.file, _held(random, tensor(made, numbers(8, 16), numbers(16, 1))))


@kind("has tensors without values, sparse ones and others, of sizes that no memory holds")
def sparse_and_meta(random: Random, place: Place) -> Path:
    many = 10 ** random.randint(7, 17)
    layout = called(name("torch.serialization", "_get_layout"), text("torch.sparse_coo"))
    compressed = called(name("torch.serialization", "_get_layout"), text("torch.sparse_csr"))
    indices = tensor(storage("2", 2, "LongStorage"), numbers(1, 2), numbers(2, 1))
    values = tensor(storage("0", 128), numbers(2), numbers(1))
    sparse, meta = (name("torch._utils", f"_rebuild_{n}") for n in ("sparse_tensor", "meta_tensor_no_storage"))
    made = random.choice(
        [
            called(sparse, layout, row(indices, values, numbers(many), FALSE)),
            called(sparse, layout, row(indices, values, numbers(5), FALSE)),
            called(sparse, compressed, row(indices, indices, values, numbers(many, many))),
            called(sparse, layout, row(number(1), values, numbers(many))),
            called(meta, name("torch", "float32"), numbers(many), numbers(1), FALSE),
            called(meta, name("torch", "float32"), numbers(0, many), numbers(1, 1), FALSE),
            called(meta, layer("Linear"), numbers(8), numbers(1), FALSE),
        ]
    )
    return saved(place.file, _held(random, made), {**VALUES, "2": struct.pack("<qq", 0, 10)})


@kind("is from before PyTorch 1.6, with storages that the file does not hold")
def storages_before_1_6(random: Random, place: Place) -> Path:
    def stored(numel: int, view: bytes = NONE, key: str = "1") -> bytes:
        return row(text("storage"), name("torch", "FloatStorage"), text(key), text("cpu"), number(numel), view) + b"Q"

    many = 10 ** random.randint(9, 15)
    whole, keys = stored(8), listed(text("1"))
    program, given, after = random.choice(
        [
            (stored(many), keys, struct.pack("<q", many)),
            (whole, keys, struct.pack("<q", many) + bytes(32)),
            (whole, keys, struct.pack("<q", -1) + bytes(32)),
            (whole, keys, struct.pack("<q", 8) + bytes(20)),
            (whole, listed(text("2")), struct.pack("<q", 8) + bytes(32)),
            (whole, listed(text("1"), text("1")), struct.pack("<q", 8) + bytes(32)),
            (whole, number(1), b""),
            (stored(8, row(text("2"), number(4), number(many))), keys, struct.pack("<q", 8) + bytes(32)),
            (stored(8, row(text("2"), number(-4), number(2))), keys, struct.pack("<q", 8) + bytes(32)),
        ]
    )
    held = mapping({"weight": tensor(program, numbers(8), numbers(1))})
    return before_1_6(place.file, held, given, after)


@kind("has modules that lack what every module has, or hold something else in its place")
def broken_modules(random: Random, place: Place) -> Path:
    payload = random.choice(
        [
            layer("Linear") + b")\x81",
            layer("Linear") + b")\x81}b",
            layer("Sequential") + b")\x81" + mapping({"_modules": mapping({"0": number(1)})}) + b"b",
            module(layer("Sequential"), {"_modules": number(1)}),
            module(layer("Sequential"), {}, modules={"0": text("x")}),
            module(layer("Linear"), {}, parameters={"weight": number(1)}),
            module(layer("Linear"), {}, parameters={"weight": tensor(storage("0", 128), numbers(8), numbers(1))}),
            module(layer("Linear"), {}, buffers={"weight": listed()}),
            module(layer("Linear"), {"training": number(7)}),
            module(layer("Sequential"), {}, modules={"a.b": linear(8, 16)}),
            module(layer("Sequential"), {}, modules={"": linear(8, 16)}),
            module(layer("Sequential"), {}, modules={"x" * 5_000: linear(8, 16)}),
            layer("Linear") + b")\x81" + listed(number(1)) + b"b",
            layer("Linear") + b")\x81" + b"}" + number(1) + number(1) + b"sb",
            layer("LSTM") + b")\x81" + mapping({"_all_weights": listed()}) + b"b",
        ]
    )
    return saved(place.file, random.choice([payload, sequential({"0": linear(8, 16), "1": payload})]))


@kind("has sizes in its layers that ask for terabytes when the network runs", HARMLESS)
def sizes_that_bite(random: Random, place: Place) -> Path:
    many = 10 ** random.randint(5, 9)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Upsample(scale_factor=2), nn.ReLU())
    odd: nn.Module = random.choice(
        [
            nn.Upsample(size=(many, many)),
            nn.Upsample(scale_factor=many),
            nn.AdaptiveAvgPool2d((many, many)),
            nn.ZeroPad2d(many),
            nn.ReflectionPad2d(many),
            nn.Fold((many, many), 1),
            nn.LocalResponseNorm(2 * many),
            nn.PixelShuffle(many),
            nn.Unflatten(1, (many, many)),
            nn.MaxPool2d(3, padding=1, dilation=many),
        ]
    )
    model.append(odd)
    model.append(nn.Conv2d(8, 8, 3, padding=random.choice([0, many])))
    for attribute in random.sample(["in_channels", "out_channels", "groups", "kernel_size", "stride", "dilation"], 2):
        if random.random() < 0.3:
            setattr(model[0], attribute, many)
    torch.save(model, place.file)
    return place.file


@kind("brings along inputs, or a number of layers, that no memory holds", HARMLESS)
def inputs_that_bite(random: Random, place: Place) -> Path:
    many = 10 ** random.randint(5, 12)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    variant = random.randrange(5)
    if variant == 0:
        model.pretrained_cfg = {"input_size": (3, many, many)}
    elif variant == 1:
        model.default_cfg = {"input_size": [3] + [2] * 60}
    elif variant == 2:
        model.dummy_inputs = {"input": torch.zeros(1).expand(1_000_000)}
    else:
        model = nn.LSTM(8, 8, 2) if variant == 3 else nn.GRU(8, 8)
        model.num_layers = many
    torch.save(model, place.file)
    return place.file


@kind("takes more operators than anybody waits for")
def endless_forward(random: Random, place: Place) -> Path:
    ten = random.choice([nn.ReLU(), nn.Linear(8, 8), nn.Dropout()])
    model: nn.Module = nn.Sequential(nn.Linear(8, 8), ten)
    for _ in range(random.choice([6, 7])):
        model = nn.Sequential(*[model] * 10)
    torch.save(model, place.file)
    return place.file


@kind("holds values under the names of an architecture, in shapes that it does not have")
def state_of_other_shapes(random: Random, place: Place) -> Sample:
    key = random.choice(["conv1.weight", "fc.bias", "x" * 10_000, "\x1b[2J", "layer1.0.conv1.weight\u202e"])
    value = random.choice(
        [tensor(storage("0", 128), numbers(8, 16), numbers(16, 1)), number(1), listed(), text("x"),
         called(name("builtins", "range"), number(10)), ordered()]
    )  # fmt: skip
    path = saved(place.file, mapping({key: value, "a": tensor(storage("0", 128), numbers(8), numbers(1))}))
    return Sample(path, ("--arch", "structprune.demo:resnet50"))


def _networks() -> list[nn.Module]:
    images = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.GroupNorm(2, 8),
        nn.GELU(),
    ]
    return [
        nn.Sequential(*images, nn.AvgPool2d(2), nn.ConvTranspose2d(8, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Softmax(-1), nn.Dropout(), nn.Linear(16, 4)),
        nn.LSTM(8, 16, 2),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False),
        nn.Sequential(nn.Embedding(20, 8), nn.Conv1d(16, 4, 3), nn.PReLU(), nn.InstanceNorm1d(4, affine=True)),
    ]


@kind("has numbers, texts and nothing in place of what its layers keep", HARMLESS)
def other_attributes(random: Random, place: Place) -> Path:
    model = random.choice(_networks())
    values = [
        *(None, 10**9, 2**62, -1, 0, 3, True, 1e300, float("nan"), "x", "\x1b[2J", b"x"),
        *([], [10**6] * 4, {}, {"a": 1}, (), (1, 2), (10**5, 10**5), torch.Size((1, 2)), range(5)),
        *(nn.ReLU, torch.nn.functional.gelu, torch.float16),
    ]
    layers = [m for m in model.modules() if type(m) is not nn.Sequential]
    # These are read by torch.save itself, or are what other kinds change.
    kept = (
        "_parameters",
        "_buffers",
        "_modules",
        "training",
        "_flat",
        "_all_weights",
        "_forward",
        "_backward",
        "_load",
    )
    for _ in range(random.randint(1, 4)):
        held = vars(random.choice(layers))
        held[random.choice([name for name in held if not name.startswith(kept)])] = random.choice(values)
    torch.save(model, place.file)
    return place.file
