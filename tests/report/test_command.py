"""What the command says, writes and returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune.report import cli
from structprune.report.cli import main
from tests.report.files import QUICK, ROOT, plain, run


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
            [*command, "--version"], capture_output=True, text=True, check=True, env=environment, timeout=1800, cwd=ROOT
        )
        assert done.stdout == f"structprune {structprune.__version__}\n"


def test_the_first_line_comes_before_the_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def works(given: object) -> None:
        said.append(capsys.readouterr().out)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_opened", works)
    assert run(capsys, "--demo")[0] == cli.INTERRUPTED
    assert said == [f"structprune {structprune.__version__}: the built-in ResNet-50\n"]


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


def test_a_comparison_counts_before_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, large = tmp_path / "good.pt", tmp_path / "large.pt"
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)), good)
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(size=100_000)), large)
    code, _, err = run(capsys, good, "--compare", large, "--input", "1,3,8,8")
    assert code == 2
    assert "one forward makes a tensor of 1x4x100000x100000, more than 33,554,432 elements" in err
