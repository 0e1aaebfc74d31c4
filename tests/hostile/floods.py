"""Pickles that fill the memory, never end, or have no bottom."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from tests.hostile.kinds import HARMLESS, Place, kind
from tests.hostile.writing import (
    EMPTY,
    VALUES,
    called,
    layer,
    linear,
    listed,
    mapping,
    module,
    name,
    network,
    number,
    ordered,
    row,
    saved,
    sequential,
    text,
)

_SET, _FROZENSET, _RANGE = (name("builtins", n) for n in ("set", "frozenset", "range"))


def _put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def _get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


@kind("makes much of little: sets and bytes of ranges and numbers")
def amplifies(random: Random, place: Place) -> Path:
    many = number(10 ** random.randint(8, 15))
    made = called(_RANGE, many)
    payload = random.choice(
        [
            called(_FROZENSET, made),
            called(_SET, made),
            called(name("builtins", "bytearray"), many),
            called(name("builtins", "bytes"), many),
            called(name("builtins", "list"), made),
            called(name("collections", "Counter"), made),
            called(name("collections", "OrderedDict"), made),
            called(name("torch", "Size"), made),
            called(name("_codecs", "encode"), many, text("latin1")),
            called(name("builtins", "slice"), called(_SET, made)),
            called(_FROZENSET, called(_RANGE, number(0), many, number(1))),
        ]
    )
    return saved(place.file, random.choice([payload, network(x=payload), mapping({"a": payload})]))


@kind("copies one long list, text or tuple over and over")
def copies_over_and_over(random: Random, place: Place) -> Path:
    long = listed(*(b"K" + bytes([i % 256]) for i in range(100_000))) + _put(0) + b"0"
    word = text("x" * 5_000_000) + _put(0) + b"0"
    start, once = random.choice(
        [
            (long, called(_FROZENSET, _get(0))),
            (long, called(_SET, _get(0))),
            (word, called(name("_codecs", "encode"), _get(0), text("latin1"))),
            (word, called(name("builtins", "bytearray"), called(name("_codecs", "encode"), _get(0), text("latin1")))),
        ]
    )
    # ``0`` takes what is kept from the stack: torch.save does not write it, so the list stands first instead.
    return saved(place.file, listed(start[:-1], *(once for _ in range(50_000))))


@kind("doubles itself with every level: lists, tuples and dictionaries of the same two")
def laughs(random: Random, place: Place) -> Path:
    deep = random.choice([30, 60, 90])
    opened = random.choice([b"](%b%be", b"(%b%bt", b"}(X\x01\0\0\0a%bX\x01\0\0\0b%bu"])
    made = text("ha") + _put(0)
    program = made
    for level in range(1, deep):
        program = opened % (program, _get(level - 1)) + _put(level)
    return saved(place.file, random.choice([program, network(x=program), b"}" + program + number(1) + b"s"]))


@kind("has an error message print what has no end")
def laughing_errors(random: Random, place: Place) -> Path:
    lists, layers = b"](K\x01e" + _put(0), linear(8, 8) + _put(0)
    for level in range(1, 60):
        lists = b"](" + lists + _get(level - 1) + b"e" + _put(level)
        layers = sequential({"0": layers, "1": _get(level - 1)}) + _put(level)
    payload = random.choice(
        [
            called(name("torch.serialization", "_get_layout"), lists),
            called(name("torch", "device"), lists),
            called(name("builtins", "slice"), lists),
            called(lists),
            called(layers),
            module(layer("LSTM"), {"num_layers": lists}),
            sequential({}, _modules=b"}" + layers + linear(8, 8, "1") + b"s"),
            sequential({}, _parameters=b"}" + layers + number(1) + b"s"),
            sequential({"0": lists}),
            b"}" + lists + number(1) + b"s",
            lists + b"Q",
            layers + lists + b"b",
            mapping({"state_dict": lists, "model": layers}),
        ]
    )
    return saved(place.file, payload, {"0": bytes(256), "1": bytes(256)})


@kind("is its own key, in tuples whose hash takes for ever")
def endless_hash(random: Random, place: Place) -> Path:
    program = b"(K\x01t" + _put(0)
    for level in range(1, 60):
        program = b"(" + program + _get(level - 1) + b"t" + _put(level)
    user = random.choice([b"}" + program + number(1) + b"s", called(_FROZENSET, listed(program))])
    return saved(place.file, random.choice([user, network(x=user)]))


@kind("has thousands of keys of one hash, or of hashes that collide")
def colliding_keys(random: Random, place: Place) -> Path:
    prime = (1 << 61) - 1
    count = random.choice([60_000, 200_000])
    keys = [k * prime if random.random() < 0.5 else k << 40 for k in range(1, count)]
    small = [b"\x8a\x10" + k.to_bytes(16, "little", signed=True) for k in keys]
    pairs = b"}(" + b"".join(key + b"N" for key in small) + b"u"
    return saved(place.file, random.choice([pairs, called(_FROZENSET, listed(*small)), network(x=pairs)]))


@kind("is nested a hundred thousand levels deep")
def deep(random: Random, place: Place) -> Path:
    levels = random.choice([150, 2_000, 300_000])
    payload = random.choice(
        [
            EMPTY + b"\x85" * levels,
            b"]" * levels + b"a" * (levels - 1),
            b"}X\x01\0\0\0a" * levels + b"N" + b"s" * levels,
            name("collections", "OrderedDict")
            + _put(0)
            + b")R"
            + (b"X\x01\0\0\0a" + _get(0) + b")R") * levels
            + b"s" * levels,
        ]
    )
    return saved(place.file, random.choice([payload, network(x=payload), mapping({"a": payload})]))


_TABLES = {"training": b"\x89", "_parameters": b"}", "_buffers": b"}", "_modules": mapping({"0": _get(0)})}
_ITSELF = layer("Sequential") + b")\x81" + _put(0) + mapping(_TABLES) + b"b"


@kind("holds itself")
def within_itself(random: Random, place: Place) -> Path:
    payload = random.choice(
        [
            b"]" + _put(0) + _get(0) + b"a",
            b"}" + _put(0) + text("a") + _get(0) + b"s",
            _ITSELF,
            b"]" + _put(0) + b"](" + _get(0) + b"ea",
        ]
    )  # fmt: skip
    return saved(
        place.file, random.choice([payload, network(x=payload), sequential({"0": linear(8, 16), "1": payload})])
    )


@kind("is a network that holds the same two parts on every level, 2 to the power of its depth")
def doubled_network(random: Random, place: Place) -> Path:
    program = linear(8, 8) + _put(0)
    for level in range(1, random.choice([25, 60, 90])):
        program = sequential({"0": program, "1": _get(level - 1)}) + _put(level)
    return saved(place.file, program, {"0": bytes(8 * 8 * 4)})


@kind("has millions of instructions")
def many_instructions(random: Random, place: Place) -> Path:
    count = 15_000_000
    payload = random.choice([b"](" + b"N" * count + b"e", b"](" + b"]" * count + b"e", b"](" + b"}" * count + b"e",
                             b"](" + _OD + (b"h\0)R") * (count // 4) + b"e"])  # fmt: skip
    return saved(place.file, random.choice([payload, network(x=payload)]))


_OD = name("collections", "OrderedDict") + b"q\0"


@kind("has as many objects as are let through, of the largest kinds")
def many_objects(random: Random, place: Place) -> Path:
    count = 600_000
    kept = {
        "dictionaries": b"](" + b"}N\x88s" * (count // 2) + b"e",
        "ordered": b"](" + _OD + b"h\0)R" * count + b"e",
        "sets": b"](" + name("builtins", "set") + b"q\0" + b"h\0]\x85R" * (count // 2) + b"e",
        "modules": b"](" + layer("Identity") + b"q\0" + b"h\0)\x81" * count + b"e",
        "tensors": b"](" + _tensors(count // 10) + b"e",
    }
    payload = kept[random.choice(list(kept))]
    return saved(place.file, mapping({"a": payload}))


def _tensors(count: int) -> bytes:
    size = row(row(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(128)) + b"Q",
               number(0), row(number(8)), row(number(1)), b"\x89", ordered())  # fmt: skip
    return name("torch._utils", "_rebuild_tensor_v2") + b"q\0" + size + b"q\1R" + b"h\0h\1R" * count


@kind("says that a text, a number or a place in the memo is gigabytes long")
def says_gigabytes(random: Random, place: Place) -> Path:
    payload = random.choice(
        [
            b"X\xff\xff\xff\xffabc",
            b"X\xff\xff\xff\x7fabc",
            b"T\xff\xff\xff\x7fabc",
            b"\x8b\xff\xff\xff\x7fabc",
            b"\x8d" + b"\xff" * 7 + b"\x00abc",
            b"\x8e" + b"\xff" * 7 + b"\x7fabc",
            b"\x95" + b"\xff" * 7 + b"\x7fabc",
            b"Nr\xff\xff\xff\x7f",
            b"Lx" + b"9" * 1_000_000 + b"\n",
            b"\x8a\xff" + b"\x7f" * 255,
            b"I" + b"9" * 4_000_000 + b"\n",
            b"F1e" + b"9" * 1_000_000 + b"\n",
        ]
    )
    return saved(place.file, random.choice([payload, listed(payload)]))


@kind("sets a number that a layer loops over when its state is set, or holds it in a plan")
def loops_while_read(random: Random, place: Place) -> Path:
    many = number(10 ** random.randint(6, 9))
    state = {"_all_weights": listed(listed(number(1))), "num_layers": many, "bidirectional": b"\x88", "bias": b"\x88",
             "proj_size": number(0)}  # fmt: skip
    few = {**state, "num_layers": number(1000)}
    again = module(layer("LSTM"), {}) + b"q\0" + mapping(few) + b"q\1b" + b"h\1b" * 50_000
    plans = ["[" * 1_000_000, "[" + "[]," * 8_000_000 + "[]]", "{", "null"]
    payload = random.choice(
        [
            module(layer("LSTM"), state),
            again,
            sequential({"0": linear(8, 16), "1": module(layer("LSTM"), state)}),
            network(_structprune_plan=text(random.choice(plans))),
            network(_structprune_plan=number(1)),
        ]
    )
    return saved(place.file, payload)


@kind("holds a million harmless things", HARMLESS)
def long_attribute(random: Random, place: Place) -> Path:
    return saved(
        place.file, network(x=listed(*(random.choice([b"N", b"K\x01", EMPTY]) for _ in range(500_000)))), VALUES
    )
