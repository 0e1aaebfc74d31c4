"""Writes pickles and archives by hand, as nobody's library would."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

NONE, TRUE, FALSE, EMPTY = b"N", b"\x88", b"\x89", b")"


def name(module: str, attribute: str) -> bytes:
    """Pushes what has a name."""
    return f"c{module}\n{attribute}\n".encode("utf-8", "surrogatepass")


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    length = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


def row(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def numbers(*values: int) -> bytes:
    return row(*map(number, values))


def listed(*parts: bytes) -> bytes:
    return b"](" + b"".join(parts) + b"e"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + row(*arguments) + b"R"


def ordered(items: Mapping[str, bytes] | None = None) -> bytes:
    """An OrderedDict."""
    made = name("collections", "OrderedDict") + b")R"
    return made + (b"(" + b"".join(text(k) + v for k, v in items.items()) + b"u" if items else b"")


def storage(key: str, numel: int, kind: str = "FloatStorage") -> bytes:
    return row(text("storage"), name("torch", kind), text(key), text("cpu"), number(numel)) + b"Q"


def tensor(stored: bytes, size: bytes, stride: bytes, offset: int = 0) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return called(rebuild, stored, number(offset), size, stride, FALSE, ordered())


def parameter(made: bytes) -> bytes:
    return called(name("torch._utils", "_rebuild_parameter"), made, TRUE, ordered())


def module(kind: bytes, state: Mapping[str, bytes], **tables: Mapping[str, bytes]) -> bytes:
    """A module as ``torch.save`` writes it, with a state of one's own; tables: parameters, buffers, modules."""
    hooks = {f"_{t}_hooks": ordered() for t in ("backward", "forward", "forward_pre")}
    usual = {
        "training": FALSE,
        **hooks,
        **{f"_{t}": mapping(tables.get(t, {})) for t in ("parameters", "buffers", "modules")},
    }
    return kind + b")\x81" + mapping({**usual, **state}) + b"b"


def layer(kind: str) -> bytes:
    """Pushes a class of torch.nn."""
    home = {
        "Linear": "linear", "Identity": "linear", "Sequential": "container", "ReLU": "activation", "Conv2d": "conv",
        "Upsample": "upsampling", "LSTM": "rnn", "ModuleList": "container", "AdaptiveAvgPool2d": "pooling",
        "ZeroPad2d": "padding",
    }[kind]  # fmt: skip
    return name(f"torch.nn.modules.{home}", kind)


def linear(inputs: int, outputs: int, key: str = "0", **state: bytes) -> bytes:
    """A linear layer whose values are a storage of that key."""
    weight = parameter(tensor(storage(key, inputs * outputs), numbers(outputs, inputs), numbers(inputs, 1)))
    sizes = {"in_features": number(inputs), "out_features": number(outputs)}
    return module(layer("Linear"), {**sizes, **state}, parameters={"weight": weight, "bias": NONE})


def sequential(parts: Mapping[str, bytes], **state: bytes) -> bytes:
    return module(layer("Sequential"), state, modules=parts)


def network(**more: bytes) -> bytes:
    """A small network with something more in its state; its storages are ``VALUES``."""
    parts = {"0": linear(8, 16, "0"), "1": module(layer("ReLU"), {"inplace": FALSE}), "2": linear(16, 4, "1")}
    return sequential(parts, **more)


VALUES = {"0": bytes(8 * 16 * 4), "1": bytes(16 * 4 * 4)}


def records(program: bytes, storages: Mapping[str, bytes], root: str = "m") -> dict[str, bytes]:
    """What an archive of ``torch.save`` holds."""
    data = {f"{root}/data/{key}": values for key, values in storages.items()}
    return {f"{root}/data.pkl": b"\x80\x02" + program + b".", f"{root}/byteorder": b"little", **data}


def archive(path: Path, held: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as made:
        for record, data in held.items():
            made.writestr(record, data)
    return path


def saved(path: Path, program: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """A file as ``torch.save`` writes it, of a pickle of one's own."""
    return archive(path, records(program, VALUES if storages is None else storages))


def before_1_6(path: Path, program: bytes, keys: bytes = b"]", after: bytes = b"") -> Path:
    """A file as ``torch.save`` wrote it before PyTorch 1.6."""
    start = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    system = b"\x80\x02" + mapping({"protocol_version": number(1001), "little_endian": TRUE}) + b"."
    path.write_bytes(start + system + b"\x80\x02" + program + b".\x80\x02" + keys + b"." + after)
    return path
