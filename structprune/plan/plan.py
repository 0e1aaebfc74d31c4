"""The plan: what goes, what follows, what stays and why. Immutable, printable, JSON both ways."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.errors import PlanError
from structprune.graph.checks import check_model
from structprune.meta.replica import named_tensors
from structprune.plan.sensitivity import GroupPlan, Sensitivity
from structprune.surgery.attributes import read_held
from structprune.surgery.cut import AttributeChange, Cut, Vector
from structprune.surgery.slicing import cut_copy, cut_in_place

FORMAT = "structprune.plan"
VERSION = 1
# A pruned model carries its plan as text, so that a pickle of it does not need structprune.
CARRIED = "_structprune_plan"


@dataclass(frozen=True)
class Plan:
    """Which slices of which tensors go, and which sizes follow. Making one changes nothing.

    A plan fits every model with the same parameter names and shapes, whatever the values.

    Attributes:
        model: Class name of the model that the plan was made for.
        settings: The options that it was made with.
        shapes: Shape of every parameter and buffer of the dense model.
        kept: Indices that stay, by tensor and dimension; axes that lose none are left out.
        attributes: Sizes held by modules, with their new values.
        groups: What becomes of every group of channels.
        notes: What the user should know: layers at their floor, modes that could not be traced.
        params: Number of parameters, before and after.
        macs: Multiply-accumulates of one forward of the example inputs, before and after.
        shifts: What is added to biases and running means, an entry for each that stays, so that they make up for
            what the removed channels gave on average (``compensate``). It belongs to the values of the model that
            the plan was made for.
        scales: What running variances are multiplied with, likewise.
    """

    model: str
    settings: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, Mapping[int, tuple[int, ...]]] = field(repr=False)
    attributes: tuple[AttributeChange, ...] = field(repr=False)
    groups: tuple[GroupPlan, ...] = field(repr=False)
    notes: tuple[str, ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    shifts: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @property
    def cut(self) -> Cut:
        """The cut as the surgery takes it."""
        kept = {n: {d: np.array(i, dtype=np.int64) for d, i in dims.items()} for n, dims in self.kept.items()}
        return Cut(kept, self.attributes, _arrays(self.shifts), _arrays(self.scales))

    def apply(self, model: nn.Module, *, inplace: bool = False) -> nn.Module:
        """Cut a model as planned.

        Args:
            model: A model with the parameter names and shapes that the plan was made for.
            inplace: Cut the model itself; its parameters stay the same objects.

        Returns:
            The pruned model: a copy, or ``model`` itself with ``inplace``.

        Raises:
            PlanError: The plan does not fit, or was applied to this model already; nothing changed.
        """
        check_model(model)
        self._check_fits(model)
        if inplace:
            cut_in_place(model, self.cut)
            pruned = model
        else:
            pruned = cut_copy(model, self.cut)
        if self.kept:
            setattr(pruned, CARRIED, self.to_json())
        return pruned

    def sensitivity(self) -> Sensitivity:
        """What each group costs, and what the plan saves and gives up there."""
        return Sensitivity(self)

    def to_json(self) -> str:
        """The plan as JSON text; see ``from_json``."""
        sets: dict[tuple[int, ...], int] = {}
        kept = {
            name: {str(dim): sets.setdefault(indices, len(sets)) for dim, indices in dims.items()}
            for name, dims in self.kept.items()
        }
        document = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "settings": dict(self.settings),
            "params": self.params,
            "macs": self.macs,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "index_sets": [list(s) for s in sets],
            "kept": kept,
            "attributes": [asdict(a) for a in self.attributes],
            "groups": [asdict(g) for g in self.groups],
            "notes": self.notes,
            "shifts": {name: list(shift) for name, shift in self.shifts.items()},
            "scales": {name: list(scale) for name, scale in self.scales.items()},
        }
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan that ``to_json`` wrote.

        Raises:
            PlanError: The text is not such a plan, or of a version that this release cannot read.
        """
        try:
            document = json.loads(text)
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise PlanError(f"This JSON is no structprune plan: its format is not {FORMAT!r}.")
            if document.get("version") != VERSION:
                raise PlanError(
                    f"The plan has version {document.get('version')!r}, this release of structprune reads version "
                    f"{VERSION}: read it with the release that wrote it, or make the plan anew."
                )
            return cls(
                model=str(document["model"]),
                settings=dict(document["settings"]),
                shapes={n: tuple(map(_size, s)) for n, s in document["shapes"].items()},
                kept=_read_kept(document),
                attributes=tuple(_read_attribute(a) for a in document["attributes"]),
                groups=tuple(GroupPlan(**{**g, "producers": tuple(g["producers"])}) for g in document["groups"]),
                notes=tuple(map(str, document["notes"])),
                params=_pair(document["params"]),
                macs=_pair(document["macs"]),
                shifts=_read_vectors(document, "shifts"),
                scales=_read_vectors(document, "scales"),
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"This text cannot be read as a plan: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        ratio = self.settings.get("ratio")
        head = f"Plan for {self.model}: ratio {ratio}, granularity {self.settings.get('granularity')!r}"
        sizes = (
            f"  parameters {self.params[0]:,} -> {self.params[1]:,} ({_percent(self.params)}), "
            f"MACs {self.macs[0]:,} -> {self.macs[1]:,} ({_percent(self.macs)})"
        )
        width = min(max((len(g.title) for g in self.groups), default=0), 44)
        rows = [
            f"  {g.title:{width}} {g.width:5} -> {g.width - g.removed:<5} {g.role if g.removed else g.reason}"
            for g in self.groups
        ]
        held = [f"  {change}" for change in self.attributes]
        sections = [head, sizes, "channels", *rows]
        if held:
            sections += ["sizes held by modules", *held]
        return "\n".join([*sections, *(f"  note: {note}" for note in self.notes)])

    def free_buffers(self, model: nn.Module) -> set[str]:
        """Buffers that the plan does not cut: a forward may fill them anew, in another shape (position tables)."""
        return self._free(named_tensors(model))

    def _free(self, tensors: Mapping[str, torch.Tensor]) -> set[str]:
        buffers = (name for name, tensor in tensors.items() if not isinstance(tensor, nn.Parameter))
        return {name for name in buffers if name in self.shapes and name not in self.kept}

    def fits(self, model: nn.Module) -> bool:
        """Whether the model has the parameters and buffers, in the shapes, that the plan was made for."""
        tensors = named_tensors(model)
        free = self._free(tensors)
        shapes = {name: self.shapes[name] if name in free else tuple(t.shape) for name, t in tensors.items()}
        return shapes == dict(self.shapes)

    def _check_fits(self, model: nn.Module) -> None:
        carried = getattr(model, CARRIED, None)
        if not self.fits(model):
            shapes = {name: tuple(t.shape) for name, t in named_tensors(model).items()}
            if carried is not None and carried == self.to_json():
                raise PlanError("This plan was applied to this model already: make a new plan to prune it further.")
            raise PlanError(f"The plan does not fit this {type(model).__name__}: {_difference(self.shapes, shapes)}")
        for change in self.attributes:
            try:
                held = read_held(model.get_submodule(change.module), change.name)
            except AttributeError as error:
                raise PlanError(f"The plan does not fit: {error}") from error
            if (tuple(held) if isinstance(held, list) else held) != change.old:
                where = f"{change.module}.{change.name}" if change.module else change.name
                raise PlanError(f"The plan does not fit: {where} is {held!r}, the plan expects {change.old!r}.")


def plan_of(pruned: nn.Module) -> Plan:
    """The plan that a pruned model carries: the last one that was applied to it.

    Raises:
        PlanError: The model was not pruned by structprune.
    """
    text = getattr(pruned, CARRIED, None)
    if text is None:
        raise PlanError(f"This {type(pruned).__name__} carries no plan: it was not pruned by structprune.")
    return Plan.from_json(text)


def _difference(expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]) -> str:
    for name, shape in expected.items():
        if name not in got:
            return f"it has no {name}, which the plan was made with."
        if got[name] != shape:
            return f"{name} is {list(got[name])}, the plan was made for {list(shape)}."
    extra = next(name for name in got if name not in expected)
    return f"its {extra} is unknown to the plan."


