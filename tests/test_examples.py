"""Every example runs, and prints what it promises."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from structprune.transfer import Cut, Frontier, LearningCurve, Point
from tests.support import vision

ROOT = Path(__file__).parents[1]


def _run(script: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(path), str(ROOT)] if path else [str(ROOT)]
    return subprocess.run(
        [sys.executable, ROOT / "examples" / script, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # One thread: tests run side by side, and threads that wait for each other would spin.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": "1",
        },
        check=False,
        # For what hangs; a busy machine may take as long as it likes.
        timeout=1800,
    )


@pytest.mark.parametrize(
    ("granularity", "parameters"), [("filter", "25,557,032 -> 12,367,880"), ("channel", "25,557,032 -> 9,784,840")]
)
def test_finetune_resnet50(granularity: str, parameters: str) -> None:
    done = _run("finetune_resnet50.py", "--steps", "2", "--image-size", "64", "--granularity", granularity)
    assert done.returncode == 0, done.stderr
    assert f"parameters {parameters}" in done.stdout
    assert "\nproved: " in done.stdout
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("step")] == ["step 1", "step 2"]


def test_prune_your_own() -> None:
    done = _run("prune_your_own.py")
    assert done.returncode == 0, done.stderr
    assert "produced by wide.weight (inside a block)" in done.stdout
    assert "\nproved: " in done.stdout
    assert "mix [32, 40, 1, 1] -> [32, 20, 1, 1]" in done.stdout
    assert "one training step" in done.stdout


def test_latency_target(tmp_path: Path) -> None:
    # In that process forwards take as long as their MACs say: a busy machine would find another ratio, or none.
    (tmp_path / "sitecustomize.py").write_text("from tests.support import timing\ntiming.given(setattr)\n")
    done = _run("latency_target.py", "--image-size", "32", "--batch-size", "2", "--speedup", "1.2", path=tmp_path)
    assert done.returncode == 0, done.stderr
    met = re.search(r"speedup=1\.2: met at ratio (0\.\d+), it is (1\.\d+) times as fast", done.stdout)
    assert met is not None and 1.23 <= float(met[2]) <= 1.3
    assert "ratio 0.5000: " in done.stderr and f"ratio {met[1]}: it is {met[2]} times as fast" in done.stderr
    assert "seconds a forward" in done.stdout and f"{met[2]} times as fast (95 % interval" in done.stdout


def test_iterative_pruning() -> None:
    done = _run("iterative_pruning.py", "--steps", "2", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["dense", "cut 1", "cut 2", lines[3], "in steps", "at once"]
    assert "in 2 steps" in lines[3]


def test_prune_sharded_checkpoint() -> None:
    done = _run("prune_sharded_checkpoint.py")
    assert done.returncode == 0, done.stderr
    assert "dense:  0.8 MB in 3 shards" in done.stdout and "loaded: outputs [1, 10]" in done.stdout


_TINY = ["--seeds", "2", "--steps", "2", "--train", "64", "--ratios", "0", "0.5", "--jobs", "1"]
# Written into a process that is to be killed as soon as it has stored three results of the stream.
_DIES = """
import os, signal, sys
import structprune.transfer
module = sys.modules["structprune.transfer.sweep"]
store = module._store

def stores_and_dies(path, document):
    store(path, document)
    if len(list(path.parents[1].glob("stream*/*.json"))) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

