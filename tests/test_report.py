"""``structprune-report``: what it prints, writes, refuses and returns."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune.report.cli import main
from structprune.report.files import FileError, Trust, load_model
from structprune.report.page import page
from structprune.report.study import Prunable, RatioResult, Report, Timing
from tests.support import vision

ROOT = Path(__file__).parents[1]
QUICK = ["--no-latency"]


class Small(nn.Sequential):
    """A network of this test's own, which no list of known classes holds."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def plain() -> nn.Module:
    """The same of torch's own classes alone."""
    return nn.Sequential(*Small())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(plain(), path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    return code, *capsys.readouterr()


# What it says.


def test_report_of_a_saved_module(saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, saved, "--input-size", "3,32,32", "--ratio", "0.5", *QUICK)
    assert (code, err) == (0, "")
    # The numbers of docs/index.md, where the same network is planned.
    assert out.splitlines()[0].startswith(f"structprune {structprune.__version__}: ")
    assert "5,450 parameters, 4 MMACs (8 MFLOPs) with (float32[1, 3, 32, 32])" in out
    assert "0.5 │ 2.91 k │" in out
    assert "1 group of channels: inside a block" in out
    assert "7.weight: is a dimension of the model's output" in out
    assert "Pruned at 0.5 by filter it has 53% of the parameters and 50% of the MACs" in out
    assert max(len(line) for line in out.splitlines()) <= 80 or "/" in max(out.splitlines(), key=len)


def test_measured_report_in_json(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "report.json"
    options = ["--input-size", "3,32,32", "--ratio", "0.25", "0.5", "--batch-size", "1", "2", "--min-seconds", "0.05"]
    code, out, _ = run(capsys, saved, *options, "--device", "cpu", "--json", target)
    assert code == 0
    assert "batch" in out
    document = json.loads(target.read_text())
    wanted = {"model", "params", "macs", "flops", "device", "ratios", "groups", "frozen", "uncounted"}
    assert wanted <= set(document)
    count = structprune.count_flops(plain(), torch.zeros(1, 3, 32, 32))
    assert (document["params"], document["macs"], document["flops"]) == (count.params, count.macs, count.flops)
    assert document["device"] == "cpu"
    assert [(r["ratio"], r["batch_size"]) for r in document["ratios"]] == [(0.25, 1), (0.25, 2), (0.5, 1), (0.5, 2)]
    keys = {"ratio", "granularity", "params", "macs", "theoretical_speedup", "latency", "speedup", "speedup_interval"}
    for result in document["ratios"]:
        assert keys <= set(result)
        low, high = result["speedup_interval"]
        assert low <= result["speedup"] <= high
    half = structprune.plan_pruning(plain(), 0.5, example_inputs=torch.zeros(1, 3, 32, 32))
    assert (document["ratios"][2]["params"], document["ratios"][2]["macs"]) == (half.params[1], half.macs[1])


def test_json_to_stdout_is_all_there_is(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, saved, "--input-size", "3,32,32", "--json", "-", *QUICK)
    assert (code, err) == (0, "")
    assert [r["speedup"] for r in json.loads(out)["ratios"]] == [None, None, None]


def test_quiet(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, saved, "--input-size", "3,32,32", "--quiet", *QUICK) == (0, "", "")


def test_compare_two_files(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.pt"
    torch.save(structprune.prune_model(torch.load(saved, weights_only=False), 0.5), small)
    target = tmp_path / "out.json"
    arguments = ["--compare", small, "--input", "2,3,32,32", "--min-seconds", "0.05", "--json", target]
    code, out, _ = run(capsys, saved, *arguments)
    assert code == 0
    assert "dense / pruned" in out
    (comparison,) = json.loads(target.read_text())["comparisons"]
    assert (comparison["dense"]["params"], comparison["pruned"]["params"]) == (5450, 2906)


def test_nothing_prunable_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "linear.pt"
    torch.save(nn.Sequential(nn.Linear(4, 2)), path)
    code, out, _ = run(capsys, path, *QUICK)
    assert code == 3
    assert "is a dimension of the model's output" in out


def test_interrupted_says_what_is_known(saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(structprune, "measure_latency", interrupted)
    target = saved.with_suffix(".json")
    code, out, _ = run(capsys, saved, "--input-size", "3,32,32", "--json", target)
    assert code == 130
    assert "5,450 parameters" in out
    assert "Interrupted: the above is what was known." in out
    assert json.loads(target.read_text())["interrupted"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a model file, or --demo"),
        (["x.pt", "--ratio", "1.5"], "'1.5' is no share between 0 and 1"),
        (["--ratio", "0.5", "x.pt"], "'x.pt' is no share between 0 and 1 (the model file goes first)"),
        (["x.pt", "--batch-size", "0"], "'0' is no number of 1 or more"),
        (["x.pt", "--granularity", "layer"], "invalid choice: 'layer'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt"], "missing.pt: no such file."),
        (["--demo", "--dtype", "float99"], "--dtype float99: no dtype of PyTorch"),
        (["--demo", "--device", "tpu9"], "device='tpu9' cannot be used here"),
        (["--demo", "--input-size", "3x224"], "'1,3x224' is no input"),
        (["--demo", "--input", "1,3,32,32:float99"], "is no input: expected sizes and perhaps a dtype"),
        (["--demo", "--html", "no/such/folder/x.html"], "there is no folder no/such/folder"),
        (["--demo", "--input-size", "5,32,32", "--no-latency"], "does not run with the example inputs"),
    ],
)
def test_what_cannot_be_done(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err


def test_help_shows_three_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert text.split("examples:")[1].count("structprune-report ") == 3
    assert "exit codes: 0 done, 2 bad arguments or file, 3 nothing can be pruned." in text


def test_the_command_and_the_module_are_the_same() -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    for command in ([sys.executable, "-m", "structprune"], [str(Path(sys.executable).parent / "structprune-report")]):
        if not Path(command[0]).exists():
            pytest.skip(f"{command[0]} is not installed: pip install --editable .")
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, check=True, env=environment, timeout=60, cwd=ROOT
        )
        assert done.stdout == f"structprune {structprune.__version__}\n"


def test_first_line_comes_soon() -> None:
    command = [sys.executable, "-u", "-m", "structprune", "--demo", *QUICK, "--ratio", "0.5"]
    best = 99.0
    for _ in range(2):
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            best = min(best, time.perf_counter() - start)
            process.stdout.read()
        assert line == f"structprune {structprune.__version__}: the built-in ResNet-50\n"
        assert process.returncode == 0
    # 3 s with the cores free; the other tests run beside this one.
    assert best < 9


# What it opens.


def test_known_networks_open_without_a_flag(tmp_path: Path) -> None:
    for model in (vision.torchvision().models.resnet18(), vision.build("vit_b_16"), structprune.demo.resnet50()):
        path = tmp_path / "model.pt"
        torch.save(model, path)
        loaded = load_model(path, None, Trust()).model
        assert type(loaded) is type(model)
        assert all(
            torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
        )


def test_timm_network_opens_without_a_flag(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    path = tmp_path / "model.pt"
    torch.save(timm.create_model("convnext_atto"), path)
    assert type(load_model(path, None, Trust()).model).__name__ == "ConvNeXt"


def test_partials_of_layers_open(tmp_path: Path) -> None:
    model = plain()
    model.norm_layer = partial(nn.LayerNorm, eps=1e-6)
    model.act = torch.nn.functional.gelu
    path = tmp_path / "model.pt"
    torch.save(model, path)
    loaded = load_model(path, None, Trust()).model
    assert loaded.norm_layer(4).eps == 1e-6


def test_state_dicts_with_an_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = vision.torchvision().models.resnet18()
    path = tmp_path / "weights.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    loaded = load_model(path, "torchvision:resnet18", Trust()).model
    assert torch.equal(loaded.fc.weight, model.fc.weight)
    code, _, err = run(capsys, path, *QUICK)
    assert code == 2
    assert "holds weights only, 122 tensors, and not the network that they belong to" in err
    with pytest.raises(FileError, match=r"does not fit --arch torchvision:resnet34:\nMissing key"):
        load_model(path, "torchvision:resnet34", Trust())
    with pytest.raises(FileError, match="--arch torchvision:resnet999: ValueError: Unknown model"):
        load_model(path, "torchvision:resnet999", Trust())
    with pytest.raises(FileError, match=r"expected torchvision:NAME, timm:NAME or package\.module:function"):
        load_model(path, "resnet18", Trust())
    own = "structprune.demo:resnet50"
    torch.save(structprune.demo.resnet50().state_dict(), path)
    assert type(load_model(path, own, Trust()).model).__name__ == "ResNet50"


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(structprune.demo.resnet50().state_dict(), path)
    loaded = load_model(path, "structprune.demo:resnet50", Trust()).model
    assert loaded.fc.weight.shape == (1000, 2048)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match="cannot be read"):
        load_model(path, "structprune.demo:resnet50", Trust())


def test_torchscript_is_counted_but_not_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "script.pt"
    torch.jit.script(plain().eval()).save(str(path))
    code, out, _ = run(capsys, path, "--input-size", "3,32,32", *QUICK)
    assert code == 3
    assert "5,450 parameters, 4 MMACs" in out
    assert "A TorchScript module cannot be cut: prune the Python module it was made" in " ".join(out.split())


def test_exported_program_is_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(plain().eval(), (torch.randn(1, 3, 32, 32),)), path)
    # Its own example inputs are taken.
    code, out, _ = run(capsys, path, "--ratio", "0.5", *QUICK)
    assert code == 0
    assert "5,450 parameters, 4 MMACs (8 MFLOPs) with (float32[1, 3, 32, 32])" in out
    assert "0.5 │ 2.91 k" in out


# What it refuses.


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call


class Wraps(Calls):
    """Pickles as a partial that is given its function afterwards."""

    def __reduce__(self) -> Any:
        return partial, (nn.Linear,), (*self._call, {}, {})


def _marker(path: Path) -> str:
    return f"touch {path}"


def _hostile(marker: Path) -> dict[str, Any]:
    command = _marker(marker)
    module = plain()
    module.hook = Calls(os.system, command)
    return {
        "os.system": Calls(os.system, command),
        "in a module": module,
        "eval": Calls(eval, f"__import__('os').system({command!r})"),
        "exec": Calls(exec, f"import os; os.system({command!r})"),
        "getattr": Calls(getattr, nn.Linear, "forward"),
        "subprocess": Calls(subprocess.call, ["touch", str(marker)]),
        "a constructor": Calls(nn.Linear, 2, 2),
        "partial of os.system": Calls(partial, os.system, command),
        "partial given os.system": Wraps(os.system, (command,)),
        "partial of partial": Calls(partial, partial, os.system, command),
        "torch.load": Calls(torch.load, "other.pt"),
        "torch.hub": Calls(torch.hub.load, "a/b", "c"),
        "torch's helper that calls": Calls(torch._tensor._rebuild_from_type_v2, nn.Linear, nn.Linear, (2, 2), {}),
        "an fx graph module": torch.fx.symbolic_trace(plain()),
    }


@pytest.mark.parametrize("name", _hostile(Path("x")))
def test_hostile_pickles_run_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    torch.save(_hostile(marker)[name], path)
    code, _, err = run(capsys, path, *QUICK)
    assert code == 2
    assert "was not opened: reading it would run code that it names." in err
    assert "--trust" in err
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_pickles_of_other_kinds_run_nothing(protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The archive is made by hand: torch.save would not write these.
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Calls(os.system, _marker(marker)), protocol=protocol))
        archive.writestr("model/version", "3\n")
        archive.writestr("model/byteorder", "little")
    code, _, err = run(capsys, path, *QUICK)
    assert (code, marker.exists()) == (2, False)
    assert "was not opened" in err
    path.write_bytes(pickle.dumps(Calls(os.system, _marker(marker)), protocol=protocol))
    code, _, err = run(capsys, path, *QUICK)
    assert (code, marker.exists()) == (2, False)
    assert "cannot be opened safely" in err
    path.write_text("hello\n")
    code, _, err = run(capsys, path, *QUICK)
    assert code == 2 and "cannot be opened safely (KeyError: 101). Expected a file of torch.save" in " ".join(
        err.split()
    )


