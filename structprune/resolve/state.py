"""All that the search for a consistent cut has decided and tried, as one value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from structprune.ir.record import Place, Tie
from structprune.resolve.provenance import Holder
from structprune.tracing.discovery import Decisions

# An operator in one mode: whether it is training, and the index of its node.
Site: TypeAlias = tuple[bool, int]


@dataclass(frozen=True, slots=True)
class Repair:
    """A held size that follows a labelled dimension, times a fixed factor (``reached`` is that dimension's size)."""

    holder: Holder
    place: Place
    reached: int

    def __str__(self) -> str:
        entry = "" if self.holder.entry is None else f"[{self.holder.entry}]"
        return f"{self.holder.module or 'the model'}.{self.holder.name}{entry} follows"


Proposal: TypeAlias = Repair | Tie


@dataclass(frozen=True, slots=True)
class Attempt:
    """How far the proposals of one operator have been tried, and those in force."""

    stage: int = -1
    proposals: tuple[Proposal, ...] = ()


@dataclass(frozen=True)
class State:
    """What one trial is run with, and what was tried before.

    Attributes:
        decisions: How ambiguous operators are interpreted, what is frozen and why.
        attempts: The repairs and ties of operators that failed, by operator.
        copied: Repairs of modules that are like one that was repaired, each with that one's.
        deferred: By question the interpretations that were put behind those that need no row scales.
        refuted: Who holds sizes that followed as one factor of several, and were in the way elsewhere.
    """

    decisions: Decisions
    attempts: Mapping[Site, Attempt] = field(default_factory=dict)
    copied: Mapping[Repair, Repair] = field(default_factory=dict)
    deferred: Mapping[str, frozenset[str]] = field(default_factory=dict)
    refuted: frozenset[Holder] = frozenset()

    @property
    def repairs(self) -> list[Repair]:
        """The held sizes that follow, one place each."""
        own = dict.fromkeys(p for a in self.attempts.values() for p in a.proposals if isinstance(p, Repair))
        taken: dict[Holder, Repair] = {}
        for repair in (*own, *(other for other, source in self.copied.items() if source in own)):
            taken.setdefault(repair.holder, repair)
        return list(taken.values())

    @property
    def ties(self) -> tuple[Tie, ...]:
        """The widths that lose the same share."""
        return tuple(dict.fromkeys(p for a in self.attempts.values() for p in a.proposals if isinstance(p, Tie)))

    def decided(self, decisions: Decisions) -> State:
        """Other decisions, and no repairs yet: the labels mean something else now."""
        return replace(self, decisions=decisions, attempts={}, copied={}, refuted=frozenset())

    def without_proposals(self, sites: Iterable[Site]) -> State:
        """What was proposed at these operators is out of force; it is not tried again."""
        spent = {site: replace(self.attempts.get(site, Attempt()), proposals=()) for site in sites}
        return replace(self, attempts={**self.attempts, **spent})
