"""The identity trial: cut the meta replica, run it, and compare it operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from structprune.graph.groups import DependencyGraph
from structprune.graph.operators import Operator
from structprune.graph.record import Node
from structprune.graph.session import Session
from structprune.graph.slices import Labels, Mask
from structprune.meta.run import run_on_meta
from structprune.resolve.replay import DivergenceError, Mismatch, Replay
from structprune.surgery.cut import Cut
from structprune.surgery.slicing import cut_copy


@dataclass(frozen=True)
class Trial:
    """What a trial found: the mismatches (none: the cut is right), and the MACs of the cut network."""

    mismatches: tuple[Mismatch, ...]
    macs: int

    @property
    def reached(self) -> tuple[int, int]:
        """How far the cut network got: nodes before the first mismatch of each mode, then fewer mismatches."""
        first: dict[bool, int] = {}
        for mismatch in self.mismatches:
            first[mismatch.training] = min(mismatch.node.index, first.get(mismatch.training, mismatch.node.index))
        endless = 1 << 40
        return sum(first.get(mode, endless) for mode in (False, True)), -len(self.mismatches)


def run_trial(session: Session, graph: DependencyGraph, cut: Cut, present: Mask) -> Trial:
    """Run the cut replica in every mode of the session and compare it with the dense network."""
    replica = cut_copy(session.replica, cut)
    labels: dict[str, Labels] = {
        name: tuple(axis.ids[present[axis.ids]] for axis in axes) for name, axes in graph.space.by_tensor.items()
    }
    mismatches: list[Mismatch] = []
    macs = 0
    for dense in graph.records:
        replay = Replay(dense, graph.space, graph.roots, graph.stuck, present, _on_meta)
        try:
            record = session.follow(replica, replay, labels)
            replay.end()
            macs = macs or record.macs
        except DivergenceError:
            pass  # noted as a mismatch where it was found
        except Exception as error:
            # Python code between two operators failed: what it waits for comes next.
            text = str(error).strip().splitlines()
            replay.mismatch(
                replay.upcoming(), f"the code before it fails: {type(error).__name__}: {text[0] if text else ''}"
            )
        mismatches += replay.mismatches
    return Trial(tuple(mismatches), macs)


def _on_meta(node: Node, op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return run_on_meta(op, args, kwargs)