@pytest.mark.parametrize(
    "program",
    [
        b"(S'touch x'\nios\nsystem\n.",
        b"\x80\x02cos\nsystem\n(S'touch x'\ntR.",
        b"\x80\x02ctorch.nn.modules.linear\nLinear\nq\x00)\x81q\x01}b0h\x00(K\x02K\x02tR.",
        b"\x80\x02ctorch.nn.modules.linear\nLinear\nK\x02K\x02\x86\x81.",
        b"\x80\x02ctorch.nn.modules.linear\nLinear\n}U\x07forwardcos\nsystem\nsb.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n](ctorch.nn.modules.linear\nLinear\nK\x02eR.",
        b"\x80\x02garbage",
        b"",
        b"\x80\x02R.",
    ],
)
def test_programs_that_torch_save_does_not_write(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", program)
        archive.writestr("model/version", "3\n")
    with pytest.raises(FileError, match="was not opened"):
        load_model(path, None, Trust())
    assert not (Path.cwd() / "x").exists()


def test_own_classes_are_refused_by_name_and_can_be_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.pt"
    torch.save(Small(), path)
    name = f"{Small.__module__}.Small"
    code, _, err = run(capsys, path, "--input-size", "3,32,32", *QUICK)
    assert code == 2
    assert f"  {name}: it is not known to be harmless" in err
    assert f"--allow {name}" in err
    assert run(capsys, path, "--input-size", "3,32,32", "--allow", name, *QUICK)[0] == 0
    assert run(capsys, path, "--input-size", "3,32,32", "--trust", *QUICK)[0] == 0


def test_trust_does_what_the_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    torch.save(Calls(os.system, _marker(marker)), path)
    run(capsys, path, "--trust", *QUICK)
    assert marker.exists()


class Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "written_by_script.pt")
        return x


