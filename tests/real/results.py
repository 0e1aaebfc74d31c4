"""Results on disk, so that a run which was stopped goes on where it was."""

from __future__ import annotations

import fnmatch
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("structprune", "torch", "torch-pruning", "torch-kirigami")
Record = dict[str, Any]


class Results:
    """A JSON file: by network, method and share of the MACs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = json.loads(path.read_text()) if path.exists() else {}
        self.networks: dict[str, dict[str, dict[str, Record]]] = content.get("networks", {})
        self.skipped: dict[str, str] = content.get("skipped", {})
        self.versions: dict[str, str] = content.get("versions", {})

    def has(self, network: str, method: str, share: float) -> bool:
        """Whether there is a result."""
        return _point(share) in self.networks.get(network, {}).get(method, {})

    def add(self, network: str, method: str, share: float, record: Record) -> None:
        """Keep a result."""
        self.networks.setdefault(network, {}).setdefault(method, {})[_point(share)] = record
        self.skipped.pop(network, None)
        self._write()

    def skip(self, name: str, reason: str) -> None:
        """Keep why a network or a library was left out; what it has from before stays."""
        self.skipped[name] = reason
        self._write()

    def forget(self, pattern: str) -> None:
        """Drop the results of all methods of a pattern."""
        for methods in self.networks.values():
            for method in [name for name in methods if fnmatch.fnmatchcase(name, pattern)]:
                del methods[method]

    def _write(self) -> None:
        """A run that stops meanwhile leaves no half of a file."""
        self.versions = _versions()
        content = {"versions": self.versions, "skipped": self.skipped, "networks": self.networks}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(content, separators=(",", ":")).replace('{"data"', '\n{"data"') + "\n")
        partial.replace(self._path)


def _point(share: float) -> str:
    return f"{share:.2f}"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
