"""One of several processes that train a pruned network together: ``python -m tests.tools.worker RANK FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tests.tools.networks import CASES, Case

PROCESSES = 2


def replicated(small: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(small)


def sharded(small: Any) -> nn.Module:
    """As FSDP2 wants it: inner modules first, then the whole."""
    from torch.distributed.fsdp import fully_shard

    for module in small.children():
        fully_shard(module)
    whole: nn.Module = fully_shard(small)
    return whole


WAYS: dict[str, Callable[[Any], nn.Module]] = {"ddp": replicated}
if hasattr(torch.cpu.Stream, "record_event"):  # without it FSDP2 runs on accelerators alone
    WAYS["fsdp2"] = sharded


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or gradient that every process holds a part of, put together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def part(case: Case, rank: int) -> torch.Tensor:
    """The samples of one process."""
    return case.batch(2 * PROCESSES).chunk(PROCESSES)[rank]


def trained(case: Case, rank: int, way: str) -> dict[str, Any]:
    """Outputs before, and the weights after one step of every process on its own samples."""
    # Every process makes the same cut, because it starts from the same weights.
    wrapped = WAYS[way](case.pruned().train())
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    out = wrapped(part(case, rank))
    out.square().mean().backward()
    optimizer.step()
    named = {n.removeprefix("module."): whole(p.detach()).clone() for n, p in wrapped.named_parameters()}
    return {"out": out.detach(), "weights": named}


def main(rank: int, folder: Path) -> None:
    """Meet the other processes, do the step with every network in every way, leave what came out."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=1800)
    )
    results = {(way, name): trained(case, rank, way) for way in WAYS for name, case in CASES.items()}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