module._store = stores_and_dies
"""


@pytest.mark.slow
def test_compute_optimal_transfer(tmp_path: Path) -> None:
    """Killed in the middle and run again it gives what a whole run gives, to the bit."""
    arguments = [*_TINY, "--quick", "--tasks", "2", "--rates", "0.02", "--expansion", "1"]
    arguments += ["--pretraining-steps", "4", "--pretraining-samples", "700"]
    script = ["compute_optimal_transfer.py", *arguments, "--out"]
    whole = _run(*script, str(tmp_path / "whole"), "--docs", str(tmp_path / "docs"))
    assert whole.returncode == 0, whole.stderr
    assert "low compute: pruned filters err" in whole.stdout
    page = (tmp_path / "docs" / "compute-optimal-transfer.md").read_text()
    assert "| filter 0.5 | " in page and "nan" not in page
    for name in re.findall(r"\]\((figures/.*?)\)", page):
        assert (tmp_path / "docs" / name).exists()

    stored = tmp_path / "killed"
    (tmp_path / "sitecustomize.py").write_text(_DIES)
    killed = _run(*script, str(stored), path=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = {file: file.stat().st_mtime_ns for file in stored.glob("stream*/*.json")}
    again = _run(*script, str(tmp_path / "killed"))
    assert again.returncode == 0, again.stderr
    assert len(before) == 3 and all(file.stat().st_mtime_ns == at for file, at in before.items())
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed"))
    assert one["frontier"] == other["frontier"] and len(one["frontier"]["curves"]) == 12
    assert one["after_the_cut"] == other["after_the_cut"] and len(one["after_the_cut"]) == 6
    mixed = _run(*script, str(tmp_path / "killed"), "--train", "100")
    assert mixed.returncode == 1 and "holds results of other settings" in mixed.stderr


@pytest.mark.slow
def test_compute_optimal_transfer_of_a_network_and_images_of_one_s_own(tmp_path: Path) -> None:
    vision.torchvision()
    import timm
    from PIL import Image

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    for index in range(80):
        label = index % 2
        folder = tmp_path / "stripes" / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        pixels[:, label * 20 : label * 20 + 20] //= 4
        Image.fromarray(pixels).save(folder / f"{index}.png")
    # In every process torchvision is to import without its compiled operators.
    (tmp_path / "sitecustomize.py").write_text("from tests.support import vision\nvision.torchvision()\n")
    done = _run(
        "compute_optimal_transfer.py", *_TINY, "--rates", "0.02", "0.08", "--out", str(tmp_path / "out"),
        "--model", "timm:test_resnet",
        "--weights", str(tmp_path / "weights.pth"), "--images", str(tmp_path / "stripes"), "--image-size", "32",
        "--batch-size", "8", path=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frontier = Frontier.from_json(json.dumps(json.loads((tmp_path / "out" / "results.json").read_text())["frontier"]))
    assert frontier.tasks == ("stripes",) and len(frontier.curves) == 6 and not frontier.failures
    assert frontier.cost((0.5, "filter")) < 0.9
    wrong = _run("compute_optimal_transfer.py", "--model", "timm:test_resnet")
    assert wrong.returncode == 2 and "--model and --images go together" in wrong.stderr


def _curve(metrics: list[float], seed: int = 0) -> LearningCurve:
    """A curve with a point before training and after 1, 2, 4 … FLOPs."""
    flops = [0, *(2**k for k in range(len(metrics) - 1))]
    points = tuple(Point(spent, metric, 0.5, spent, 0) for spent, metric in zip(flops, metrics, strict=True))
    return LearningCurve("a", points, 1, 10, {"ratio": 0.5, "granularity": "filter", "seed": seed})


def test_a_rate_for_every_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    from transfer import rates

    # The fast rate is ahead for one and two FLOPs, the slow one for four and eight.
    fast = [_curve([0.9, 0.5, 0.4, 0.4, 0.4]), _curve([0.9, 0.5, 0.2, 0.4, 0.4], seed=1)]
    slow = [_curve([0.9, 0.8, 0.4, 0.2, 0.1]), _curve([0.9, 0.8, 0.4, 0.3, 0.1], seed=1)]
    cut, budgets = Cut(0.5, "filter"), [1.0, 2.0, 4.0, 8.0]
    chosen = rates.chosen({0.1: Frontier(fast), 0.01: Frontier(slow)}, [cut], budgets)
    assert chosen == {cut: [0.1, 0.1, 0.01, 0.01]}
    assert rates.needed(chosen, budgets) == [(cut, 0.1, [1.0, 2.0]), (cut, 0.01, [4.0, 8.0])]

    short = replace(fast[0], points=fast[0].points[:3])
    curve = rates.composed({0.1: short, 0.01: slow[0]}, chosen[cut], budgets)
    assert [(p.flops, p.metric) for p in curve.points] == [(0, 0.9), (1, 0.5), (2, 0.4), (4, 0.2), (8, 0.1)]
    assert curve.cut == cut and curve.about["rates"] == [0.1, 0.01]
    # Steps that do not fit the budgets: the last one within each.
    with pytest.raises(ValueError, match="was not tested at 4 FLOPs"):
        rates.composed({0.1: short, 0.01: short}, chosen[cut], budgets)
    # A rate of which runs failed is not chosen by those that are left.
    lucky = Frontier([_curve([0.9, 0.1, 0.1, 0.1, 0.1])])
    assert rates.chosen({1.0: lucky, 0.01: Frontier(slow)}, [cut], budgets) == {cut: [0.01] * 4}
    assert rates.budgets_up_to(8, 10) == [11, 21, 41, 81] and rates.budgets_up_to(6, 10) == [11, 21, 41, 61]
    assert rates.budgets_up_to(1, 10) == [11]
    odd = replace(slow[0], step_flops=3, points=tuple(replace(p, flops=3 * p.flops // 2) for p in slow[0].points))
    points = rates.composed({0.1: short, 0.01: odd}, chosen[cut], budgets).points
    assert [(p.flops, p.metric) for p in points] == [(0, 0.9), (1, 0.5), (2, 0.4), (3, 0.4), (6, 0.2)]


def test_the_page_on_transfer_is_what_its_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    from transfer import page

    document = json.loads((ROOT / "docs" / "figures" / "transfer-results.json").read_text())
    text = page.page(Frontier.from_json(json.dumps(document["frontier"])), document)
    assert (ROOT / "docs" / "compute-optimal-transfer.md").read_text() == text


@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        (lambda curve: curve["about"]["seed"] == 0, "other seeds"),
        (lambda curve: curve["task"] == "new glyphs", "## Recommendations"),
        (lambda curve: curve["about"]["granularity"] != "channel", "## Filters or channels"),
    ],
    ids=["one seed", "one task", "filters alone"],
)
def test_the_page_on_transfer_of_fewer_runs(
    kept: Callable[[dict[str, Any]], bool], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    from transfer import page

    document = json.loads((ROOT / "docs" / "figures" / "transfer-results.json").read_text())
    document["frontier"]["curves"] = [curve for curve in document["frontier"]["curves"] if kept(curve)]
    document["near"] = [
        task for task in document["near"] if any(c["task"] == task for c in document["frontier"]["curves"])
    ]
    text = page.page(Frontier.from_json(json.dumps(document["frontier"])), document)
    assert "nan" not in text and missing not in text and "## In the end" in text
    assert ("as one seed does not tell" in text) == (missing == "other seeds")


def test_networks_are_set_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    from transfer import beside

    document = json.loads((ROOT / "docs" / "figures" / "transfer-results.json").read_text())
    own = beside.summary(document)
    assert own["near"][0] == Frontier.from_json(json.dumps(document["frontier"])).against(
        "filter", "channel", tasks=document["near"]
    )[0]  # fmt: skip
    wider = {**own, "expansion": 4, "near": (own["near"][0] - 0.1, (-0.2, 0.0))}
    better = {**wider, "near": (own["near"][0] + 0.1, (0.0, 0.2))}
    said = "the wider its residual stream"
    assert said in beside.streams([wider, own]) and said not in beside.streams([better, own])
    assert said not in beside.streams([own]) and beside.streams([{**own, "after_the_cut": []}]) == ""


def test_every_example_is_run() -> None:
    here = Path(__file__).read_text()
    assert [p.name for p in (ROOT / "examples").glob("*.py") if f'"{p.name}"' not in here] == []