def _percent(pair: tuple[int, int]) -> str:
    return f"{100 * (pair[1] - pair[0]) / pair[0]:+.1f} %" if pair[0] else "n/a"


def _read_kept(document: Mapping[str, Any]) -> dict[str, dict[int, tuple[int, ...]]]:
    sets = [tuple(map(_size, s)) for s in document["index_sets"]]
    shapes = document["shapes"]
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, dims in document["kept"].items():
        for dim, which in dims.items():
            indices, size = sets[_size(which)], shapes[name][_size(int(dim))]
            if not indices or indices[-1] >= size or any(a >= b for a, b in pairwise(indices)):
                raise PlanError(
                    f"The plan's indices for {name} (dim {dim}, size {size}) are not ascending or too large."
                )
            kept.setdefault(name, {})[int(dim)] = indices
    return kept


def _arrays(vectors: Mapping[str, tuple[float, ...]]) -> dict[str, Vector]:
    return {name: np.array(values) for name, values in vectors.items()}


def _read_vectors(document: Mapping[str, Any], key: str) -> dict[str, tuple[float, ...]]:
    """Plans of releases before this one have none."""
    vectors: dict[str, tuple[float, ...]] = {}
    for name, values in document.get(key, {}).items():
        (width,) = document["shapes"][name]
        which = document["kept"].get(name, {}).get("0")
        left = width if which is None else len(document["index_sets"][which])
        vectors[name] = tuple(map(float, values))
        if len(values) != left or not all(map(math.isfinite, vectors[name])):
            raise PlanError(f"The plan's {key} of {name} have {len(values)} entries, not a number for each of {left}.")
    return vectors


def _read_attribute(entry: Mapping[str, Any]) -> AttributeChange:
    """Sizes are ints or tuples of ints; JSON has lists for the latter."""

    def value(raw: Any) -> Any:
        return tuple(map(_size, raw)) if isinstance(raw, list) else _size(raw)

    name = str(entry["name"])
    if not all(step.isidentifier() and not step.startswith("_") for step in name.split(".")):
        raise PlanError(f"The plan changes the attribute {name!r}, which is no size that a module could hold.")
    return AttributeChange(str(entry["module"]), name, value(entry["old"]), value(entry["new"]))


def _size(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or raw < 0:
        raise ValueError(f"{raw!r} is no size or index")
    return raw


def _pair(raw: Sequence[Any]) -> tuple[int, int]:
    before, after = map(_size, raw)
    return before, after
