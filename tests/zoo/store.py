"""Results on disk: one JSON file for a network and a side, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tests.zoo.families import Network
from tests.zoo.process import Limits

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "torch-pruning")


class Pair(NamedTuple):
    """What both sides gave for one network; empty where there is no result yet."""

    network: Network
    ours: dict[str, Any]
    theirs: dict[str, Any]


class Store:
    """The folder of the results."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, side: str, network: Network) -> bool:
        """Whether there is a result."""
        return self._path(side, network).exists()

    def read(self, side: str, network: Network) -> dict[str, Any]:
        """The result, or an empty one."""
        if not self.has(side, network):
            return {}
        result: dict[str, Any] = json.loads(self._path(side, network).read_text())
        return result

    def write(self, side: str, network: Network, result: dict[str, Any]) -> None:
        """Keep a result; a run that stops meanwhile leaves no half of a file."""
        path = self._path(side, network)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1))
        partial.replace(path)

    def pairs(self, networks: Iterable[Network]) -> list[Pair]:
        """The networks that structprune has a result of."""
        found = (Pair(n, self.read("structprune", n), self.read("torch-pruning", n)) for n in networks)
        return [pair for pair in found if pair.ours]

    def _path(self, side: str, network: Network) -> Path:
        return self._folder / side / f"{network.family}.{network.name}.json"


def conditions(limits: Limits, jobs: int, packages: Iterable[str] = _PACKAGES) -> dict[str, Any]:
    """What a result was made with, to be kept beside it."""
    import structprune

    return {
        "versions": {"structprune": structprune.__version__, **{name: version(name) for name in packages}},
        "machine": f"{platform.machine()} CPU with {os.cpu_count()} cores",
        "jobs": jobs,
        **limits._asdict(),
    }
