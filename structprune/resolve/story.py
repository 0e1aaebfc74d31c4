"""What changed between two states of the search, in words for the log."""

from __future__ import annotations

from collections.abc import Iterator

from structprune.ir.record import Place, Stretch
from structprune.resolve.state import State


def changes(before: State, after: State) -> Iterator[str]:
    """The changes, one line each."""
    old, new = before.decisions, after.decisions
    for key, order in new.interpretations.items():
        if old.interpretations.get(key) != order:
            why = f" ({new.reasons[key]})" if new.reasons.get(key) != old.reasons.get(key) else ""
            yield f"{in_short(key)} as {', else '.join(order)}{why}"
    dropped = [*(set(before.repairs) - set(after.repairs)), *(set(before.ties) - set(after.ties))]
    if dropped:
        yield f"{len(dropped)} sizes and ties that followed are given up"
    for repair in after.repairs:
        if repair not in before.repairs:
            yield f"{repair} {_said(repair.place)}"
    for tie in after.ties:
        if tie not in before.ties:
            yield f"{_said(tie.left)} loses the same share as {_said(tie.right)}"
    for place in new.at_least_two[len(old.at_least_two) :]:
        yield _said(place)
    for (training, index), reason in new.frozen.items():
        if (training, index) not in old.frozen:
            yield f"operator {index} in {_mode(training)}: {reason}"
    for place, reason in new.held.items():
        if place not in old.held:
            yield f"{_said(place)}: {reason}"


def in_short(key: str) -> str:
    """A question without the lines of libraries between the operator and the forward that called it."""
    what, _, lines = key.partition(" at ")
    return f"{what} at {lines.rpartition(' < ')[2]}"


def _said(place: Place | Stretch) -> str:
    if isinstance(place, Stretch):
        return f"the first {place.length} of dim {place.dim} of {place.tensor}"
    which = "output" if place.output else "operand"
    return f"dim {place.dim} of {which} {place.index} of operator {place.node} in {_mode(place.training)}"


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"
