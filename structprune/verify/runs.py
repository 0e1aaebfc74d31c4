"""The same network three times under observation: dense, dense with the removed channels masked, and cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from structprune.errors import StructPruneError, brief
from structprune.inputs import Invocations
from structprune.ir.operators import Operator
from structprune.ir.record import Record
from structprune.ir.slices import Coupling, Ids, Labels, Mask, SliceSpace
from structprune.ir.tensors import tensors_of
from structprune.meta.replica import duplicate, held_tensors
from structprune.plan.plan import Plan
from structprune.surgery.slicing import equal_values
from structprune.tracing.discovery import is_float
from structprune.tracing.replay import DivergenceError, Replay
from structprune.tracing.session import follow, labels_of
from structprune.verify.masking import MaskedRun, UnprovableError, double_of, run_in_double
from structprune.verify.planned import Planned, kept_along


class DiffersError(Exception):
    """The cut network does something else than the dense one with fewer channels; the text says what and where."""


class CannotCompareError(Exception):
    """The runs say nothing about the cut; the text says why."""


class Runs(NamedTuple):
    """What the networks returned, the operators that mix channels, and the first one that differs, if it was asked for.

    Those that mix channels were compared elementwise.
    """

    dense: list[torch.Tensor]
    masked: list[torch.Tensor]
    cut: list[torch.Tensor]
    mixed: tuple[str, ...]
    first: str = ""

    @property
    def scale(self) -> float:
        """The largest output; 1 where all are 0."""
        return max((float(t.abs().max()) for t in (*self.dense, *self.masked) if t.numel()), default=0.0) or 1.0

    @property
    def error(self) -> float:
        """The largest difference between the masked and the cut network, on that scale."""
        return max(map(distance, self.masked, self.cut), default=0.0) / self.scale

    @property
    def power(self) -> float:
        """The largest change of the dense network's outputs by the masking, on that scale."""
        return max(map(distance, self.masked, self.dense), default=0.0) / self.scale


def compared(
    dense: Callable[[], nn.Module],
    cut_of: Callable[[nn.Module], nn.Module],
    plan: Plan,
    calls: Invocations,
    *,
    training: bool = False,
    locates: bool = False,
    widens: bool = True,
    draws_anew: bool = False,
) -> Runs:
    """Run a network as it is and masked, then a cut one.

    Args:
        dense: Makes the dense network, in float64 if it ``widens``; it is not changed. A network that is handed over
            would stay alive to the end: before Python 3.11 whoever calls holds the arguments.
        cut_of: Makes the cut network of it; called once the dense one has run.
        plan: What was cut.
        calls: What to call both with.
        training: In training mode; what is drawn by chance is drawn once.
        locates: Find the first operator that differs, for which all that operators return is kept.
        widens: Compute in float64, whatever the forward asks for; else in its own dtypes, where nothing that is removed
            may be mixed.
        draws_anew: Draw random numbers in every run, as if they came from a seed of the forward's own.

    Raises:
        DiffersError: The cut network does something else.
        CannotCompareError: The dense network does not run so, or an operator cannot be compared.
    """
    model = dense()
    space = SliceSpace()
    coupling, labels = Coupling(space), labels_of(model, space)
    run = run_in_double if widens else Operator.run
    try:
        plain = follow(model, calls, Planned(space, coupling, plan, run, training=training), labels)
    except StructPruneError:
        raise
    except Exception as error:
        where = " in float64" if widens else ""
        raise CannotCompareError(f"the dense model does not run{where}: {brief(error)}") from error
    roots = coupling.roots()
    present = left_by(plan, space, roots)
    everything = np.ones_like(present)

    masked_run = MaskedRun(present, keeps=locates, widens=widens)
    cut_run = MaskedRun(everything, keeps=locates, widens=widens)
    replay = Replay(plain, space, roots, None, everything, masked_run)
    masked = _replayed(model, calls, replay, labels, CannotCompareError)
    unmasked = plain
    if masked_run.mixed:
        # Surrogates stood in: the masking must be held against the unmasked network with surrogates.
        replay = Replay(plain, space, roots, None, everything, MaskedRun(everything, widens=widens))
        unmasked = _replayed(model, calls, replay, labels, CannotCompareError)

    # Two networks in float64 beside the two that the user holds are much memory: one goes before the other runs,
    # unless it has a cycle that only the garbage collector finds.
    model = cut_of(model)
    left: dict[str, Labels] = {
        name: tuple(None if ids is None else ids[present[ids]] for ids in axes) for name, axes in labels.items()
    }
    # Another number where weights make up for it: whether they do is what the outputs say.
    numbers = bool(plan.row_scales)
    replay = Replay(plain, space, roots, None, present, cut_run, any_numbers=numbers, draws_anew=draws_anew)
    cut = _replayed(model, calls, replay, left, DiffersError)
    first = _first(plain, masked_run, cut_run, replay) if locates else ""
    runs = Runs(unmasked.results, masked.results, cut.results, tuple(dict.fromkeys(masked_run.mixed)), first)
    check_shapes(runs.masked, runs.cut)
    return runs


