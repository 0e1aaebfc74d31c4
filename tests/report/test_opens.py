"""Files that open without a flag, and what comes out of them."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune.report import libraries
from structprune.report.files import FileError, Trust, load_model
from tests.hostile.writing import archive
from tests.report.files import QUICK, Small, plain, run
from tests.support import vision


def same_values(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same entries with the same values."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False))
    model[2].weight = model[0].weight
    return model


def _odd_attributes() -> nn.Module:
    model = plain()
    model.norm_layer = partial(nn.LayerNorm, eps=1e-6)
    model.act = torch.nn.functional.gelu
    model.kept = {
        "range": range(3), "slice": slice(1, None), "frozen": frozenset({1, "a"}), "set": {1.5}, 
        "size": torch.Size((1, 2)), "dtype": torch.bfloat16, "device": torch.device("cpu"), "complex": 1j, 
        "bytes": b"\xff\0", "array": bytearray(b"a"),
        "ordered": OrderedDict(a=1), "nested": [(1, 2), [{"a": None}]], "keys": {0: "a", (1, 2): "b", None: "c"},
        "large": -(2**40), "text": "\u00e9\u4e2d", "layout": torch.strided, "module": nn.ReLU,
    }  # fmt: skip
    return model


def _odd_tensors() -> nn.Module:
    model = plain()
    base = torch.arange(24.0).reshape(4, 6)
    for name, tensor in {
        "transposed": base.t(), "part": base[1:3, ::2], "expanded": torch.ones(1).expand(500, 100), "empty": base[:0],
        "scalar": base[0, 0], "half": base.half(), "bfloat": base.bfloat16(), "bool": base > 3, "int": base.long(),
        "complex": torch.complex(base, base), "uint16": base.to(torch.uint16), "float8": base.to(torch.float8_e4m3fn),
    }.items():  # fmt: skip
        model.register_buffer(f"a_{name}", tensor)
    model[0].weight.note = "a parameter with an attribute"
    return model


def _half_precision() -> nn.Module:
    return plain().to(torch.bfloat16)


def _recurrent() -> nn.Module:
    return nn.LSTM(8, 16, num_layers=2, bidirectional=True)


def _normalised() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "layers of torch": plain,
    "resnet18 of torchvision": lambda: vision.torchvision().models.resnet18(),
    "vit_b_16 of torchvision": lambda: vision.build("vit_b_16"),
    "the built-in ResNet-50": structprune.demo.resnet50,
    "tied weights": _tied,
    "attributes of every kind": _odd_attributes,
    "tensors of every kind": _odd_tensors,
    "half precision": _half_precision,
    "a recurrent network": _recurrent,
    "a transformer": lambda: nn.Transformer(8, 2, 1, 1, 16),
    "a network on the meta device": lambda: nn.Linear(4, 2, device="meta"),
    "pruned": lambda: structprune.prune_model(plain(), 0.5, example_inputs=torch.zeros(1, 3, 32, 32)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("since_1_6", [True, False], ids=["archive", "before 1.6"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_open_without_a_flag(name: str, since_1_6: bool, tmp_path: Path) -> None:
    model, path = NETWORKS[name](), tmp_path / "model.pt"
    torch.save(model, path, _use_new_zipfile_serialization=since_1_6)
    loaded = load_model(path, None, Trust()).model
    assert type(loaded) is type(model)
    assert [type(m) for m in loaded.modules()] == [type(m) for m in model.modules()]
    if not next(model.parameters()).is_meta:
        assert same_values(loaded, model)
    if not since_1_6 and "tensors" in name:
        return  # PyTorch itself cannot read float8 in this format.
    # The same as PyTorch itself makes of the file.
    theirs = torch.load(path, weights_only=False)
    for ours, other in zip(loaded.modules(), theirs.modules(), strict=True):
        assert vars(ours).keys() == vars(other).keys()


def test_attributes_are_what_they_were(tmp_path: Path) -> None:
    path, model = tmp_path / "model.pt", _odd_attributes()
    torch.save(model, path)
    loaded = load_model(path, None, Trust()).model
    assert loaded.kept == model.kept
    assert loaded.act is model.act
    assert loaded.norm_layer(4).eps == 1e-6


def test_tensors_are_what_they_were(tmp_path: Path) -> None:
    path, model = tmp_path / "model.pt", _odd_tensors()
    torch.save(model, path)
    loaded = load_model(path, None, Trust()).model
    for name, buffer in model.named_buffers():
        found = loaded.get_buffer(name)
        assert (found.dtype, found.stride(), found.shape) == (buffer.dtype, buffer.stride(), buffer.shape), name
    assert loaded[0].weight.note == "a parameter with an attribute"
    path = tmp_path / "tied.pt"
    torch.save(_tied(), path)
    tied = load_model(path, None, Trust()).model
    assert tied[2].weight is tied[0].weight


def test_big_endian_files_open(tmp_path: Path) -> None:
    path, model = tmp_path / "model.pt", nn.Linear(4, 2)
    torch.save(model, path)
    data = path.read_bytes()
    values = model.weight.detach().numpy().tobytes()
    swapped = model.weight.detach().numpy().byteswap().tobytes()
    bias, other = model.bias.detach().numpy().tobytes(), model.bias.detach().numpy().byteswap().tobytes()
    path.write_bytes(data.replace(values, swapped).replace(bias, other).replace(b"little", b"big   "))
    assert same_values(load_model(path, None, Trust()).model, model)


def test_timm_network_opens_without_a_flag(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    path = tmp_path / "model.pt"
    torch.save(timm.create_model("convnext_atto"), path)
    assert type(load_model(path, None, Trust()).model).__name__ == "ConvNeXt"


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return optimizer


STATES: dict[str, Callable[[nn.Module], Any]] = {
    "a state dict": lambda m: m.state_dict(),
    "of DataParallel": lambda m: nn.DataParallel(m).state_dict(),
    "in a checkpoint": lambda m: {"epoch": 3, "state_dict": m.state_dict(), "best": 0.7},
    "beside an optimizer": lambda m: {"optimizer": _optimizer(m).state_dict(), "model": m.state_dict(), "lr": [1e-3]},
    "as a plain dict": lambda m: dict(m.state_dict()),
    "as parameters": lambda m: dict(m.named_parameters()) | dict(m.named_buffers()),
    "with a sparse tensor": lambda m: {"state_dict": m.state_dict(), "mask": torch.eye(3).to_sparse()},
}


@pytest.mark.parametrize("since_1_6", [True, False], ids=["archive", "before 1.6"])
@pytest.mark.parametrize("name", STATES)
def test_state_dicts_open_with_an_architecture(name: str, since_1_6: bool, tmp_path: Path) -> None:
    model, path = structprune.demo.resnet50(), tmp_path / "weights.pt"
    torch.save(STATES[name](model), path, _use_new_zipfile_serialization=since_1_6)
    if "sparse" in name and not since_1_6:
        with pytest.raises(FileError, match=r"holds a sparse tensor in the format from before PyTorch 1\.6"):
            load_model(path, "structprune.demo:resnet50", Trust())
        return
    assert same_values(load_model(path, "structprune.demo:resnet50", Trust()).model, model)


def test_what_a_state_dict_needs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pt"
    torch.save(vision.torchvision().models.resnet18().state_dict(), path)
    code, _, err = run(capsys, path, *QUICK)
    assert code == 2
    assert "holds weights only, 122 tensors, and not the network that they belong to" in err
    for architecture, message in (
        ("torchvision:resnet34", r"does not fit --arch torchvision:resnet34:\nMissing key"),
        ("torchvision:resnet999", "--arch torchvision:resnet999: ValueError: Unknown model"),
        ("resnet18", r"expected torchvision:NAME, timm:NAME or package\.module:function"),
        ("no_such_library:net", "no_such_library cannot be imported"),
        ("structprune.demo:resnet51", "AttributeError: module 'structprune.demo' has no attribute 'resnet51'"),
        ("structprune.demo:torch", "TypeError"),
    ):
        with pytest.raises(FileError, match=message):
            load_model(path, architecture, Trust())


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.safetensors"
    model = structprune.demo.resnet50()
    safetensors.save_file(model.state_dict(), path)
    assert same_values(load_model(path, "structprune.demo:resnet50", Trust()).model, model)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match=r"weights\.safetensors: its header has [\d,]+ bytes, more than 25,000,000"):
        load_model(path, "structprune.demo:resnet50", Trust())


@pytest.mark.parametrize("kind", ["one file", "a folder", "torch.save"])
def test_pruned_networks_are_said_to_be_and_go_further(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = structprune.demo.resnet50()
    pruned = structprune.prune_model(dense, 0.5)
    path, arguments = tmp_path / "small.safetensors", ["--arch", "structprune.demo:resnet50"]
    if kind == "one file":
        structprune.save(pruned, path)
    elif kind == "a folder":
        structprune.save(pruned, path)
        path = tmp_path
    else:
        path, arguments = tmp_path / "small.pt", []
        torch.save(pruned, path)
    loaded = load_model(path, arguments[1] if arguments else None, Trust())
    assert same_values(loaded.model, pruned)
    target = tmp_path / "report.json"
    code, out, _ = run(capsys, path, *arguments, "--ratio", "0.5", "--json", target, *QUICK)
    assert code == 0
    said = " ".join(out.split())
    assert "already pruned by structprune (ratio 0.5, granularity filter): " in said
    assert "48% of 25,557,032 parameters and 42% of 4,089,184,256 MACs are left" in said
    report = json.loads(target.read_text())
    assert report["pruned"]["params"] == [25_557_032, 12_367_880]
    assert report["params"] == 12_367_880 > report["ratios"][0]["params"]


def test_a_pruned_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    structprune.save(structprune.prune_model(structprune.demo.resnet50(), 0.5), path)
    with pytest.raises(structprune.StructPruneError, match=r"small\.safetensors: .*resnet|does not fit"):
        load_model(path, "tests.report.files:plain", Trust())
    with pytest.raises(FileError, match="holds weights only"):
        load_model(path, None, Trust())


def test_own_classes_open_when_they_are_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.pt"
    torch.save(Small(), path)
    name = f"{Small.__module__}.Small"
    code, _, err = run(capsys, path, "--input-size", "3,32,32", *QUICK)
    assert code == 2
    assert f"  {name}: it is not known to be harmless" in err
    assert f"--allow {name}" in err
    assert run(capsys, path, "--input-size", "3,32,32", "--allow", name, *QUICK)[0] == 0
    assert run(capsys, path, "--input-size", "3,32,32", "--trust", *QUICK)[0] == 0


@pytest.mark.filterwarnings("ignore")
def test_networks_of_transformers_open_when_their_configuration_is_allowed(tmp_path: Path) -> None:
    vision.torchvision()
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model, path = transformers.BertModel(transformers.BertConfig(vocab_size=30, **sizes)), tmp_path / "bert.pt"
    torch.save(model, path)
    with pytest.raises(
        FileError, match=r"--allow transformers\.models\.bert\.configuration_bert\.BertConfig"
    ) as refused:
        load_model(path, None, Trust())
    named = re.findall(r"--allow (\S+)", str(refused.value))
    for allowed in (named, ["transformers.models.bert.configuration_bert.BertConfig"]):
        loaded = load_model(path, None, Trust(allowed=frozenset(allowed))).model
        assert same_values(loaded, model)


def test_torchscript_is_counted_but_not_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "script.pt"
    torch.jit.script(plain().eval()).save(str(path))
    code, out, _ = run(capsys, path, "--input-size", "3,32,32", "--trust", *QUICK)
    assert code == 3
    assert "5,450 parameters, 4 MMACs" in out
    assert "A TorchScript module cannot be cut: prune the Python module it was made" in " ".join(out.split())


def test_exported_program_is_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(plain().eval(), (torch.randn(1, 3, 32, 32),)), path)
    # Its own example inputs are taken.
    code, out, _ = run(capsys, path, "--ratio", "0.5", "--trust", *QUICK)
    assert code == 0
    assert "5,450 parameters, 4 MMACs (8 MFLOPs) with (float32[1, 3, 32, 32])" in out
    assert "0.5 │ 2.91 k" in out


def test_a_path_with_brackets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d[" / "b]:x:.pt"
    path.parent.mkdir()
    torch.save(plain(), path)
    code, out, _ = run(capsys, path, "--input-size", "3,32,32", *QUICK)
    assert (code, str(path) in out.replace("\n", "")) == (0, True)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        ("torchvision.models", RuntimeError("operator torchvision::nms does not exist"),
         r"torchvision [\d.]+\S* is installed but does not import \(RuntimeError: operator torchvision::nms does not "
         r"exist\): torchvision's compiled operators do not load, because it was built for another PyTorch than the "
         r"\S+ here\. Install both from one index"),
        ("timm", ValueError("no"), r"timm \S+ is installed but does not import \(ValueError: no\): repair it first"),
        ("timm", ModuleNotFoundError("No module named 'x'", name="x"), r"timm \S+ is installed but does not import"),
        ("absent", ModuleNotFoundError("No module", name="absent"), r"absent cannot be imported"),
    ],
)  # fmt: skip
def test_a_library_that_does_not_import_is_said_to_be_that(
    module: str, error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module != "absent":
        pytest.importorskip(module.split(".")[0])  # whose version the message has
    real = libraries.importlib.import_module

    def broken(name: str) -> Any:
        if name.split(".")[0] == module.split(".")[0]:
            raise error
        return real(name)

    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(1)}, path)
    monkeypatch.setattr(libraries.importlib, "import_module", broken)
    library = module.split(".")[0]
    with pytest.raises(FileError, match=message):
        load_model(path, f"{library}:resnet18", Trust())
    if library in ("torchvision", "timm"):
        # The same for a module in a file.
        program = f"\x80\x02c{library}.models.resnet\nResNet\n)\x81.".encode("latin1")
        archive(path, {"m/data.pkl": program})
        with pytest.raises(FileError, match=message.split(":")[0].replace(" cannot be imported", "")):
            load_model(path, None, Trust())
