"""The process that judges one network: ``python -m tests.zoo.worker SIDE KEY GIGABYTES``."""

from __future__ import annotations

import logging
import resource
import sys
import warnings
from collections.abc import Callable

import torch

from tests.zoo import structprune_judge, torch_pruning_judge
from tests.zoo.families import Network
from tests.zoo.process import Emit, emit

SIDES: dict[str, Callable[[Network, Emit], None]] = {
    "structprune": structprune_judge.judge,
    "torch-pruning": torch_pruning_judge.judge,
}


def main() -> None:
    """Limit this process and judge."""
    side, key, gigabytes = sys.argv[1:]
    limit = int(gigabytes) << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    SIDES[side](Network.of(key), emit)


if __name__ == "__main__":
    main()
