"""The JSON of a plan: sealed as it is written, checked piece by piece as it is read (docs/plan-format.md)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from structprune.errors import PlanError
from structprune.surgery.cut import AttributeChange, Solved

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = "structprune.plan"
VERSION = 1
_LARGEST = 2**63 - 1


def sealed(document: Mapping[str, Any]) -> str:
    """A document as JSON text, with a checksum of itself: an accident on the way would be read as another cut."""
    text = json.dumps(document)
    return f'{text[:-1]}, "checksum": "{_digest(text)}"}}'


def columns(row: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass that holds no other: ``asdict`` takes ten times as long for its copies."""
    return {f.name: getattr(row, f.name) for f in fields(row)}


def read_document(text: str) -> dict[str, Any]:
    """Parse the text of a plan and check format and version.

    Raises:
        PlanError: The text is not such a plan, or of a version that this release cannot read.
        ValueError: The text is no JSON.
    """
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PlanError(f"This JSON is no structprune plan: its format is not {FORMAT!r}.")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise PlanError(
            f"The plan has version {version!r:.40}, this release of structprune reads version "
            f"{VERSION}: read it with the release that wrote it, or make the plan anew."
        )
    return document


def check_seal(document: Mapping[str, Any]) -> None:
    """Hold a document against its checksum; the first plans had none, and one that was written by hand needs none.

    Raises:
        PlanError: The text was changed since it was written.
    """
    rest = dict(document)
    if "checksum" in rest and rest.pop("checksum") != _digest(json.dumps(rest)):
        raise PlanError(
            "The plan's checksum does not match its contents: the text was damaged or edited since structprune wrote "
            'it. Take the original; if the change is meant, remove "checksum" from the text.'
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_shapes(document: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the dense model's tensors."""
    return {name: tuple(map(read_size, shape)) for name, shape in document["shapes"].items()}


def read_kept(
    document: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[int, tuple[int, ...]]]:
    """The indices that stay by tensor and dimension; tensors share their index sets."""
    sets = [tuple(map(read_size, s)) for s in document["index_sets"]]
    # Once for every set, however many tensors name it.
    ascending = [bool(s) and all(a < b for a, b in pairwise(s)) for s in sets]
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, dims in document["kept"].items():
        for key, which in dims.items():
            dim, index = _read_dim(key), read_size(which)
            size = shapes[name][dim]
            if not ascending[index] or sets[index][-1] >= size:
                raise PlanError(
                    f"The plan's indices for {name} (dim {dim}, size {size}) are not ascending or too large."
                )
            kept.setdefault(name, {})[dim] = sets[index]
    return kept


def _read_dim(key: str) -> int:
    dim = int(key)
    if str(dim) != key:
        raise ValueError(f"{key!r} is no dimension")
    return read_size(dim)


def read_vectors(
    document: Mapping[str, Any], key: str, shapes: Mapping[str, tuple[int, ...]], *, of_rows: bool = False
) -> dict[str, tuple[float, ...]]:
    """Shifts, scales or row scales, an entry for each slice that stays, of vectors or of rows."""
    vectors: dict[str, tuple[float, ...]] = {}
    for name, values in document.get(key, {}).items():
        width, *rest = shapes[name]
        if rest and not of_rows:
            raise PlanError(f"The plan has {key} for {name}, which is no vector.")
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

    name = _read_text(entry["name"])
    if not all(step.isidentifier() and not step.startswith("_") for step in name.split(".")):
        raise PlanError(f"The plan changes the attribute {name!r}, which is no size that a module could hold.")
    old, new = value(entry["old"]), value(entry["new"])
    if type(old) is not type(new) or (isinstance(old, tuple) and len(old) != len(new)):
        raise PlanError(f"The plan changes the attribute {name!r} from {old!r} to {new!r}, which is of another kind.")
    return AttributeChange(_read_text(entry["module"]), name, old, new)


def read_group(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of what becomes of one group."""
    texts = {name: _read_text(entry[name]) for name in ("name", "role", "reason")}
    sizes = {name: read_size(entry[name]) for name in ("width", "removed")}
    costs = {name: read_size(entry.get(name, 0)) for name in ("params", "macs")}
    lost = float(entry.get("score_removed", 0.0))
    return {**texts, **sizes, **costs, "score_removed": lost, "producers": tuple(map(_read_text, entry["producers"]))}


def read_solved(entry: Mapping[str, Any]) -> Solved:
    """How a weight was solved anew."""
    strength, before, after = (float(entry[name]) for name in ("strength", "before", "after"))
    if not all(map(math.isfinite, (strength, before, after))):
        raise ValueError(f"{entry!r:.80} has numbers that are not finite")
    return Solved(strength, before, after, read_texts(entry.get("beside", [])))


def read_size(raw: Any) -> int:
    """A size or an index."""
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw <= _LARGEST:
        raise ValueError(f"{raw!r:.40} is no size or index")
    return raw


def read_pair(raw: Sequence[Any]) -> tuple[int, int]:
    """A count before and after."""
    before, after = map(read_size, raw)
    return before, after


def read_texts(raw: Any) -> tuple[str, ...]:
    """A list of lines."""
    return tuple(map(_read_text, raw))


def _read_text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{raw!r:.40} is no text")
    return raw
