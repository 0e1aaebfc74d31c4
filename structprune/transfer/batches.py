"""The samples of a task, as batches on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from structprune.compat import tree_map_only
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
        data: Any = self.task.train
        passes = 0
        while True:
            loaded = isinstance(data, DataLoader)
            steps = 0
            for step in self._loaded(data) if loaded else self._shuffled(len(data), passes):
                steps += 1
                if start:
                    start -= 1
                else:
                    yield self._placed(step if loaded else default_collate([data[i] for i in step]))
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

    def _shuffled(self, samples: int, passes: int) -> Iterator[list[int]]:
        """The samples of each step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + passes)
        order = torch.randperm(samples, generator=generator).tolist()
        size = min(self.batch_size, len(order) // self.processes)
        step = size * self.processes
        # The last few of a pass would be a batch of another size, and another cost.
        for round_ in range(len(order) // step if step else 0):
            first = round_ * step + self.rank * size
            yield order[first : first + size]

    def _loaded(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Whole rounds: one batch for every process."""
        round_: list[Any] = []
        for batch in loader:
            round_.append(batch)
            if len(round_) == self.processes:
                yield round_[self.rank]
                round_ = []

    def _placed(self, batch: Any) -> Batch:
        inputs, targets = tree_map_only(torch.Tensor, lambda t: t.to(self.device), batch)
        return inputs, targets


def outputs_of(model: nn.Module, inputs: Any) -> Any:
    """A mapping goes in as keywords, as ``example_inputs`` of ``structprune.prune_model`` do."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
