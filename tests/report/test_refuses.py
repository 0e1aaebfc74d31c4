"""Files that are refused: what is said, and that nothing in them ran."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from structprune.report import limits
from structprune.report.files import FileError, Trust, load_model
from structprune.report.study import Report, Wishes, study
from tests.hostile import __main__ as hostile
from tests.hostile.writing import (
    before_1_6,
    listed,
    mapping,
    network,
    number,
    numbers,
    parameter,
    saved,
    storage,
    tensor,
    text,
)
from tests.report.files import QUICK, ROOT, plain, run
from tests.report.programs import PROGRAMS
from tests.support import vision


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
    assert "was not opened: " in err
    assert "--trust" in err
    assert not marker.exists()


def test_trust_does_what_the_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    torch.save(Calls(os.system, _marker(marker)), path)
    run(capsys, path, "--trust", *QUICK)
    assert marker.exists()


def test_code_beside_the_file_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(vision.torchvision().models.resnet18(), path)
    (tmp_path / "torchvision.py").write_text("open('ran', 'w')")
    (tmp_path / "timm.py").write_text("open('ran', 'w')")
    done = subprocess.run(
        [sys.executable, "-c", f"from structprune.report.cli import main; main([{str(path)!r}, '--no-latency'])"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    # Without torchvision's declared operators it may not import; what lies beside the file must not in its place.
    assert not (tmp_path / "ran").exists(), done.stderr


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_pickles_of_other_protocols_run_nothing(
    protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The archive is made by hand: torch.save would not write these.
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    program = pickle.dumps(Calls(os.system, _marker(marker)), protocol=protocol)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", program)
    code, _, err = run(capsys, path, *QUICK)
    assert (code, marker.exists()) == (2, False)
    assert "was not opened" in err
    path.write_bytes(program)
    code, _, err = run(capsys, path, *QUICK)
    assert (code, marker.exists()) == (2, False)
    assert "cannot be opened safely, it is of no kind that is known. Expected a file of torch.save" in err


@pytest.mark.parametrize("case", PROGRAMS)
def test_programs_that_torch_save_does_not_write(case: str, tmp_path: Path) -> None:
    program, message = PROGRAMS[case]
    path = saved(tmp_path / "model.pt", program)
    with pytest.raises(FileError, match=message) as refused:
        load_model(path, None, Trust())
    assert str(refused.value).startswith(f"{path} was not opened: ")
    assert "--trust" in str(refused.value)


def test_parameters_are_what_the_writer_of_these_files_means(tmp_path: Path) -> None:
    # The programs above are refused for what they do, not because nothing of this kind opens.
    loaded = load_model(saved(tmp_path / "model.pt", network(x=listed(number(1), text("a")))), None, Trust())
    assert loaded.model(torch.ones(1, 8)).shape == (1, 4)
    held = mapping({"a": parameter(tensor(storage("0", 128), numbers(128), numbers(1)))})
    with pytest.raises(FileError, match="holds weights only, 1 tensors"):
        load_model(saved(tmp_path / "state.pt", held), None, Trust())
    with pytest.raises(FileError, match="holds a dict, expected a module or a state dict"):
        load_model(before_1_6(tmp_path / "old.pt", b"}"), None, Trust())


@pytest.mark.parametrize("renamed", [False, True])
def test_torchscript_and_exports_are_refused_by_what_they_are(renamed: bool, tmp_path: Path) -> None:
    script, export = tmp_path / "script.pt", tmp_path / "model.pt2"
    torch.jit.script(plain().eval()).save(str(script))
    torch.export.save(torch.export.export(plain().eval(), (torch.randn(1, 3, 32, 32),)), export)
    for path, kind in ((script, "it is TorchScript, a program of its own"), (export, "it is an exported program")):
        if renamed:
            path = path.rename(path.with_suffix(".bin"))
        with pytest.raises(FileError, match=f"{kind}, and PyTorch runs such a file while it opens it. Save the Python"):
            load_model(path, None, Trust())


@pytest.mark.parametrize("member", ["{root}/data.pkl", "{root}/DATA.PKL", "other/data.pkl"])
def test_archives_that_two_readers_may_see_differently_are_refused(member: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "twice.pt", network())
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(member.format(root="m"), b"\x80\x02N.")
    with pytest.raises(FileError, match="holds files of one name twice, or more than one folder"):
        load_model(path, None, Trust())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"x" + data, "it is of no kind that is known"),
        (lambda data: data[:4] + b"x" + data[4:], "has something before it, or between its parts"),
        (lambda data: data + b"x", "breaks off, or has something behind it"),
        (lambda data: data[:-40], "breaks off, or has something behind it"),
        (lambda data: data.replace(b"m/data/1", b"m/data/2", 1), "says two things about 'm/data/1'"),
    ],
)
def test_archives_that_are_not_as_torch_saves_them(
    change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "model.pt", network())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FileError, match=message):
        load_model(path, None, Trust())


def test_floods_of_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    entries = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(60_001)).encode()
    path.write_bytes((len(entries) + 2).to_bytes(8, "little") + b"{" + entries + b"}")
    with pytest.raises(FileError, match="holds 60,001 tensors, more than any network has"):
        load_model(path, "structprune.demo:resnet50", Trust())


def test_packed_archives_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", network())
    held = {info: zipfile.ZipFile(path).read(info) for info in zipfile.ZipFile(path).namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for record, data in held.items():
            archive.writestr(record, data)
    with pytest.raises(FileError, match=r"'m/data\.pkl' in its archive is compressed, which torch.save does not do"):
        load_model(path, None, Trust())


def test_a_forward_beyond_all_memory_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(size=10**6))
    with pytest.raises(Exception, match="one forward makes a tensor of 1x8x1000000x1000000, more than 33,554,432"):
        study(Report("", ""), model, torch.zeros(1, 3, 8, 8), _COUNTED, _Silent())


def test_a_forward_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_OPERATORS", 20)
    model = nn.Sequential(*[nn.ReLU()] * 30, nn.Linear(3, 3))
    with pytest.raises(Exception, match="one forward takes more than 20 operators"):
        study(Report("", ""), model, torch.zeros(1, 3), _COUNTED, _Silent())


_COUNTED = Wishes([0.5], "filter", [None], False, {})


class _Silent:
    def step(self, text: str) -> None:
        """Nobody sees it."""


def _runner(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.hostile", *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=1800, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_one_hostile_file_of_each_kind() -> None:
    pytest.importorskip("transformers")  # some name its files
    pytest.importorskip("timm")
    # Time is not what this is about: a busy machine may take as long as it likes.
    done = _runner("--seconds", "300")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{len(hostile.KINDS)} files of {len(hostile.KINDS)} kinds, 0 not as they should be\n"


@pytest.mark.slow
def test_who_watches_hostile_files_notices_harm() -> None:
    done = _runner("--harmful", "--seconds", "300", "--gigabytes", "0.2", "--only", "s")
    for said in (
        "writes (seed 0): wrote outside/marker",
        "writes here (seed 0): wrote here/x",
        "floods (seed 0): took 0.",  # of the 0.4 GB, what the process did not have before
        "injects (seed 0): sent control characters",
        "leaves (seed 0): exit code 7",
        "says it twice (seed 0): 2 messages for a refusal",
    ):
        assert said in done.stdout
    assert done.returncode == 1
    unending = _runner("--harmful", "--seconds", "1", "--only", "never done")
    assert "never done (seed 0): did not end within its limits" in unending.stdout
