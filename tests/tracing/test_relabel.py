"""A record whose rules were asked again is what a fresh trace under the same interpretations records."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import structprune
from structprune.ir.record import Node, Record
from structprune.ir.slices import Ids, Labels
from structprune.resolve.ranking import ambiguous_interpretations
from structprune.tracing import session as sessions
from structprune.tracing.discovery import Decisions, Discovery
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.session import Session
from tests.support.attention import INPUTS, TOKENS, HeldWidth, Net
from tests.support.random_networks import Apply, Residual, shuffle_channels

Tensor = torch.Tensor
IMAGE = torch.zeros(2, 3, 8, 8)


class Plain(nn.Module):
    """Residual blocks, and no operator that may be read in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 16, 3), nn.Sequential(Residual(2, 16), Residual(2, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.blocks(self.stem(x))).mean((2, 3)))


def shuffled() -> nn.Module:
    """A grouped convolution behind a channel shuffle, which may be read in several ways."""
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), Apply(shuffle_channels), nn.Conv2d(16, 16, 1, groups=2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "shuffle": (shuffled, IMAGE, 2),
    "attention": (lambda: Net(HeldWidth(stored_scale=True)), torch.zeros(2, TOKENS, INPUTS), 2),
    "residual": (Plain, IMAGE, 1),
}


class Seen:
    """A graph with ids that stand for the same channels in every trace of a network."""

    def __init__(self, graph: DependencyGraph) -> None:
        self.graph = graph
        self.named = 1 + max(axis.start + axis.size - 1 for axis in graph.space.axes)
        self.numbers: dict[int, int] = {}

    def channels(self, ids: Ids | None) -> list[int] | None:
        """Slices of tensors by the least of those that leave together; computed ones numbered as they come."""
        if ids is None:
            return None
        roots = self.graph.roots[ids].tolist()
        return [r if r < self.named else self.numbers.setdefault(r, -1 - len(self.numbers)) for r in roots]

    def each(self, many: list[Ids] | Labels) -> list[list[int] | None]:
        return [self.channels(ids) for ids in many]

    def node(self, node: Node) -> dict[str, Any]:
        """All that is known of a node."""
        plain = "index op module parents parametric shapes unchanging writes returns_list places contracts"
        plain += " line choices macs sources is_leaf memory"
        return {
            **{name: getattr(node, name) for name in plain.split()},
            "outputs": [(o.shape, o.dtype, o.device, self.each(o.labels)) for o in node.outputs],
            "operands": [(o.position, o.dim, self.channels(o.ids)) for o in node.operands],
            "mixed": [(o.position, o.dim, self.channels(o.ids)) for o in node.mixed],
            "produced": [(position, dim, self.channels(ids)) for position, dim, ids in node.produced],
            "sizes": [(s.name, s.entry, self.channels(s.ids)) for s in node.sizes],
            **{name: self.each(getattr(node, name)) for name in ("batched", "reduced", "pieces", "fresh")},
            "constants": [(t.shape, t.dtype) if isinstance(t, torch.Tensor) else t for t in node.constants],
            "replayed": node.replay is not None,
            "asked": None if node.asked is None else (node.asked.operator.name, [*node.asked.arguments]),
        }

    def record(self, record: Record) -> dict[str, Any]:
        """All that is known of a trace."""
        return {
            "training": record.training,
            "returned": record.returned,
            "results": [(t.shape, t.dtype) for t in record.results],
            "unknown": record.unknown,
            "touched": record.touched,
            "nodes": [self.node(node) for node in record.nodes],
        }

    def frozen(self) -> list[str]:
        """For every slice of every tensor the reason why it stays."""
        return [self.graph.reason(np.array([i])) for i in range(self.named)]


def assert_same(one: DependencyGraph, other: DependencyGraph) -> None:
    """Two graphs say the same of a network."""
    left, right = Seen(one), Seen(other)
    assert left.named == right.named
    assert len(one.records) == len(other.records)
    for a, b in zip(one.records, other.records, strict=True):
        for ours, theirs in zip(a.nodes, b.nodes, strict=True):
            assert left.node(ours) == right.node(theirs)
        assert left.record(a) == right.record(b)
    assert one.roots[: left.named].tolist() == other.roots[: left.named].tolist()
    assert left.frozen() == right.frozen()
    assert str(one) == str(other)


def fresh(session: Session, decisions: Decisions) -> DependencyGraph:
    """The graph of a trace that runs the forward."""
    session._recorded = session._traced = None
    return session.discover(decisions)