class WritesInFork(Writes):
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


def _saved_and_returned(x: torch.Tensor) -> torch.Tensor:
    torch.save(x, "written_by_script.pt")
    return x


@pytest.mark.parametrize("kind", [Writes, WritesInFork, WritesWhenLoaded])
def test_torchscript_that_writes_files_is_refused(
    kind: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "script.pt"
    torch.jit.script(kind()).save(str(path))
    with pytest.raises(FileError, match="it reads or writes files"):
        load_model(path, None, Trust())
    assert not (tmp_path / "written_by_script.pt").exists()


def test_code_beside_the_file_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(vision.torchvision().models.resnet18(), path)
    (tmp_path / "torchvision.py").write_text("open('ran', 'w')")
    (tmp_path / "timm.py").write_text("open('ran', 'w')")
    done = subprocess.run(
        [sys.executable, "-c", f"from structprune.report.cli import main; main([{str(path)!r}, '--no-latency'])"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    # Without torchvision's declared operators it may not import; what lies beside the file must not in its place.
    assert not (tmp_path / "ran").exists(), done.stderr


def test_a_refusal_cannot_control_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02cmine.\x1b[2Jx;touch y\nNet\n)\x81.")
        archive.writestr("model/version", "3\n")
    code, _, err = run(capsys, path, *QUICK)
    assert (code, "\x1b" in err, "--allow" in err) == (2, False, False)


def test_a_forward_that_is_replaced_is_refused(tmp_path: Path) -> None:
    model, path = nn.Identity(), tmp_path / "model.pt"
    model.__dict__["forward"] = nn.Linear
    torch.save(model, path)
    with pytest.raises(FileError, match="forward: the file would put something of its own in its place"):
        load_model(path, None, Trust())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demo", "x.pt"], "give a model file or --demo, not both"),
        (["--demo", "--compare", "x.pt", "--html", "x.html"], "--compare measures two files and writes no page"),
        (["--demo", "--input", "1,3,4,4", "--input-size", "3,4,4"], "give --input or --input-size, not both"),
    ],
)
def test_options_that_exclude_each_other(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_targets_are_checked_before_the_work(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target in (tmp_path, tmp_path / "none" / "x"):
        code, out, err = run(capsys, "--demo", option, target)
        assert (code, out) == (2, "")
        assert f"{option} " in err


def test_damaged_files_and_odd_names_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d[" / "b]:x:.pt"
    path.parent.mkdir()
    torch.save(plain(), path)
    code, out, _ = run(capsys, path, "--input-size", "3,32,32", *QUICK)
    assert (code, str(path) in out.replace("\n", "")) == (0, True)
    data = bytearray(path.read_bytes())
    data[100:160] = bytes(60)
    path.write_bytes(data)
    code, _, err = run(capsys, path, "--input-size", "3,32,32", *QUICK)
    assert (code, "cannot be read" in err or "was not opened" in err) == (2, True)


def _repacked(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


@pytest.mark.parametrize("kind", ["expression", "chr", "guard", "name", "target", "file", "inputs", "legacy", "flag"])
def test_hostile_exports_run_nothing(kind: str, tmp_path: Path) -> None:
    good, bad, marker = tmp_path / "good.pt2", tmp_path / "bad.pt2", tmp_path / "marker"
    torch.export.save(torch.export.export(plain().eval(), (torch.randn(1, 3, 32, 32),)), good)
    code = f"__import__('os').system('{_marker(marker)}')"

    def change(name: str, data: bytes) -> bytes:
        if kind in ("inputs", "legacy") and "sample_inputs" in name:
            out = io.BytesIO()
            torch.save(Calls(os.system, _marker(marker)), out, _use_new_zipfile_serialization=kind == "inputs")
            return out.getvalue()
        if name.endswith("weights_config.json") and kind == "flag":
            return data.replace(b'"use_pickle": false', b'"use_pickle": true')
        if not name.endswith("models/model.json"):
            return data
        document = json.loads(data)
        if kind == "expression":
            document["range_constraints"] = {"s0": {"expr_str": code}}
        if kind == "chr":
            hidden = "+".join(f"chr({ord(c)})" for c in code)
            document["range_constraints"] = {"s0": {"expr_str": f"exec({hidden})"}}
        if kind == "guard":
            document["guards_code"] = [code]
        if kind == "target":
            document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"
        if kind == "file":
            document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"
        if kind == "name":
            document["graph_module"]["graph"]["nodes"][0]["name"] = f"x=({code})"
        return json.dumps(document).encode()

    _repacked(good, bad, change)
    with pytest.raises(FileError, match=r"was not opened|cannot be read"):
        load_model(bad, None, Trust())
    assert not marker.exists()


def test_exports_with_compiled_code_or_objects_are_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pt2", tmp_path / "bad.pt2"
    torch.export.save(torch.export.export(plain().eval(), (torch.randn(1, 3, 32, 32),)), good)
    for member in ("data/aotinductor/model/x.so", "data/constants/custom_obj_0"):
        _repacked(good, bad, lambda _name, data: data)
        with zipfile.ZipFile(bad, "a") as archive:
            root = archive.namelist()[0].split("/")[0]
            archive.writestr(f"{root}/{member}", b"anything")
        with pytest.raises(FileError, match="it is no part of a plain exported program"):
            load_model(bad, None, Trust())


@pytest.mark.parametrize("member", ["{root}/data.pkl", "{root}/DATA.PKL", "other/data.pkl"])
def test_archives_that_two_readers_may_see_differently_are_refused(member: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.pt"
    _repacked(saved, path, lambda _name, data: data)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(member.format(root=archive.namelist()[0].split("/")[0]), b"\x80\x02N.")
    with pytest.raises(FileError, match="holds files of one name twice, or more than one folder"):
        load_model(path, None, Trust())


# The page.


def a_report() -> Report:
    """A report with everything in it, and a name that would break a page which does not escape."""
    stages = [
        structprune.Stage(n, 2_000_000, 1_000_000, 0.002, 0.0015) for n in ("stem", "stages.0", "stages.1", "head")
    ]
    results = [
        RatioResult(
            ratio, "filter", 1000, 500, 2.0, batch, 0.01, 1.5, (1.4, 1.6), "faster", "", ["one <cause>"], list(stages)
        )
        for ratio in (0.25, 0.5, 0.75)
        for batch in (1, 32)
    ]
    return Report(
        model="Net<script>alert(1)</script>",
        source="a/very/long/path/" * 6 + "model.pt",
        inputs="(float32[1, 3, 32, 32])",
        params=1000,
        macs=1000,
        flops=2000,
        device="cpu",
        circumstances="cpu (a CPU), 2 threads",
        latency=[Timing(1, 0.01, 0.009, 0.011, ""), Timing(32, 0.1, 0.09, 0.11, "busy")],
        ratios=results,
        groups=[Prunable("stages.0.conv.weight", 64, 32, "inside a block")],
        frozen={"head.weight": "is a dimension of the model's output"},
        uncounted={"aten::_fft_r2c": 2},
        verdict="It is faster.",
    )


def test_page_is_self_contained_and_escaped() -> None:
    text = page(a_report())
    assert "<script>alert" not in text
    assert "Net&lt;script&gt;" in text
    outside = [part.split('"')[0] for part in text.split('href="')[1:] + text.split('src="')[1:]]
    assert [link for link in outside if not link.startswith(("#", "data:"))] == []
    assert "@import" not in text
    assert text.count("<svg") == 3
    assert "#010203" not in text
    assert "one &lt;cause&gt;" in text


def test_page_of_what_is_known_so_far() -> None:
    report = Report(model="Net", source="x.pt", interrupted=True)
    assert "Interrupted" in page(report)
    report = Report(model="Net", source="x.pt", nothing="Nothing can go.", verdict="Nothing can go.")
    assert "Nothing can go." in page(report)


def test_html_is_written(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.html"
    assert run(capsys, saved, "--input-size", "3,32,32", "--html", target, *QUICK)[0] == 0
    assert "5.45 k" in target.read_text()


def test_without_the_extra_it_says_so_before_the_work(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run(capsys, "--demo", "--html", "x.html")
    assert (code, out) == (2, "")
    assert "pip install 'structprune[html]'" in err


@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(width: int, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine: install Debian's chromium to run this test")
    target = tmp_path / "page.html"
    probe = "<script>document.title = [document.documentElement.scrollWidth, innerWidth].join(' ')</script></body>"
    target.write_text(page(a_report()).replace("</body>", probe))
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"),
            *(f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", target.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    scrolled, inner = map(int, title.split())
    # Nothing is wider than the window, but what scrolls in itself.
    assert scrolled <= inner <= max(width, 500)
    assert "In pictures" in done.stdout
