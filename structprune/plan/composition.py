"""Two cuts, one after the other, as one; and what one cut does beyond another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from structprune.errors import PlanError
from structprune.ir.slices import Vector
from structprune.surgery.cut import AttributeChange

Kept = Mapping[str, Mapping[int, tuple[int, ...]]]
Vectors = Mapping[str, tuple[float, ...]]


class Cuts(NamedTuple):
    """What a plan does to a model; the names are those of its attributes."""

    kept: Kept
    attributes: tuple[AttributeChange, ...]
    shifts: Vectors
    scales: Vectors
    row_scales: Vectors


def composed(first: Cuts, second: Cuts) -> Cuts:
    """The cut that does what both do: ``x -> (x[kept] * scale + shift) * row_scale``, twice."""
    shifts, scales, row_scales = {}, {}, {}
    for name in {*first.shifts, *second.shifts, *first.scales, *second.scales, *first.row_scales, *second.row_scales}:
        picked = second.kept.get(name, {}).get(0)
        scale, shift, row_scale = (_vector(v, name, picked) for v in (first.scales, first.shifts, first.row_scales))
        again, more, then = (_vector(v, name, None) for v in (second.scales, second.shifts, second.row_scales))
        scales[name], row_scales[name] = _times(scale, again), _times(row_scale, then)
        # What is added after the first row_scale is added before both.
        later = more if more is None or row_scale is None else more / row_scale
        shifts[name] = _plus(_times(shift, again) if shift is not None else None, later)
    changes = {(c.module, c.name): c for c in first.attributes}
    for change in second.attributes:
        before = changes.get((change.module, change.name))
        old = change.old if before is None else before.old
        changes[change.module, change.name] = AttributeChange(change.module, change.name, old, change.new)
    return Cuts(
        _both(first.kept, second.kept),
        tuple(c for c in changes.values() if c.old != c.new),
        _stored(shifts),
        _stored(scales),
        _stored(row_scales),
    )


def remainder(whole: Cuts, first: Cuts) -> Cuts:
    """The second cut of two, given both as one and the first.

    Raises:
        PlanError: The first removes what the whole keeps.
    """
    for name, dims in first.kept.items():
        if not dims.keys() <= whole.kept.get(name, {}).keys():
            raise PlanError(f"The plan does not begin with that one, which cuts {name} where it does not.")
    shifts, scales, row_scales = {}, {}, {}
    for name in {*whole.shifts, *whole.scales, *whole.row_scales}:
        kept = _second(whole.kept, first.kept, name).get(0)
        scale, shift, row_scale = (_vector(v, name, None) for v in (whole.scales, whole.shifts, whole.row_scales))
        before, already, given = (_vector(v, name, kept) for v in (first.scales, first.shifts, first.row_scales))
        scales[name] = scale if before is None or scale is None else scale / before
        row_scales[name] = row_scale if given is None or row_scale is None else row_scale / given
        done = None if already is None else _times(already, scales[name])
        rest = shift if done is None or shift is None else shift - done
        shifts[name] = _times(rest, given) if rest is not None else None
    attributes = {(c.module, c.name): c.new for c in first.attributes}
    changes = [
        AttributeChange(c.module, c.name, attributes.get((c.module, c.name), c.old), c.new) for c in whole.attributes
    ]
    kept_again = {name: _second(whole.kept, first.kept, name) for name in whole.kept}
    return Cuts(
        {name: dims for name, dims in kept_again.items() if dims},
        tuple(c for c in changes if c.old != c.new),
        _stored(shifts),
        _stored(scales),
        _stored(row_scales),
    )


def _both(first: Kept, second: Kept) -> Kept:
    found: dict[str, dict[int, tuple[int, ...]]] = {name: dict(dims) for name, dims in first.items()}
    for name, dims in second.items():
        for dim, again in dims.items():
            kept = found.setdefault(name, {}).get(dim)
            found[name][dim] = again if kept is None else tuple(kept[index] for index in again)
    return found


def _second(whole: Kept, first: Kept, name: str) -> dict[int, tuple[int, ...]]:
    """The indices of the second cut along the dimensions of one tensor."""
    found: dict[int, tuple[int, ...]] = {}
    for dim, kept in whole.get(name, {}).items():
        before = first.get(name, {}).get(dim)
        if before is None:
            found[dim] = kept
        elif before != kept:
            if not set(kept) <= set(before):
                raise PlanError(f"The plan does not begin with that one, which removes slices of {name} that it keeps.")
            found[dim] = tuple(np.searchsorted(before, kept).tolist())
    return found


def _vector(vectors: Vectors, name: str, picked: tuple[int, ...] | None) -> Vector | None:
    values = vectors.get(name)
    if values is None:
        return None
    vector = np.array(values)
    return vector if picked is None else vector[list(picked)]


def _times(left: Vector | None, right: Vector | None) -> Vector | None:
    return right if left is None else left if right is None else left * right


def _plus(left: Vector | None, right: Vector | None) -> Vector | None:
    return right if left is None else left if right is None else left + right


def _stored(vectors: Mapping[str, Vector | None]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(vector.tolist()) for name, vector in vectors.items() if vector is not None}
