"""Two processes train a pruned network together: it computes and learns what one process would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.networks import CASES, Case
from tests.tools.worker import PROCESSES, WAYS, part

ROOT = Path(__file__).parents[2]
# Gradients of two halves of a batch are added in another order than those of the whole.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Any]]:
    """What every process left, by way and network."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-W", "ignore", "-m", "tests.tools.worker"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [(folder / f"{rank}.log").open("w+") for rank in range(PROCESSES)]
    started = [
        subprocess.Popen([*command, str(rank), folder], cwd=ROOT, env=environment, stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        for process, log in zip(started, logs, strict=True):
            process.wait(timeout=120)
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
