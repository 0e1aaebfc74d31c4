"""Sweeps: killed, damaged or failing in part, in threads, processes and on a cluster."""

from __future__ import annotations

import os
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from structprune import OptionError
from structprune.transfer import Frontier, Task, sweep
from tests.support.halves import BATCH, TASK, data, network


class Counting(ThreadPoolExecutor):
    """Counts jobs, and dies after some."""

    def __init__(self, upto: int = 10**9) -> None:
        super().__init__(1)
        self.jobs, self.upto = 0, upto

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs += 1
        if self.jobs > self.upto:
            raise KeyboardInterrupt
        return super().submit(function, *args, **kwargs)


def swept(executor: Executor, store: Path | None, **options: Any) -> Frontier:
    torch.manual_seed(0)
    options = {"ratios": [0, 0.5], "granularities": ["filter", "channel"], "seeds": [0, 1], **options}
    options = {"budget_flops": 1e9, **options}
    return sweep(
        network(), [TASK], executor=executor, store=store, batch_size=BATCH,
        example_inputs=torch.zeros(1, 1, 8, 8), pruning={"round_to": 1}, **options,
    )  # fmt: skip


def test_a_sweep_that_was_killed_goes_on(tmp_path: Path) -> None:
    whole = swept(Counting(), None)
    assert len(whole.curves) == 6 and not whole.failures and whole.cuts[0] == (0.0, "dense")
    killed = Counting(upto=3)
    with pytest.raises(KeyboardInterrupt):
        swept(killed, tmp_path)
    killed.shutdown(cancel_futures=True)
    executor = Counting()
    again = swept(executor, tmp_path)
    assert again.to_json() == whole.to_json() and executor.jobs <= 6
    last = Counting()
    assert swept(last, tmp_path).to_json() == whole.to_json() and last.jobs == 0


DAMAGES: list[tuple[str, Any]] = [
    ("cut short", lambda content: content[: len(content) // 2]),
    ("empty", lambda content: b""),
    ("zeros", lambda content: bytes(len(content))),
    ("no text", lambda content: b"\xff" + content),
    ("another document", lambda content: b"[1, 2]"),
    ("nested", lambda content: b"[" * 100_000),
    ("half a curve", lambda content: b'{"curve": {"task": "halves"}}'),
    ("neither", lambda content: b'{"job": {}}'),
]


@pytest.mark.parametrize("damage", [how for _, how in DAMAGES], ids=[name for name, _ in DAMAGES])
def test_a_result_that_is_damaged_is_made_again(tmp_path: Path, damage: Any) -> None:
    options: dict[str, Any] = {"granularities": ["filter"], "seeds": [0], "budget_flops": 1e8}
    whole = swept(Counting(), tmp_path, **options)
    result = sorted(tmp_path.glob("*.json"))[0]
    result.write_bytes(damage(result.read_bytes()))
    (tmp_path / "shared.pt").write_bytes(b"PK")
    executor = Counting()
    assert swept(executor, tmp_path, **options).to_json() == whole.to_json() and executor.jobs == 1


def test_a_run_that_fails_does_not_end_the_others() -> None:
    found = swept(Counting(), None, granularities=["filter", "filtr"], seeds=[0])
    assert len(found.curves) == 2 and len(found.failures) == 1
    assert "granularity is 'filtr'" in found.failures[0].error and "failed: halves, filtr 0.5" in str(found)
    with pytest.raises(OptionError, match="must be at least one, of different names"):
        sweep(network(), [TASK, TASK], [0], budget_flops=1e9)
    with pytest.raises(OptionError, match="seed is the sweep's own"):
        sweep(network(), [TASK], [0], budget_flops=1e9, seed=3)


@pytest.mark.slow
def test_processes_give_the_same() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"budget_flops": 2e8, "batch_size": BATCH, "example_inputs": torch.zeros(1, 1, 8, 8)}
    model = network()
    ours = sweep(model, [TASK], [0], executor=Counting(), **options)
    assert sweep(model, [TASK], [0], **options).to_json() == ours.to_json()


def dies(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    os._exit(1)


@pytest.mark.slow
def test_a_process_that_dies_fails_its_own_run_alone() -> None:
    torch.manual_seed(0)
    tasks = [
        Task("a", data(0), data(1), 2),
        Task("dies", data(0), data(1), 2, loss=dies),
        Task("b", data(0), data(1), 2),
    ]
    found = sweep(network(), tasks, [0], seeds=[0, 1], budget_flops=2e8, batch_size=BATCH)
    assert sorted((c.task, c.about["seed"]) for c in found.curves) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [(f.task, f.seed) for f in found.failures] == [("dies", 0), ("dies", 1)]
    assert "BrokenProcessPool" in found.failures[0].error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask_gives_the_same(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path / "dask")
    )
    with cluster, distributed.Client(cluster) as client:
        found = swept(client.get_executor(), tmp_path / "store")
    assert not found.failures and found.to_json() == swept(Counting(), None).to_json()
