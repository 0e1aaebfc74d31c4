"""Pickles that ``torch.save`` does not write, and what is said to each."""

from __future__ import annotations

from tests.hostile.writing import (
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
    row,
    sequential,
    storage,
    tensor,
    text,
)

_WEIGHT = storage("0", 128)


def _doubled(levels: int) -> bytes:
    program = b"]q\0"
    for level in range(levels):
        program = b"(" + program + b"h" + bytes([level]) + b"tq" + bytes([level + 1])
    return program


# A program in place of what torch.save writes, and what is said to it.
PROGRAMS: dict[str, tuple[bytes, str]] = {
    "a call of protocol 0": (b"(S'touch x'\nios\nsystem\n.", "the pickle instruction STRING"),
    "a call": (b"cos\nsystem\n(X\x01\0\0\0xtR", r"reading it would run code that it names\.\n  os\.system: it is not"),
    "a script's class": (module(name("__main__", "Net"), {}), r"__main__\.Net: it was defined in the script"),
    "a call of a layer": (called(layer("Linear"), number(2), number(2)), "it would call Linear; saved networks are"),
    "a layer made with arguments": (layer("Linear") + row(number(2)) + b"\x81", "it makes an object in a way"),
    "a method replaced": (
        network(eval=number(1)),
        "eval: the file would put something of its own in its place in a Seq",
    ),
    "a forward replaced": (network(forward=layer("Linear")), "forward: the file would put something of its own"),
    "a hook": (network(_forward_hooks=mapping({"0": layer("Linear")})), "has _forward_hooks, which would be called"),
    "a compiled call": (network(_compiled_call_impl=layer("Linear")), "has _compiled_call_impl, which would be called"),
    "a class changed": (network(x=layer("Linear") + b"}X\x01\0\0\0aNsb"), "it would change a type"),
    "a helper told to call": (
        called(name("torch._tensor", "_rebuild_from_type_v2"), layer("Linear"), layer("Linear"), numbers(2, 2), b"}"),
        "it calls torch._tensor._rebuild_from_type_v2 in a way that torch.save does not use",
    ),
    "a partial of a call": (
        called(name("functools", "partial"), name("functools", "partial")),
        "something else than a layer",
    ),
    "a partial of a large layer": (
        called(name("functools", "partial"), layer("Linear"))
        + row(layer("Linear"), numbers(9999, 9999), b"}", b"}")
        + b"b",
        "a functools.partial of Linear with large numbers",
    ),
    "a range": (called(name("builtins", "range"), number(10**11)), "it makes a range of more than 1,000,000 numbers"),
    "a set of a range": (
        called(name("builtins", "set"), called(name("builtins", "range"), number(5))),
        "it calls builtins.set in a way that torch.save does not use",
    ),
    "an array of a number": (
        called(name("builtins", "bytearray"), number(10**11)),
        "it calls builtins.bytearray in a way",
    ),
    "a long number": (b"\x8a\x20" + b"\x7f" * 32, "it has a number that no network needs"),
    "a key of a key": (b"}" + row(row(number(1))) + b"Ns", "it has a tuple for a key"),
    "nested": (b")" + b"\x85" * 200, "nested deeper than 100 levels"),
    "within itself": (b"]q\0h\0a", "it holds something within itself"),
    "a network within itself": (
        layer("Sequential")
        + b")\x81q\0"
        + mapping(
            {**{k: b"}" for k in ("_parameters", "_buffers")}, "training": b"\x89", "_modules": mapping({"0": b"h\0"})}
        )
        + b"b",
        "it holds something within itself",
    ),
    "doubled": (_doubled(30), r"it repeats itself to more than [\d,]+ values"),
    "a list of many": (b"](" + b"]" * 3_100_000 + b"e", "more than 3,000,000 instructions"),
    "a text that breaks off": (b"X\xff\xff\xff\x7fabc", "it is no pickle"),
    "appended to a number": (number(1) + b"Na", "it appends to a int"),
    "nothing on the stack": (b"R", "it is a damaged pickle"),
    "no place in the memo": (b"h\7", "it is a damaged pickle"),
    "a tensor beyond its values": (
        tensor(_WEIGHT, numbers(129), numbers(1)),
        "reaches behind the values that are stored",
    ),
    "a tensor of one value": (tensor(_WEIGHT, numbers(10**9), numbers(0)), "one of 1000000000"),
    "an empty tensor": (
        tensor(_WEIGHT, numbers(0, 10**12), numbers(1, 1)),
        "much larger than the values that it holds",
    ),
    "a storage that lies": (
        tensor(storage("0", 10**12), numbers(1), numbers(1)),
        "the storage '0' is not as large as it says",
    ),
    "a storage elsewhere": (storage("../x", 128), "the storage '../x' is not as large as it says"),
    "a storage of a layer": (
        row(text("storage"), layer("Linear"), text("0"), text("cpu"), number(128)) + b"Q",
        "it names a st",
    ),
    "a tensor that is not there": (
        called(
            name("torch._utils", "_rebuild_meta_tensor_no_storage"),
            name("torch", "int8"),
            numbers(10**9),
            numbers(1),
            b"\x89",
        ),
        "a tensor without values, of a size that no network has",
    ),
    "a layer that loops": (
        module(layer("LSTM"), {"_all_weights": listed(listed(number(1))), "num_layers": number(10**9)}),
        "it sets num_layers of a LSTM to 1,000,000,000",
    ),
    "no parameters": (layer("Linear") + b")\x81}b", "a Linear in it has no _parameters"),
    "a number for a layer": (sequential({"0": number(1)}), "a Sequential in it has a int in its _modules"),
    "a tensor for a parameter": (
        module(layer("Linear"), {}, parameters={"weight": tensor(_WEIGHT, numbers(8), numbers(1))}),
        "a Linear in it has a Tensor in its _parameters",
    ),
    "a name of two": (sequential({"a.b": linear(8, 16)}), r"a part of the name 'a\.b', which no part can have"),
    "a name that moves the cursor": (sequential({"\x1b[2J": linear(8, 16)}), r"a part of the name '\\x1b\[2J'"),
    "an attribute of a tensor": (
        called(
            name("torch._utils", "_rebuild_parameter_with_state"),
            tensor(_WEIGHT, numbers(8), numbers(1)),
            b"\x89",
            b"}",
            mapping({"data": number(1)}),
        ),
        "it calls torch._utils._rebuild_parameter_with_state in a way",
    ),
}
