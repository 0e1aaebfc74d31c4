"""Every example runs, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, ROOT / "examples" / script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        # One thread: tests run side by side, and threads that wait for each other would spin.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
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


def test_latency_target() -> None:
    done = _run(
        "latency_target.py", "--image-size", "64", "--batch-size", "2", "--speedup", "1.2", "--min-seconds", "0.2"
    )
    if "cannot be reached" in done.stderr:  # a machine that is too busy to tell
        assert "speedup=1.2 cannot be reached: with 99% of the channels removed" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "ratio 0.5000: " in done.stderr and "speedup=1.2: met at ratio 0." in done.stdout
    assert "seconds a forward" in done.stdout


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


def test_every_example_is_run() -> None:
    here = Path(__file__).read_text()
    assert [p.name for p in (ROOT / "examples").glob("*.py") if f'"{p.name}"' not in here] == []
