"""The plan: what goes, what follows, what stays and why. Immutable, printable, JSON both ways."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, overload

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from structprune.errors import OptionError, PlanError
from structprune.ir.registry import Registry, read_rules
from structprune.ir.slices import Vector
from structprune.meta.forward import collection_paused
from structprune.meta.replica import Model, held_tensors, named_tensors, walk
from structprune.meta.surroundings import ordinary_tensors
from structprune.plan import schema
from structprune.plan.composition import Cuts, composed, remainder
from structprune.plan.printing import in_full, in_one_line
from structprune.plan.sensitivity import GroupPlan, MeasuredSensitivity, Sensitivity, TrialOptions
from structprune.surgery.attributes import holds_size, read_held
from structprune.surgery.cut import AttributeChange, Cut, Solved
from structprune.surgery.optimizer_state import check_optimizer
from structprune.surgery.slicing import cut_copy, cut_in_place, cut_values, module_at
from structprune.tracing.checks import check_model

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
        row_scales: What rows of weights and biases are multiplied with, an entry for each that stays, where code
            computes a number from a width, as attention does its scale: so that the number makes no difference.
        solved: How weights were solved anew (``calibrate``), by name.
        values: The values of those weights, and of the biases and batch norms behind them. They belong to the model
            that the plan was made for, and the JSON of a plan leaves them out: a pruned model has them.
        plain: Those among ``shapes`` that are no parameters or buffers but plain attributes of modules, and are cut.
        examples: The calls that the model was traced with, to verify a cut by; the JSON of a plan leaves them out.
        rules: The rules that it was made with, likewise.
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
    row_scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    solved: Mapping[str, Solved] = field(default_factory=dict, repr=False)
    values: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    plain: tuple[str, ...] = ()
    examples: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    rules: Registry | None = field(default=None, repr=False, compare=False)

    @property
    def gains(self) -> Mapping[str, tuple[float, ...]]:
        """``row_scales``, as it was called before."""
        warnings.warn("Plan.gains is called Plan.row_scales.", DeprecationWarning, stacklevel=2)
        return self.row_scales

    @property
    def cut(self) -> Cut:
        """The cut as the surgery takes it."""
        kept = {n: {d: np.array(i, dtype=np.int64) for d, i in dims.items()} for n, dims in self.kept.items()}
        shifts, scales, row_scales = map(_arrays, (self.shifts, self.scales, self.row_scales))
        return Cut(kept, self.attributes, shifts, scales, row_scales, self.values)

    @ordinary_tensors()
    def apply(
        self,
        model: Model,
        *,
        inplace: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
        verify: Literal["auto"] | bool = "auto",
        example_inputs: Any = None,
        rules: Registry | None = None,
    ) -> Model:
        """Cut a model as planned, and verify it.

        Args:
            model: A model with the parameter names and shapes that the plan was made for.
            inplace: Cut the model itself; its parameters stay the same objects.
            optimizer: With ``inplace``: the optimizer that trains the model, whose state is cut along.
            verify: Whether the cut network has to give what the dense one gives with those channels masked, with the
                weights of the model, on its device, in its dtype, in evaluation mode, for the example inputs.
                ``"auto"``: where the model has values and both forwards together take at most 20 GMACs; else the
                plan that the pruned model carries has a note.
            example_inputs: What to verify with (default: what the plan was made with; after ``from_json`` they are
                inferred).
            rules: The rules to verify with (default: those that the plan was made with).

        Returns:
            The pruned model: a copy, or ``model`` itself with ``inplace``. It carries the plan, after what it
            carried before: see ``plan_of``.

        Raises:
            PlanError: The plan does not fit, or was applied to this model already; nothing changed.
            OptionError: The optimizer is not one of this model, or the model is not cut in place.
            ModelError: The optimizer holds a state that cannot be cut.
            VerificationError: The cut network gives something else; the model is as it was.
        """
        with collection_paused():
            check_model(model)
            self.check_fits(model)
            check_optimizer(optimizer, inplace)
            if self.solved and not self.values:
                warnings.warn(
                    f"The plan solved {len(self.solved)} weights anew, and their values are not in its JSON: they stay "
                    "those of the model. Save the pruned model itself (structprune.save), or make the plan again.",
                    stacklevel=2,
                )
            # Before the cut: what is carried may be from another release.
            carried = _whole(carried_plan(model), self)
            pruned = None if inplace else cut_copy(model, self.cut)
            checked = self if rules is None else replace(self, rules=read_rules(rules))
            unverified = Plan.verifies(checked, model, pruned, verify, example_inputs)
            if unverified:
                carried = replace(carried, notes=(*carried.notes, unverified))
            marks = {CARRIED: carried.to_json()} if self.kept else {}
            if pruned is None:
                cut_in_place(model, self.cut, optimizer, marks)
                return model
            for name, said in marks.items():
                setattr(pruned, name, said)
            return pruned

    # ``structprune.verify`` runs networks and stands above plans: it puts its ``verify_cut`` here.
    verifies: ClassVar[Callable[[Plan, nn.Module, nn.Module | None, Any, Any], str]]

    def then(self, second: Plan) -> Plan:
        """One plan for this cut and another one after it.

        Raises:
            PlanError: The second plan is not for a model that this one was applied to.
        """
        # A buffer that neither cuts may have been filled anew, in another shape.
        cut = self.kept.keys() | second.kept.keys()
        plain = dict.fromkeys((*self.plain, *second.plain))
        left = {name: self.shape_left(name) if name in cut else second.shapes.get(name, ()) for name in self.shapes}
        if _without(plain, left) != _without(plain, second.shapes):
            raise PlanError(f"The second plan does not follow this one: {_difference(second.shapes, left)}")
        steps = [*self.settings.get("steps", [self.settings]), *second.settings.get("steps", [second.settings])]
        groups = {group.name: group for group in second.groups}
        return replace(
            self,
            settings={**second.settings, "steps": steps},
            shapes={**second.shapes, **self.shapes},
            plain=tuple(plain),
            groups=tuple(group.then(groups.get(group.name)) for group in self.groups),
            notes=tuple(dict.fromkeys((*self.notes, *second.notes))),
            params=(self.params[0], second.params[1]),
            macs=(self.macs[0], second.macs[1]),
            solved={**self.solved, **second.solved},
            values={**{n: cut_values(n, v, second.cut) for n, v in self.values.items()}, **second.values},
            **composed(self._cuts, second._cuts)._asdict(),
        )

    def after(self, first: Plan) -> Plan:
        """What this plan does beyond its first part: the second one of ``first.then(second)``.

        Raises:
            PlanError: The plan does not begin with that part.
        """
        if _without(self.plain, first.shapes) != _without(self.plain, self.shapes):
            raise PlanError(f"The plan does not begin with that one: {_difference(self.shapes, first.shapes)}")
        groups = {group.name: group for group in first.groups}
        steps, done = self.settings.get("steps", []), first.settings.get("steps", [first.settings])
        rest = steps[len(done) :]
        solved = {name: how for name, how in self.solved.items() if first.solved.get(name) != how}
        return replace(
            self,
            settings=rest[0] if len(rest) == 1 else {**self.settings, "steps": rest},
            shapes={n: first.shape_left(n) if n in first.shapes else shape for n, shape in self.shapes.items()},
            groups=tuple(group.after(groups.get(group.name)) for group in self.groups),
            params=(first.params[1], self.params[1]),
            macs=(first.macs[1], self.macs[1]),
            solved=solved,
            values={name: value for name, value in self.values.items() if name in refitted_by(solved)},
            **remainder(self._cuts, first._cuts)._asdict(),
        )

    def shape_left(self, name: str) -> tuple[int, ...]:
        """The shape that the plan leaves of a tensor."""
        kept = self.kept.get(name, {})
        return tuple(len(kept[dim]) if dim in kept else size for dim, size in enumerate(self.shapes[name]))

    @property
    def _cuts(self) -> Cuts:
        return Cuts(self.kept, self.attributes, self.shifts, self.scales, self.row_scales)

    @overload
    def sensitivity(self) -> Sensitivity: ...

    @overload
    def sensitivity(self, model: nn.Module, **options: Unpack[TrialOptions]) -> MeasuredSensitivity: ...

    @ordinary_tensors()
    def sensitivity(
        self, model: nn.Module | None = None, **options: Unpack[TrialOptions]
    ) -> Sensitivity | MeasuredSensitivity:
        """What each group costs, and what the plan saves and gives up there; or, with a model, what you measure.

        With a model, every group of channels that may go under the plan's settings is cut alone, by each of some
        ratios, and a function of yours scores what is left. The plan's own ratio or target makes no difference.

        Args:
            model: The dense model that the plan was made for. It is not changed.
            **options: With a model. ``score`` must be given.

                - ``score``: takes a cut copy of the model, in the model's mode, and returns a finite number: the
                  accuracy on validation data, or a loss.
                - ``ratios``: the shares in (0, 1) to cut each group by (default: 0.125, 0.25, 0.5 and 0.75). Widths
                  are rounded as the plan's settings say; where no whole channel goes, there is no score.
                - ``path``: a JSON file that gets each score as soon as it is known. A second call goes on from there.
                  The file does not know the values of the weights: take another one for other weights.
                - ``progress``: whether a bar is shown (default: where stderr is a terminal).
                - ``example_inputs``: as for ``prune_model`` (default: what the plan was made with; after
                  ``from_json`` they are inferred).
                - ``importance``: the criterion, where the plan was made with a function or an object, which it does
                  not keep (default: the plan's).
                - ``rules``: the rules, where the plan comes from JSON (default: those that it was made with).

        Returns:
            The table; with a model, of scores.

        Raises:
            OptionError: An option has a value that cannot be used, a score is not finite, the file is one of another
                model, of other settings or ratios, or the plan was made with something that it does not keep.
            PlanError: The plan does not fit the model.
            NothingToPruneError: Not one group can be cut under the plan's settings.
            StructPruneError: Another subclass says what was wrong.

        Examples:
            >>> import structprune
            >>> model = structprune.demo.resnet50()
            >>> plan = structprune.plan_pruning(model, {"layer4.2.conv2": 0.5})
            >>> plan.sensitivity()
            <Sensitivity of 38 groups>
        """
        if model is not None:
            return Plan.measures(self, model, options)
        if options:
            raise OptionError("sensitivity scores cut copies of a model: give it first, sensitivity(model, score=...).")
        return Sensitivity(self.groups, self.params[0], self.macs[0])

    # ``structprune.planning`` makes plans, and stands above them: it puts its ``measured`` here.
    measures: ClassVar[Callable[[Plan, nn.Module, TrialOptions], MeasuredSensitivity]]

    def to_json(self) -> str:
        """The plan as JSON text; see ``from_json``."""
        sets: dict[tuple[int, ...], int] = {}
        kept = {
            name: {str(dim): sets.setdefault(indices, len(sets)) for dim, indices in dims.items()}
            for name, dims in self.kept.items()
        }
        document = {
            "format": schema.FORMAT,
            "version": schema.VERSION,
            "model": self.model,
            "settings": dict(self.settings),
            "params": self.params,
            "macs": self.macs,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "index_sets": [list(s) for s in sets],
            "kept": kept,
            "attributes": [schema.columns(a) for a in self.attributes],
            "groups": [schema.columns(g) for g in self.groups],
            "notes": self.notes,
            "shifts": {name: list(shift) for name, shift in self.shifts.items()},
            "scales": {name: list(scale) for name, scale in self.scales.items()},
            # The name that readers of this version of the format know.
            "gains": {name: list(row_scale) for name, row_scale in self.row_scales.items()},
            "plain": self.plain,
            **({"solved": {name: schema.columns(how) for name, how in self.solved.items()}} if self.solved else {}),
        }
        return schema.sealed(document)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan that ``to_json`` wrote.

        Raises:
            PlanError: The text is not such a plan, or of a version that this release cannot read.
        """
        try:
            document = schema.read_document(text)
            shapes = schema.read_shapes(document)
            plan = cls(
                model=str(document["model"]),
                settings=dict(document["settings"]),
                shapes=shapes,
                kept=schema.read_kept(document, shapes),
                attributes=tuple(map(schema.read_attribute, document["attributes"])),
                groups=tuple(GroupPlan(**schema.read_group(g)) for g in document["groups"]),
                notes=schema.read_texts(document["notes"]),
                params=schema.read_pair(document["params"]),
                macs=schema.read_pair(document["macs"]),
                shifts=schema.read_vectors(document, "shifts", shapes),
                scales=schema.read_vectors(document, "scales", shapes),
                row_scales=schema.read_vectors(document, "gains", shapes, of_rows=True),
                solved={name: schema.read_solved(how) for name, how in document.get("solved", {}).items()},
                plain=schema.read_texts(document.get("plain", [])),
            )
            schema.check_seal(document)
            return plan
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise PlanError(f"This text cannot be read as a plan: {type(error).__name__}: {error}") from error

    def __repr__(self) -> str:
        return in_one_line(self)

    def __str__(self) -> str:
        return in_full(self)

    def free_buffers(self, model: nn.Module) -> set[str]:
        """Buffers that the plan does not cut: a forward may fill them anew, in another shape (position tables)."""
        return self._free(self.tensors_of(model))

    def tensors_of(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """A model's parameters and buffers, and those of its plain tensors that the plan cuts."""
        held = held_tensors(model)
        return {**named_tensors(model), **{name: held[name] for name in self.plain if name in held}}

    def _free(self, tensors: Mapping[str, torch.Tensor]) -> set[str]:
        buffers = (name for name, tensor in tensors.items() if not isinstance(tensor, nn.Parameter))
        return {name for name in buffers if name in self.shapes and name not in self.kept}

    def fits(self, model: nn.Module) -> bool:
        """Whether the model has the parameters and buffers, in the shapes, that the plan was made for."""
        tensors = self.tensors_of(model)
        free = self._free(tensors)
        shapes = {name: self.shapes[name] if name in free else tuple(t.shape) for name, t in tensors.items()}
        return shapes == dict(self.shapes)

    def check_fits(self, model: nn.Module) -> None:
        """Refuse a model that the plan was not made for.

        Raises:
            PlanError: With the first tensor or attribute that differs.
        """
        carried = getattr(model, CARRIED, None)
        if not self.fits(model):
            shapes = {name: tuple(t.shape) for name, t in self.tensors_of(model).items()}
            if carried is not None and dict(Plan.from_json(carried).shapes) == dict(self.shapes):
                raise PlanError("This plan was applied to this model already: make a new plan to prune it further.")
            raise PlanError(f"The plan does not fit this {type(model).__name__}: {_difference(self.shapes, shapes)}")
        modules = dict(walk(model))
        for change in self.attributes:
            where = f"{change.module}.{change.name}" if change.module else change.name
            try:
                module = module_at(model, modules, change.module)
                held, is_size = read_held(module, change.name), holds_size(module, change.name)
            except Exception as error:  # a property may raise anything
                raise PlanError(f"The plan does not fit: {where} cannot be read: {error}") from error
            if not is_size:
                raise PlanError(f"The plan does not fit: {where} is no size that a module holds.")
            if (tuple(held) if isinstance(held, list) else held) != change.old:
                raise PlanError(f"The plan does not fit: {where} is {held!r}, the plan expects {change.old!r}.")


def refitted_by(solved: Mapping[str, Solved]) -> set[str]:
    """Weights that were solved anew, and what was set with them."""
    return {name for weight, how in solved.items() for name in (weight, *how.beside)}


def carried_plan(model: nn.Module) -> Plan | None:
    """The plan that a model carries, if it was pruned."""
    text = getattr(model, CARRIED, None)
    return None if text is None else Plan.from_json(text)


def plan_of(pruned: nn.Module) -> Plan:
    """The plan that a pruned model carries: from the dense model to what it is, in as many steps as it took.

    Raises:
        PlanError: The model was not pruned by structprune.
    """
    plan = carried_plan(pruned)
    if plan is None:
        raise PlanError(f"This {type(pruned).__name__} carries no plan: it was not pruned by structprune.")
    return plan


def _whole(before: Plan | None, plan: Plan) -> Plan:
    """The plan that a model carries after one more cut, given the one that it carried."""
    if before is None:
        return plan
    try:
        return before.then(plan)
    except PlanError:
        said = "the model was changed since it was pruned before (a new head, a wrapper): this plan begins after that"
        return replace(plan, notes=(*plan.notes, said))


def _without(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    left = set(names)
    return {name: shape for name, shape in shapes.items() if name not in left}


def _difference(expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]) -> str:
    for name, shape in expected.items():
        if name not in got:
            return f"it has no {name}, which the plan was made with."
        if got[name] != shape:
            return f"{name} is {list(got[name])}, the plan was made for {list(shape)}."
    extra = next(name for name in got if name not in expected)
    return f"its {extra} is unknown to the plan."


def _arrays(vectors: Mapping[str, tuple[float, ...]]) -> dict[str, Vector]:
    return {name: np.array(values) for name, values in vectors.items()}
