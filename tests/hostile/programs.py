"""TorchScript and exported programs: what PyTorch runs while it opens them, under any name."""

from __future__ import annotations

import json
import warnings
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from tests.hostile.kinds import Place, kind


class Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "written_by_script.pt")
        return x


def _saved_and_returned(x: torch.Tensor) -> torch.Tensor:
    torch.save(x, "written_by_script.pt")
    return x


class WritesInFork(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.jit.wait(torch.jit.fork(_saved_and_returned, x))


class WritesWhenLoaded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return torch.zeros(1), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        torch.save(state[0], "written_by_script.pt")
        self.training = state[1]


def _repacked(source: Path, target: Path, rename: dict[str, str], change: Any = None) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for record in old.namelist():
            data = old.read(record)
            for before, after in rename.items():
                record = record.replace(before, after)
            new.writestr(record, change(record, data) if change else data)
    source.unlink()
    return target


@cache
def _script(variant: int) -> bytes:
    """The bytes of a script that writes."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.pt"
        torch.jit.script([Writes, WritesInFork, WritesWhenLoaded][variant]()).save(str(path))
        return path.read_bytes()


@kind("is TorchScript that writes files, its folders renamed or spelled in other letters")
def torchscript(random: Random, place: Place) -> Path:
    script = place.folder / "script.zip"
    script.write_bytes(_script(random.randrange(3)))
    rename = random.choice(
        [
            {},
            {"model/": "archive/"},
            {"model/code/": "model/kode/"},
            {"model/code/": "model/CODE/"},
            {"constants.pkl": "CONSTANTS.PKL"},
            {"model/constants.pkl": "other/constants.pkl"},
            {"model/code/": "model/x/../code/"},
            {"model/code/": "code/"},
        ]
    )
    return _repacked(script, place.folder / random.choice(["model.pt", "model.safetensors.pt", "model.ckpt"]), rename)


@cache
def _export() -> bytes:
    """The bytes of a harmless exported program."""
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(torch.export.export(model, (torch.randn(2, 8),)), path)
        return path.read_bytes()


@kind("is an exported program with code, imports, operators that write, or pickles in it")
def exported(random: Random, place: Place) -> Path:
    good = place.folder / "good.zip"
    good.write_bytes(_export())
    variant = random.randrange(7)
    code = f"__import__('os').system('touch {place.marker}')"
    (place.folder / "beside_the_model.py").write_text(f"open({str(place.marker)!r}, 'w')")

    def change(record: str, data: bytes) -> bytes:
        if not record.endswith("models/model.json"):
            return data
        document = json.loads(data)
        graph = document["graph_module"]["graph"]
        relu = next(node for node in graph["nodes"] if "relu" in node["target"])
        if variant == 0:
            document["range_constraints"] = {"s0": {"expr_str": code}}
        elif variant == 1:
            document["guards_code"] = [code]
        elif variant == 2:
            relu["target"] = "torch.os.system"
        elif variant == 3:
            arguments = [{"as_operator": "torch.ops.aten.from_file.default"}, {"as_string": str(place.marker)},
                         {"as_bool": True}, {"as_int": 4096}]  # fmt: skip
            relu["target"] = "torch.ops.higher_order.wrap"
            relu["inputs"] = [{"name": "", "arg": value, "kind": 1} for value in arguments]
        elif variant == 4:
            context = json.dumps({"__enum__": True, "fqn": "beside_the_model:x", "name": "y"})
            spec = {"type": "collections.OrderedDict", "context": context, "children_spec": []}
            signature = next(e["signature"] for e in document["graph_module"]["module_call_graph"] if e["signature"])
            signature["in_spec"] = json.dumps([1, spec])
        elif variant == 5:
            relu["name"] = f"x=({code})"
        return json.dumps(document).encode()

    rename = random.choice([{}, {"archive_format": "ARCHIVE_FORMAT"}, {"models/": "MODELS/"}])
    return _repacked(good, place.folder / random.choice(["model.pt2", "model.pt"]), rename, change)
