"""Pickles that call, import or replace something."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from tests.hostile.kinds import Place, Sample, kind
from tests.hostile.writing import (
    EMPTY,
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
    row,
    saved,
    sequential,
    storage,
    tensor,
    text,
)


def _placed(random: Random, payload: bytes) -> bytes:
    """A payload somewhere in a pickle."""
    return random.choice(
        [
            payload,
            network(hook=payload),
            network(_forward_hooks=ordered({"0": payload})),
            mapping({"state_dict": mapping({"a": payload})}),
            b"}" + payload + number(1) + b"s",
            listed(payload),
            sequential({"0": payload, "1": linear(8, 16)}),
            module(payload, {}),
        ]
    )


def _attacks(marker: Path) -> list[bytes]:
    touch, python = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    return [
        called(name("os", "system"), text(touch)),
        called(name("posix", "system"), text(touch)),
        called(name("__builtin__", "eval"), text(python)),
        called(name("builtins", "exec"), text(python)),
        called(name("builtins", "open"), text(str(marker)), text("w")),
        called(name("subprocess", "call"), listed(text("touch"), text(str(marker)))),
        called(name("subprocess", "Popen"), text(touch), number(-1), NONE, NONE, NONE, NONE, NONE, b"\x88", b"\x88"),
        called(name("pathlib", "Path.touch"), called(name("pathlib", "PosixPath"), text(str(marker)))),
        called(name("shutil", "copy"), text("/etc/hostname"), text(str(marker))),
        called(name("torch.serialization", "save"), number(1), text(str(marker))),
        called(name("torch", "save"), number(1), text(str(marker))),
        called(name("torch.nn.modules.linear", "torch.os.system"), text(touch)),
        called(name("torch.storage", "_load_from_bytes"), text("x")),
        called(name("numpy", "save"), text(str(marker)), number(1)),
        called(name("numpy.testing._private.utils", "runstring"), text(python), b"}"),
        called(name("torch.utils.cpp_extension", "load_inline"), text("x"), text("int x;")),
        called(name("torch.hub", "load"), text("owner/name"), text("model")),
        called(name("timeit", "timeit"), text(python), text("pass"), NONE, number(1)),
        called(name("code", "InteractiveInterpreter.runcode"), NONE, text(python)),
        called(name("cProfile", "run"), text(python)),
        called(name("pydoc", "pipepager"), text("x"), text(touch)),
        called(name("torch.fx.graph_module", "_forward_from_src"), text(f"def forward(): {python}"), b"}"),
        called(name("torch._dynamo.guards", "GuardBuilder.get"), text(python)),
        called(name("structprune.demo", "torch.os.system"), text(touch)),
    ]


@kind("calls a function that runs commands, code, or writes (two dozen functions, eight places)")
def calls(random: Random, place: Place) -> Path:
    return saved(place.file, _placed(random, random.choice(_attacks(place.marker))))


@kind("the same in the format from before PyTorch 1.6")
def calls_before_1_6(random: Random, place: Place) -> Path:
    attack = random.choice(_attacks(place.marker))
    if random.random() < 0.5:
        return before_1_6(place.file, _placed(random, attack))
    # In what only says which system saved the file, or in the order of the values.
    return before_1_6(place.file, EMPTY, keys=attack)


class _Call:
    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call


@kind("the same in pickles of protocol 0 to 5, in an archive and bare")
def other_protocols(random: Random, place: Place) -> Path:
    call = random.choice([_Call(os.system, f"touch {place.marker}"), _Call(subprocess.call, ["touch", "x"])])
    program = pickle.dumps({"a": call}, protocol=random.choice([0, 1, 3, 4, 5]))
    if random.random() < 0.5:
        place.file.write_bytes(program)
        return place.file
    return saved(place.file, program[:-1])


@kind("names modules that write when they are imported, from beside the file")
def imports_beside_the_file(random: Random, place: Place) -> Path:
    home, attribute = random.choice(
        [
            ("beside_the_model", "Net"),
            ("torchvision.models.beside_the_model", "Net"),
            ("timm.layers.beside_the_model", "Net"),
            ("timm.models.beside_the_model", "Net"),
            ("transformers.models.beside.modeling_beside", "Net"),
        ]
    )
    parts = home.split(".")
    for depth in range(1, len(parts)):
        package = place.folder.joinpath(*parts[:depth])
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(f"open({str(place.marker)!r}, 'w')")
    place.folder.joinpath(*parts[:-1], parts[-1] + ".py").write_text(f"open({str(place.marker)!r}, 'w')")
    return saved(place.file, module(name(home, attribute), {}))


@kind("names modules of Python and of libraries that do something when they are imported")
def imports_scripts(random: Random, place: Place) -> Path:
    home = random.choice(
        ["antigravity", "this", "idlelib.idle", "torch.utils.bottleneck.__main__", "timm.__main__", "lib2to3.__main__",
         "transformers.models.bert.convert_bert_original_tf_checkpoint_to_pytorch", "torch.distributed.run",
         "torchvision.models.__main__", "torch.nn.modules.__main__", "__main__", "tests.hostile.__main__"]
    )  # fmt: skip
    return saved(place.file, module(name(home, "main"), {}))


@kind("has a library import all of itself, or asks for tens of thousands of names that it lacks")
def imports_a_library(random: Random, place: Place) -> Path:
    models = Path(importlib.util.find_spec("transformers").origin).parent / "models"
    files = sorted(models.glob("*/modeling_*.py"))
    there = [name(f"transformers.models.{f.parent.name}.{f.stem}", "Model") for f in random.sample(files, 300)]
    absent = [name(f"timm.models.absent{i}", "Net") for i in range(50_000)]
    lacks = [name("torch.nn.modules.linear", f"Absent{i}") for i in range(900)]
    again = [name("timm.layers.norm", "LayerNorm2d")] * 500_000
    program = listed(*random.choice([there, absent, absent[:500], lacks, again]))
    return random.choice([saved(place.file, program), before_1_6(place.file, EMPTY, keys=program)])


@kind("has a network of transformers whose configuration names a kernel of a stranger's on the Hub")
def kernels_of_the_hub(random: Random, place: Place) -> Path:
    home, layer_of = random.choice(
        [("llama.modeling_llama", "LlamaAttention"), ("bert.modeling_bert", "BertModel"),
         ("clip.modeling_clip", "CLIPMLP"), ("sam3_video.modeling_sam3_video", "Sam3VideoModel")]
    )  # fmt: skip
    kernel = text(random.choice(["stranger/kernel", "kernels-community/flash-attn", "paged|stranger/kernel@main"]))
    config = module(layer("Identity"), {"_attn_implementation": kernel, "hidden_size": number(8)})
    return saved(place.file, module(name(f"transformers.models.{home}", layer_of), {"config": config}))


@kind("constructs layers, of a size that no memory holds")
def constructs_layers(random: Random, place: Place) -> Path:
    size = number(10 ** random.randint(2, 9))
    call = random.choice(
        [
            called(layer("Linear"), size, size),
            layer("Linear") + row(size, size) + b"\x81",
            called(name("torch.nn.modules.sparse", "Embedding"), size, size),
            called(name("torch.nn.modules.container", "ModuleList"), called(name("builtins", "range"), size)),
            called(name("torch", "Tensor"), size, size),
            called(name("torch", "zeros"), size, size),
        ]
    )
    return saved(place.file, _placed(random, call))


@kind("keeps a functools.partial of something that runs, or of a layer that no memory holds")
def partials(random: Random, place: Place) -> Path:
    made, touch = name("functools", "partial"), text(f"touch {place.marker}")
    large = row(number(10 ** random.randint(5, 9)), number(10**6))

    def given(function: bytes, arguments: bytes, keywords: bytes = b"}") -> bytes:
        return called(made, layer("Linear")) + row(function, arguments, keywords, b"}") + b"b"

    payload = random.choice(
        [
            called(made, name("os", "system"), touch),
            given(name("os", "system"), row(touch)),
            called(made, made, name("os", "system"), touch),
            given(layer("Linear"), large),
            given(layer("Linear"), EMPTY, mapping({"in_features": number(10**6), "out_features": number(10**6)})),
            given(made, row(name("os", "system"), touch)),
        ]
    )
    return saved(place.file, random.choice([network(act=payload), network(_compiled_call_impl=payload), payload]))


@kind("has torch's own helpers make what they are told to")
def helpers_of_torch(random: Random, place: Place) -> Path:
    by_type = name("torch._tensor", "_rebuild_from_type_v2")
    good = row(storage("0", 128), number(0), numbers(8), numbers(1), b"\x89", ordered())
    rebuilt = name("torch._utils", "_rebuild_tensor_v2")
    payload = random.choice(
        [
            called(by_type, name("os", "system"), name("torch", "Tensor"), row(text(f"touch {place.marker}")), b"}"),
            called(by_type, layer("Linear"), layer("Linear"), numbers(10**5, 10**5), b"}"),
            called(by_type, rebuilt, name("torch", "Tensor"), good, mapping({"__class__": layer("Linear")})),
            called(by_type, rebuilt, name("torch", "Tensor"), good, mapping({"data": number(1)})),
            called(by_type, rebuilt, name("torch.nn.parameter", "Buffer"), good, b"}"),
            called(name("torch._utils", "_rebuild_wrapper_subclass"), name("torch", "Tensor"), NONE, EMPTY),
            called(name("torch._utils", "_rebuild_device_tensor_from_numpy"), NONE, NONE, text("cpu"), b"\x89"),
            called(name("torch._utils", "_rebuild_nested_tensor"), NONE, NONE, NONE, NONE),
            called(name("torch._utils", "_rebuild_qtensor"), storage("0", 128), number(0), numbers(10**9), numbers(1)),
            called(rebuilt, number(1), number(0), numbers(8), numbers(1), b"\x89", ordered()),
            tensor(storage("0", 128), numbers(8), numbers(1))[:-1] + b"b",
        ]
    )
    return saved(place.file, random.choice([mapping({"a": payload}), payload, network(t=payload)]))


@kind("puts something of its own in the place of what Python or PyTorch call by name")
def replaces_methods(random: Random, place: Place) -> Path:
    attribute = random.choice(
        [
            "forward",
            "eval",
            "train",
            "named_parameters",
            "state_dict",
            "__call__",
            "_call_impl",
            "to",
            "_apply",
            "parameters",
        ]
    )
    value = random.choice(
        [name("torch.nn.functional", "relu"), layer("Linear"), number(1), linear(8, 16), text("x"),
         called(name("functools", "partial"), layer("Identity"))]
    )  # fmt: skip
    return saved(place.file, network(**{attribute: value}))


@kind("has hooks, or a compiled forward, that call layers and activations")
def hooks(random: Random, place: Place) -> Path:
    where = random.choice(
        ["_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks", "_backward_hooks",
         "_compiled_call_impl", "_forward_hooks_with_kwargs", "_state_dict_pre_hooks"]
    )  # fmt: skip
    hook = random.choice([name("torch.nn.functional", "relu"), layer("Linear"), layer("Identity")])
    return saved(place.file, network(**{where: ordered({"0": hook})}))


@kind("changes a class or a function for everybody")
def changes_classes(random: Random, place: Place) -> Path:
    target = random.choice(
        [layer("Linear"), name("torch.nn.functional", "relu"), name("torch", "float32"), name("torch", "Tensor"),
         name("collections", "OrderedDict"), name("torch", "FloatStorage")]
    )  # fmt: skip
    state = mapping({random.choice(["forward", "__init__", "dtype"]): name("torch.nn.functional", "gelu")})
    return saved(place.file, network(x=target + state + b"b"))


@kind("is a module that carries code to compile")
def carried_code(random: Random, place: Place) -> Path:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    if random.random() < 0.5:
        torch.save(torch.fx.symbolic_trace(model), place.file)
    else:
        source = f"import os\nos.system('touch {place.marker}')\ndef forward(self, x): return x"
        made = called(name("torch.fx.graph_module", "reduce_graph_module"), mapping({"_code": text(source)}), text(""))
        saved(place.file, made)
    return place.file


@kind("is a saved module whose attribute runs when it is read, as torch.save itself writes it")
def saved_with_torch(random: Random, place: Place) -> Path:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    call = random.choice(
        [_Call(os.system, f"touch {place.marker}"), _Call(eval, f"open({str(place.marker)!r}, 'w')"),
         _Call(getattr, nn.Linear, "forward"), _Call(partial, os.system, f"touch {place.marker}"),
         _Call(torch.load, str(place.marker))]
    )  # fmt: skip
    random.choice(list(model)).extra = call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(model, place.file, _use_new_zipfile_serialization=random.random() < 0.5)
    return place.file


@kind("is a plain pickle, a text, a picture or nothing")
def no_model(random: Random, place: Place) -> Sample:
    content = random.choice(
        [b"", b"PK\x03\x04", b"hello\n", bytes(1000), random.randbytes(5000), pickle.dumps({"a": 1}, protocol=2),
         b"\x80\x02N.", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\x1f\x8b" + bytes(50), b"<b>\x1b[2J</b>", VALUES["0"]]
    )  # fmt: skip
    path = place.folder / random.choice(["model.pt", "model.safetensors", "model.pt2", "model.bin"])
    path.write_bytes(content)
    return Sample(path, ("--arch", "structprune.demo:resnet50"))