def decided(graph: DependencyGraph) -> list[Decisions]:
    """Every interpretation of every question with every one of the others; one that nothing asks for."""
    questions = ambiguous_interpretations(graph)
    every = [Decisions(interpretations={"nothing asks this": ("free",)})]
    for taken in itertools.product(*questions.values()):
        interpretations = {key: (interpretation,) for key, interpretation in zip(questions, taken, strict=True)}
        every.append(
            Decisions(interpretations=interpretations, reasons=dict.fromkeys(interpretations, "another one failed"))
        )
    return every


@pytest.mark.parametrize("name", NETWORKS)
def test_relabelled_is_as_traced(name: str) -> None:
    make, example, least = NETWORKS[name]
    model = make()
    kept, other = Session(model, example), Session(model, example)
    first = kept.discover(Decisions())
    every = decided(first)
    assert len(every) > least
    recorded = kept._recorded
    assert recorded is not None
    partitions = set()
    for decisions in every:
        relabelled, traced = kept.discover(decisions), fresh(other, decisions)
        assert relabelled.records[0] is not recorded[0]
        assert kept._recorded is recorded
        assert_same(relabelled, traced)
        # Evaluation alone, by which interpretations are compared.
        sketched = kept.sketch(decisions)
        assert [r.training for r in sketched.records] == [False]
        assert Seen(sketched).record(sketched.records[0]) == Seen(traced).record(traced.records[0])
        partitions.add(str(traced.roots[: Seen(traced).named].tolist()))
    # The interpretations say different things, and none left anything behind.
    assert len(partitions) >= least
    assert_same(kept.discover(Decisions()), fresh(other, Decisions()))
    assert_same(first, fresh(other, Decisions()))


def loses_a_contraction(record: Record) -> None:
    next(n for n in record.nodes if n.contracts).contracts = False


def loses_a_label(record: Record) -> None:
    node = next(n for n in reversed(record.nodes) if n.operands)
    node.operands = node.operands[1:]


def loses_a_choice(record: Record) -> None:
    for node in record.nodes:
        node.choices = {}


@pytest.mark.parametrize("loses", [loses_a_contraction, loses_a_label, loses_a_choice])
def test_a_difference_is_seen(loses: Callable[[Record], None], monkeypatch: pytest.MonkeyPatch) -> None:
    relabel = sessions.relabel

    def broken(dense: Record, observer: Discovery, labels: dict[str, Labels]) -> Record:
        record = relabel(dense, observer, labels)
        loses(record)
        return record

    with monkeypatch.context() as patched:
        patched.setattr(sessions, "relabel", broken)
        with pytest.raises(AssertionError):
            test_relabelled_is_as_traced("attention")
    test_relabelled_is_as_traced("attention")


def test_readings_left_out_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking the rules again under the first interpretations is not enough."""
    relabel = sessions.relabel

    def deaf(dense: Record, observer: Discovery, labels: dict[str, Labels]) -> Record:
        monkeypatch.setattr(observer, "_readings", {})
        return relabel(dense, observer, labels)

    monkeypatch.setattr(sessions, "relabel", deaf)
    with pytest.raises(AssertionError):
        test_relabelled_is_as_traced("shuffle")


class Detects(nn.Module):
    """Reads values, and wants targets in training, as detectors do; its channels may be read in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mix, self.head = shuffled()[:4], nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("targets should not be none in training")
        y = self.body(x).mean((2, 3))
        return self.head(self.mix(y[y.sum(1) > -1e9]))


def test_what_runs_by_value_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, bool, bool]] = []
    follow = sessions.follow

    def followed(model: nn.Module, calls: Any, observer: Any, *args: Any, **kwargs: Any) -> Record:
        runs.append((type(observer).__name__, observer.record.training, observer.on_meta))
        return follow(model, calls, observer, *args, **kwargs)

    monkeypatch.setattr(sessions, "follow", followed)
    plan = structprune.plan_pruning(Detects(), 0.5, "channel", example_inputs=torch.randn(2, 3, 8, 8), round_to=1)
    assert plan.shape_left("body.0.weight")[0] == 8
    # Interpretations are compared, and training is given up, on what was recorded of evaluation.
    by_value = [(observer, training) for observer, training, on_meta in runs if not on_meta]
    assert [who for who, training in by_value if not training] == ["Discovery", "Replay"]