def _first(plain: Record, masked: MaskedRun, cut: MaskedRun, replay: Replay) -> str:
    """The first operator that returns something else in the cut network than in the masked one."""
    for node in plain.nodes:
        if not node.sources:
            continue  # made of nothing: perhaps of what the memory held before
        pairs = zip(tensors_of(masked.kept.get(node.index)), tensors_of(cut.kept.get(node.index)), strict=False)
        for output, (whole, part) in zip(node.outputs, pairs, strict=False):
            expected = replay.present_of(whole, output)
            scale = distance(expected, torch.zeros_like(expected))
            if expected.shape != part.shape or distance(expected, part) > _APART * (scale or 1.0):
                return node.where
    return ""


# Between float64 runs; rounding stays far below.
_APART = 1e-6


def cut_alike(pruned: nn.Module, dense: nn.Module, plan: Plan) -> nn.Module:
    """The pruned network in float64, with the planned slices of other weights."""
    weights, cut = held_tensors(dense), plan.cut

    def same_slices(name: str, tensor: torch.Tensor) -> torch.Tensor:
        twin = equal_values(name, weights[name], cut)
        # Whether a weight is trained decides which way attention takes in torch.nn.
        trained = weights[name].requires_grad
        return nn.Parameter(twin, requires_grad=trained) if isinstance(tensor, nn.Parameter) else twin

    return duplicate(pruned, same_slices, doubled)


def doubled(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, in float64 or complex128 if it holds numbers that are computed with."""
    return tensor.detach().to(double_of(tensor.dtype), copy=not is_float(tensor))


def check_shapes(masked: list[torch.Tensor], cut: list[torch.Tensor]) -> None:
    """Refuse outputs that cannot be compared.

    Raises:
        DiffersError: They are not as many, or of other shapes.
    """
    shapes, others = ([list(t.shape) for t in tensors] for tensors in (masked, cut))
    if shapes != others:
        raise DiffersError(f"the outputs have other shapes: {others} where the dense network's are {shapes}")


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference; NaN anywhere makes it NaN."""
    wide = torch.complex128 if a.is_complex() else torch.float64
    return float((a.to(wide) - b.to(wide)).abs().max()) if a.numel() else 0.0


def left_by(plan: Plan, space: SliceSpace, roots: Ids) -> Mask:
    """The slices that stay, spread from the plan's axes over whole channels.

    Raises:
        DiffersError: The plan tears a channel.
    """
    gone = np.zeros(space.size, dtype=bool)
    stays = np.zeros(space.size, dtype=bool)
    for axis in space.axes:
        mask = kept_along(plan, axis)
        gone[roots[axis.ids[~mask]]] = True
        stays[roots[axis.ids[mask]]] = True
    torn = gone & stays
    if torn.any():
        axis = next(a for a in space.axes if torn[roots[a.ids]].any())
        raise DiffersError(f"the plan removes some slices of a channel and keeps others, along {axis}")
    present: Mask = ~gone[roots]
    return present


def is_finite(runs: Runs) -> bool:
    """Whether the outputs are numbers."""
    return math.isfinite(runs.scale)


def _replayed(
    model: nn.Module,
    calls: Invocations,
    replay: Replay,
    labels: dict[str, Labels],
    failure: type[DiffersError] | type[CannotCompareError],
) -> Record:
    """Run a network again; ``failure`` is what it means if it does something else than the dense one did."""
    try:
        record = follow(model, calls, replay, labels)
    except StructPruneError:
        raise
    except DivergenceError as error:
        raise failure(str(error)) from error
    except UnprovableError as error:
        raise CannotCompareError(str(error)) from error
    except Exception as error:
        raise failure(f"the code before {replay.upcoming().where} fails: {brief(error)}") from error
    replay.end()
    if replay.mismatches:
        raise failure(str(replay.mismatches[0]))
    return record
