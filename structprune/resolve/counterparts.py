"""Modules that repeat: what one of them needs, all of its class do."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from structprune.ir.record import Node, Record
from structprune.meta.replica import walk


class Counterparts:
    """The operators that do in other modules of a class what a node does in one of them."""

    def __init__(self, model: nn.Module) -> None:
        self._classes: dict[str, type] = {}
        self._paths: dict[type, list[str]] = {}
        for path, module in walk(model):
            self._classes[path] = type(module)
            self._paths.setdefault(type(module), []).append(path)
        # By mode: every trace of the dense network has the same nodes.
        self._by_place: dict[bool, dict[tuple[str, str], list[int]]] = {}

    def of(self, record: Record, owner: str, node: Node) -> Iterator[tuple[str, Node]]:
        """The counterparts of a node in or below the module ``owner``, with the paths of the modules like that one."""
        if node.module != owner and owner and not node.module.startswith(f"{owner}."):
            return
        if record.training not in self._by_place:
            by_place: dict[tuple[str, str], list[int]] = {}
            for other in record.nodes:
                by_place.setdefault((other.module, other.op), []).append(other.index)
            self._by_place[record.training] = by_place
        by_place = self._by_place[record.training]
        inside = node.module[len(owner) :]
        occurrence = by_place[node.module, node.op].index(node.index)
        for path in self._paths[self._classes[owner]]:
            there = by_place.get((path + inside, node.op), [])
            if path != owner and occurrence < len(there):
                yield path, record.nodes[there[occurrence]]

    def repeating(self, path: str) -> str:
        """The module at a path, or the innermost around it that is not torch.nn's: those are everywhere."""
        while path and self._classes[path].__module__.startswith("torch.nn."):
            path = path.rpartition(".")[0]
        return path
