"""Which numbers of a config build the pruned sizes: found by building, not by knowing what a field means."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from structprune.hub.fields import Field, Values, changed, fields
from structprune.meta.replica import walk

# One size of one tensor: its name and the dimension.
Place = tuple[str, int]
Gaps = Mapping[Place, float]
# A search that has built as many networks as this goes on with what it has found.
_MOST_BUILDS = 500


@dataclass(frozen=True)
class Sizes:
    """Shapes by tensor, and the numbers that modules hold by path and name."""

    shapes: dict[str, tuple[int, ...]]
    held: dict[tuple[str, str], float]

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        """Those of a model: of what its ``state_dict`` has, and of plain attributes."""
        held = {
            (path, name): value
            for path, module in walk(model)
            for name, value in vars(module).items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not name.startswith("_")
        }
        return cls({name: tuple(t.shape) for name, t in model.state_dict().items()}, held)


class Search:
    """Builds networks on the meta device from changed configs, and compares their sizes with those wanted.

    A value is a step in the right direction if it brings a size nearer to the wanted one and takes
    none farther away. So several fields whose product is a size (heads and their width) are found
    one after the other.
    """

    def __init__(self, pruned: nn.Module) -> None:
        self.config: Any = pruned.config
        self.wanted = Sizes.of(pruned)
        self.closest: Values = {}
        self._kind = type(pruned)
        self._built: dict[frozenset[tuple[Field, Any]], Sizes | None] = {}
        self._pins: Values = {}
        self._steps: list[tuple[Field, Any]] = []
        self._ratios = sorted(set(self._off()))
        self._fractions = sorted({Fraction(new, old) for old, new in self._ratios})

    def _off(self) -> Iterator[tuple[int, int]]:
        """Sizes, of tensors and held by modules, that the config builds, beside those that are wanted."""
        built = self.built({})
        if built is None:
            return
        for name, shape in self.wanted.shapes.items():
            other = built.shapes.get(name, ())
            if len(other) == len(shape):
                yield from ((a, b) for a, b in zip(other, shape, strict=True) if a > b > 0)
        for place, size in self.wanted.held.items():
            other_size = built.held.get(place)
            if isinstance(size, int) and isinstance(other_size, int) and other_size > size > 0:
                yield other_size, size

    def solutions(self) -> Iterator[Values]:
        """Changes that build exactly the wanted shapes; those first whose modules hold most of the same numbers.

        Numbers alone come before fields that hold nothing, and before fields that the config lacks.
        """
        scaled = list(self._scaled())
        for steps, pins in ((scaled, {}), ([*scaled, *self._filled_in()], {}), (scaled, self._pinned())):
            self._pins = pins
            self._steps = [s for s in steps if self._matters(s)]
            complete = {frozenset(changes.items()): changes for changes in self._complete({})}
            refined = [self._without_idle(each) for changes in complete.values() for each in self._refined(changes)]
            ranked = sorted(refined, key=lambda c: (self.differing(c), len(c)))
            self._pins = {}
            yield from ranked

    def built(self, changes: Values) -> Sizes | None:
        """The sizes of a network built with changes, or ``None`` if it cannot be built or has other tensors."""
        values = {**self._pins, **changes}
        key = frozenset(values.items())
        if key not in self._built:
            self._built[key] = build_sizes(self._kind, changed_or_none(self.config, values))
        return self._built[key]

    def gaps(self, changes: Values) -> Gaps | None:
        """How far every wrong size is off, as a logarithm; ``None`` if the tensors are not the same ones."""
        built = self.built(changes)
        if built is None or built.shapes.keys() != self.wanted.shapes.keys():
            return None
        gaps: dict[Place, float] = {}
        for name, shape in self.wanted.shapes.items():
            other = built.shapes[name]
            if len(other) != len(shape) or (0 in other) != (0 in shape):
                return None
            gaps.update(
                {(name, d): abs(math.log(a / b)) for d, (a, b) in enumerate(zip(other, shape, strict=True)) if a != b}
            )
        return gaps

    def _scaled(self) -> Iterator[tuple[Field, Any]]:
        """Numbers changed as some size was: multiplied by the same ratio."""
        for field, value in fields(self.config):
            if value is not None and value >= 2:
                for fraction in self._fractions:
                    if isinstance(value, float) or value % fraction.denominator == 0:
                        yield field, type(value)(value * fraction)

    def _filled_in(self) -> Iterator[tuple[Field, Any]]:
        """Fields that hold nothing, so that something is computed in their place."""
        for field, value in fields(self.config):
            if value is None:
                yield from ((field, new) for new in sorted({new for _, new in self._ratios}))

    def _pinned(self) -> Values:
        """Sizes that modules hold under a name that the config lacks: some models read it from there if it is set."""
        found: dict[str, set[float]] = {}
        for (_, name), value in self.wanted.held.items():
            found.setdefault(name, set()).add(value)
        return {
            (name,): value
            for name, (value, *others) in found.items()
            if not others and isinstance(value, int) and value >= 2 and getattr(self.config, name, None) is None
        }

    def _matters(self, step: tuple[Field, Any]) -> bool:
        """Whether a change shows at all; one that cannot be built may be possible together with others."""
        built = self.built(dict([step]))
        return built is None or built != self.built({})

    def _complete(self, changes: Values) -> Iterator[Values]:
        gaps = self.gaps(changes)
        if gaps is None or len(self._built) > _MOST_BUILDS:
            return
        if not self._pins and len(gaps) < len(self.gaps(self.closest) or ()):
            self.closest = changes
        if not gaps:
            yield changes
            return
        for place in sorted(gaps):
            nexts = [{**changes, field: v} for field, v in self._steps if field not in changes]
            nexts = [n for n in nexts if _brings_nearer(place, gaps, self.gaps(n))]
            if nexts:
                for each in nexts:
                    yield from self._complete(each)
                return

    def _refined(self, changes: Values) -> Iterator[Values]:
        """The changes, then with more that keep the shapes and let modules hold as many of the numbers wanted.

        Not only those that let them hold more: a number of heads that nothing reads stays as it was
        in the pruned model, while the width of a head that follows from it is read.
        """
        yield changes
        for field, value in self._steps:
            more = {**changes, field: value}
            if field not in changes and self.gaps(more) == {} and self.built(more) != self.built(changes):
                if self.differing(more) <= self.differing(changes):
                    yield from self._refined(more)
                    return

    def _without_idle(self, changes: Values) -> Values:
        """The changes, and of the pinned sizes those without which another network is built."""
        wanted, needed = self.built(changes), {**self._pins, **changes}
        pins, self._pins = self._pins, {}
        for field in pins:
            fewer = {f: v for f, v in needed.items() if f != field}
            if self.built(fewer) == wanted:
                needed = fewer
        self._pins = pins
        return needed

    def differing(self, changes: Values) -> int:
        """How many numbers that modules hold would not be those of the pruned model."""
        built = self.built(changes)
        return sum(1 for k, v in self.wanted.held.items() if built is None or built.held.get(k) != v)


def _brings_nearer(place: Place, before: Gaps, after: Gaps | None) -> bool:
    if after is None or after.get(place, 0.0) >= before[place]:
        return False
    return all(gap <= before.get(other, 0.0) + 1e-9 for other, gap in after.items())


def changed_or_none(config: Any, values: Values) -> Any:
    """A changed copy, or ``None`` if the config refuses the values."""
    try:
        return changed(config, values)
    except Exception:
        # A config may check its values with errors of any kind.
        return None


def build_sizes(kind: type[nn.Module], config: Any) -> Sizes | None:
    """The sizes of a network of a class, built on the meta device; ``None`` where that fails."""
    if config is None:
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return Sizes.of(kind(copy.deepcopy(config)))
    except Exception:
        # Sizes that do not fit together are refused by whoever meets them first, in ways of their own.
        return None
