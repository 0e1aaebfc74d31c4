"""Reads the parts of a plan from JSON, and refuses what no plan could hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from structprune.errors import PlanError
from structprune.surgery.cut import AttributeChange


def read_kept(document: Mapping[str, Any]) -> dict[str, dict[int, tuple[int, ...]]]:
    """The indices that stay, by tensor and dimension."""
    sets = [tuple(map(read_size, s)) for s in document["index_sets"]]
    shapes = document["shapes"]
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, dims in document["kept"].items():
        for dim, which in dims.items():
            indices, size = sets[read_size(which)], shapes[name][read_size(int(dim))]
            if not indices or indices[-1] >= size or any(a >= b for a, b in pairwise(indices)):
                raise PlanError(
                    f"The plan's indices for {name} (dim {dim}, size {size}) are not ascending or too large."
                )
            kept.setdefault(name, {})[int(dim)] = indices
    return kept


def read_vectors(document: Mapping[str, Any], key: str) -> dict[str, tuple[float, ...]]:
    """Shifts or scales, an entry for each slice that stays; plans of releases before this one have none."""
    vectors: dict[str, tuple[float, ...]] = {}
    for name, values in document.get(key, {}).items():
        (width,) = document["shapes"][name]
        which = document["kept"].get(name, {}).get("0")
        left = width if which is None else len(document["index_sets"][which])
        vectors[name] = tuple(map(float, values))
        if len(values) != left or not all(map(math.isfinite, vectors[name])):
            raise PlanError(f"The plan's {key} of {name} have {len(values)} entries, not a number for each of {left}.")
    return vectors


def read_attribute(entry: Mapping[str, Any]) -> AttributeChange:
    """Sizes are ints or tuples of ints; JSON has lists for the latter."""

    def value(raw: Any) -> Any:
        return tuple(map(read_size, raw)) if isinstance(raw, list) else read_size(raw)

    name = str(entry["name"])
    if not all(step.isidentifier() and not step.startswith("_") for step in name.split(".")):
        raise PlanError(f"The plan changes the attribute {name!r}, which is no size that a module could hold.")
    return AttributeChange(str(entry["module"]), name, value(entry["old"]), value(entry["new"]))


def read_size(raw: Any) -> int:
    """A size or an index.

    Raises:
        ValueError: It is none.
    """
    if isinstance(raw, bool) or not isinstance(raw, int) or raw < 0:
        raise ValueError(f"{raw!r} is no size or index")
    return raw


def read_pair(raw: Sequence[Any]) -> tuple[int, int]:
    """A number before and after."""
    before, after = map(read_size, raw)
    return before, after
