"""The samples of a task, as batches on a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, default_collate

from structprune.errors import OptionError
from structprune.transfer.task import Task

Batch = tuple[Any, Any]
_TESTED_AT_ONCE = 512


@dataclass(frozen=True)
class Batches:
    """What one process of several trains on and tests with: every ``processes``-th batch, from its rank on.

    Attributes:
        batch_size: Samples of a process in a step, where the task has a ``Dataset``.
        seed: Decides the order of a ``Dataset``.
    """

    task: Task
    batch_size: int
    seed: int
    device: torch.device
    rank: int = 0
    processes: int = 1

    def training(self, start: int) -> Iterator[Batch]:
        """Batches without end, from a step on: each pass over a ``Dataset`` in an order of its own."""
        data, passes = self.task.train, 0
        while True:
            batches = self._loaded(data) if isinstance(data, DataLoader) else self._shuffled(data, passes)
            steps = 0
            for batch in batches:
                steps += 1
                if start:
                    start -= 1
                else:
                    yield self._placed(batch())
            if not steps:
                raise OptionError(
                    f"Task {self.task.name!r} has fewer training samples than a step needs: {self.processes} "
                    f"process{'es' * (self.processes > 1)}, each with a batch."
                )
            passes += 1

    def testing(self) -> Iterator[Batch]:
        """The test data once, in order."""
        data: Any = self.task.test
        loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=_TESTED_AT_ONCE)
        return (self._placed(batch) for batch in islice(loader, self.rank, None, self.processes))

    def _shuffled(self, samples: Any, passes: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + passes)
        order = torch.randperm(len(samples), generator=generator).tolist()
        size = min(self.batch_size, len(order) // self.processes)
        step = size * self.processes
        # The last few of a pass would be a batch of another size, and another cost.
        for first in range(self.rank * size, len(order) - len(order) % step if step else 0, step):
            chosen = order[first : first + size]
            yield lambda chosen=chosen: default_collate([samples[i] for i in chosen])

    def _loaded(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Whole rounds: one batch for every process."""
        round_: list[Any] = []
        for batch in loader:
            round_.append(batch)
            if len(round_) == self.processes:
                own, round_ = round_[self.rank], []
                yield lambda own=own: own

    def _placed(self, batch: Any) -> Batch:
        inputs, targets = tree_map_only(torch.Tensor, lambda t: t.to(self.device), batch)
        return inputs, targets
