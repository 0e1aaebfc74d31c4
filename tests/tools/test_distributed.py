"""Two processes train a pruned network together: it computes and learns what one process would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools import finetuning
from tests.tools.finetuning import TOGETHER
from tests.tools.networks import CASES, Case
from tests.tools.worker import PROCESSES, WAYS, part

ROOT = Path(__file__).parents[2]
# Gradients of two halves of a batch are added in another order than those of the whole.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Any]]:
    """What every process left, by way and network."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-W", "ignore", "-m", "tests.tools.worker"]
    logs = [(folder / f"{rank}.log").open("w+") for rank in range(PROCESSES)]
    started = [
        subprocess.Popen([*command, str(rank), folder], cwd=ROOT, env=_environment(), stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        for process, log in zip(started, logs, strict=True):
            process.wait(timeout=1800)
            log.seek(0)
            assert process.returncode == 0, log.read()
    finally:
        for process, log in zip(started, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def alone(case: Case) -> dict[str, torch.Tensor]:
    """The weights after the same step in one process: the mean of both gradients, batch norm on each half."""
    small = case.pruned().train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    (sum(small(part(case, rank)).square().mean() for rank in range(PROCESSES)) / PROCESSES).backward()
    optimizer.step()
    return {name: p.detach() for name, p in small.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_two_processes(results: list[dict[tuple[str, str], Any]], way: str, name: str) -> None:
    case = CASES[name]
    before, expected = dict(case.pruned().named_parameters()), alone(case)
    for rank, result in enumerate(results):
        assert torch.equal(result[way, name]["out"], case.pruned().train()(part(case, rank)))
        weights = result[way, name]["weights"]
        assert weights.keys() == expected.keys()
        for key, weight in weights.items():
            torch.testing.assert_close(weight, expected[key], **ROUNDING)
        assert not torch.equal(weights["head.weight"], before["head.weight"])


@pytest.mark.slow
def test_torchrun_learns_what_one_process_does(tmp_path: Path) -> None:
    """The same batches, in halves: the same curve, and the same FLOPs in all."""
    pytest.importorskip("accelerate")  # in every process
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", str(PROCESSES)]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    done = subprocess.run(
        [*command, "-m", "tests.tools.finetuning", tmp_path / "curve.json"],
        cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, expected = json.loads((tmp_path / "curve.json").read_text()), finetuning.curve(batch_size=TOGETHER).to_dict()
    assert found["processes"] == PROCESSES
    # Each process updates a copy of its own, so that the budget ends a step earlier.
    assert found["step"][:-1] == expected["step"][:-1] and len(found["step"]) > 6
    assert found["metric"][:-1] == pytest.approx(expected["metric"][:-1], abs=1e-9)
    assert found["loss"][1:-1] == pytest.approx(expected["loss"][1:-1], rel=1e-4)
    assert found["flops"][:-1] == pytest.approx(expected["flops"][:-1], rel=0.02)
    assert found["evaluation_flops"] == pytest.approx(expected["evaluation_flops"], rel=1e-6)
