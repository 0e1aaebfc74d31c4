"""The proof, on numbers: the pruned network equals the dense one with those channels masked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.errors import PlanError, StructPruneError
from structprune.graph.checks import check_model
from structprune.graph.record import Record
from structprune.graph.session import Session, follow, labels_of
from structprune.graph.slices import Coupling, Ids, Labels, Mask, SliceSpace
from structprune.inputs import Invocations
from structprune.meta.replica import duplicate, held_tensors
from structprune.plan.plan import Plan, carried_plan, plan_of
from structprune.plan.planned import Planned, kept_along
from structprune.resolve.masking import MaskedRun, UnprovableError, run_in_double
from structprune.resolve.replay import DivergenceError, Replay
from structprune.surgery.slicing import cut_values, equal_values

TOLERANCE = 1e-9
LEAST_POWER = 1e-3
# Networks that multiply activations with each other may overflow with weights of unit gain, or
# lose digits: a cut that is wrong shows by far more than rounding does, with any weights.
_GAINS = (1.0, 0.5, 0.1)
_ROUNDING = 1e-5
_NOT_FINITE = "the largest output is"


@dataclass(frozen=True)
class Proof:
    """What the comparison of a pruned network with its masked dense one gave.

    Attributes:
        proved: The outputs agree within ``1e-9`` of their scale, the masking changed them by more
            than ``1e-3`` of it, and every parameter and buffer of the pruned model is a slice of the dense
            one's.
        max_error: Largest difference between the outputs, divided by the largest output.
        power: Largest change of the dense outputs by the masking, on the same scale. Without it
            an agreement would mean nothing.
        mixed: Operators that take a statistic over channels; in both networks an elementwise
            surrogate stood in for them.
        reason: Why it is not proved.
    """

    proved: bool
    max_error: float
    power: float
    mixed: tuple[str, ...] = ()
    reason: str = ""

    def __bool__(self) -> bool:
        return self.proved

    def __str__(self) -> str:
        verdict = (
            "proved: the pruned network equals the masked dense one" if self.proved else f"not proved: {self.reason}"
        )
        mixed = f"; {len(self.mixed)} operators mix channels, compared elementwise" if self.mixed else ""
        return f"{verdict} (largest error {self.max_error:.1e}, power {self.power:.1e}{mixed})"


def prove(dense: nn.Module, pruned: nn.Module, example_inputs: Any = None) -> Proof:
    """Compare a pruned model with the dense one whose removed channels are masked.

    Both run in float64 with the same random weights (zero-initialised layers would hide errors),
    in evaluation mode. Every operator that reads a removed channel reads zeros in the dense network.

    Args:
        dense: The model before pruning; unchanged.
        pruned: What ``structprune.prune_model`` or ``Plan.apply`` made of it; unchanged.
        example_inputs: As for ``structprune.prune_model``; only shapes and integers matter.

    Returns:
        The proof, with the largest error, its power, and the reason if it failed.

    Raises:
        PlanError: ``pruned`` carries no plan, or its plan is not for ``dense``.
        InputError: The inputs could not be inferred, or do not run.
    """
    plan = plan_of(pruned)
    first = carried_plan(dense)
    if first is not None and not plan.fits(dense):
        plan = plan.after(first)
    _check_pair(plan, dense, pruned)
    check_model(dense)
    session = Session(dense, example_inputs)
    calls = [call.mapped(_random_input) for call in session.examples]
    proof = Proof(False, math.nan, math.nan, reason="nothing was compared")
    for gain in _GAINS:
        try:
            proof = _compare(dense, pruned, gain, calls, plan)
        except (DivergenceError, UnprovableError, _Unproved) as error:
            return Proof(False, math.nan, math.nan, reason=str(error))
        if not (proof.reason.startswith(_NOT_FINITE) or TOLERANCE < proof.max_error < _ROUNDING):
            break
    changed = _first_changed_tensor(plan, dense, pruned)
    if changed and proof.proved:
        return replace(proof, proved=False, reason=f"{changed} is not a slice of the dense model's (trained since?)")
    return proof


def _sliced_alike(pruned: nn.Module, random_dense: nn.Module, plan: Plan) -> nn.Module:
    """The pruned network with the planned slices of random weights."""
    weights, cut = held_tensors(random_dense), plan.cut

    def same_slices(name: str, tensor: torch.Tensor) -> torch.Tensor:
        twin = equal_values(name, weights[name], cut)
        return nn.Parameter(twin) if isinstance(tensor, nn.Parameter) else twin

    return duplicate(pruned, same_slices, _doubled)


class _Unproved(Exception):
    """The comparison cannot be made; the text says why."""


def _compare(dense: nn.Module, pruned: nn.Module, gain: float, calls: Invocations, plan: Plan) -> Proof:
    """Run the dense network as it is and masked, then the pruned one with the slices of the same random weights."""
    space = SliceSpace()
    model = _randomised(dense, gain)
    coupling, labels = Coupling(space), labels_of(model, space)
    try:
        plain = follow(model, calls, Planned(space, coupling, plan, run_in_double), labels)
    except StructPruneError:
        raise
    except Exception as error:
        raise _Unproved(f"the dense model does not run in float64: {type(error).__name__}: {error}") from error
    roots = coupling.roots()
    present = _present(space, roots, plan)
    everything = np.ones_like(present)

    masked_run = MaskedRun(present)
    masked = _replayed(model, calls, Replay(plain, space, roots, None, everything, masked_run), labels)
    unmasked = plain
    if masked_run.mixed:
        # Surrogates stood in: the masking must be held against the unmasked network with surrogates.
        replay = Replay(plain, space, roots, None, everything, MaskedRun(everything))
        unmasked = _replayed(model, calls, replay, labels)

    # Two networks in float64 beside the two that the user holds are much memory: one goes before the other runs,
    # unless it has a cycle that only the garbage collector finds.
    model = _sliced_alike(pruned, model, plan)
    left: dict[str, Labels] = {
        name: tuple(None if ids is None else ids[present[ids]] for ids in axes) for name, axes in labels.items()
    }
    # Another number where weights make up for it: whether they do is what the outputs say.
    replay = Replay(plain, space, roots, None, present, MaskedRun(everything), any_numbers=bool(plan.gains))
    cut = _replayed(model, calls, replay, left)
    return _verdict(unmasked.results, masked.results, cut.results, tuple(dict.fromkeys(masked_run.mixed)))


def _replayed(model: nn.Module, calls: Invocations, replay: Replay, labels: dict[str, Labels]) -> Record:
    try:
        record = follow(model, calls, replay, labels)
    except (DivergenceError, UnprovableError, StructPruneError):
        raise
    except Exception as error:
        raise _Unproved(f"the code before {replay.upcoming().where} fails: {type(error).__name__}: {error}") from error
    replay.end()
    if replay.mismatches:
        raise _Unproved(str(replay.mismatches[0]))
    return record


def _verdict(
    unmasked: list[torch.Tensor], masked: list[torch.Tensor], cut: list[torch.Tensor], mixed: tuple[str, ...]
) -> Proof:
    if [t.shape for t in masked] != [t.shape for t in cut]:
        return Proof(False, math.nan, math.nan, mixed, "the outputs have other shapes")
    scale = max((float(t.abs().max()) for t in (*unmasked, *masked) if t.numel()), default=0.0)
    if not math.isfinite(scale):
        return Proof(False, math.nan, math.nan, mixed, f"{_NOT_FINITE} {scale}")
    scale = scale or 1.0
    error = max(_distance(a, b) for a, b in zip(masked, cut, strict=True)) / scale
    power = max(_distance(a, b) for a, b in zip(masked, unmasked, strict=True)) / scale
    reason = ""
    if not error <= TOLERANCE:
        reason = f"the outputs differ by {error:.1e} of their scale"
    elif not power > LEAST_POWER:
        reason = f"masking changed the dense outputs by {power:.1e} of their scale only, which proves nothing"
    return Proof(not reason, error, power, mixed, reason)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference; NaN anywhere makes it NaN."""
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def _present(space: SliceSpace, roots: Ids, plan: Plan) -> Mask:
    """The slices that stay, spread from the plan's axes over whole channels."""
    gone, torn = _gone_and_torn(space, roots, plan)
    if torn.any():
        axis = next(a for a in space.axes if torn[roots[a.ids]].any())
        raise _Unproved(f"the plan removes some slices of a channel and keeps others, along {axis}")
    present: Mask = ~gone[roots]
    return present


def _gone_and_torn(space: SliceSpace, roots: Ids, plan: Plan) -> tuple[Mask, Mask]:
    """By the id that stands for a channel: whether slices of it go, and whether others of it stay."""
    gone = np.zeros(space.size, dtype=bool)
    stays = np.zeros(space.size, dtype=bool)
    for axis in space.axes:
        mask = kept_along(plan, axis)
        gone[roots[axis.ids[~mask]]] = True
        stays[roots[axis.ids[mask]]] = True
    return gone, gone & stays


def _check_pair(plan: Plan, dense: nn.Module, pruned: nn.Module) -> None:
    if not plan.fits(dense):
        raise PlanError(
            f"The plan that the pruned model carries was not made for this {type(dense).__name__}: give the model "
            "that was pruned, as it was before."
        )
    free = plan.free_buffers(pruned)
    for name, tensor in plan.tensors_of(pruned).items():
        if name in free:
            continue
        expected = plan.shape_left(name) if name in plan.shapes else ()
        if name not in plan.shapes or tensor.shape != expected:
            raise PlanError(f"{name} of the pruned model is {list(tensor.shape)}, its plan says {list(expected)}.")


def _first_changed_tensor(plan: Plan, dense: nn.Module, pruned: nn.Module) -> str:
    """The first parameter or buffer of the pruned model that is not the planned slice of the dense one's."""
    originals, cut = held_tensors(dense), plan.cut
    free = plan.free_buffers(pruned)
    for name, tensor in plan.tensors_of(pruned).items():
        if name in free and tensor.shape != originals[name].shape:
            continue
        expected = cut_values(name, originals[name], cut)
        if tensor.device != expected.device or tensor.dtype != expected.dtype:
            return name
        # Two cuts that compensate round twice, where one plan for both rounds once.
        computed = name in cut.shifts or name in cut.scales or name in cut.gains
        if not (
            _same_values(tensor, expected) or (computed and torch.allclose(tensor, expected, rtol=1e-5, atol=1e-6))
        ):
            return name
    return ""


def _same_values(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors hold the same, NaN (of memory that nobody filled) included."""
    if torch.equal(left, right):
        return True
    return left.shape == right.shape and bool(((left == right) | (left.isnan() & right.isnan())).all())


def _randomised(model: nn.Module, gain: float) -> nn.Module:
    """A float64 copy with random parameters, and buffers moved away from special values."""
    generator = torch.Generator().manual_seed(0)

    def random(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        if not isinstance(tensor, nn.Parameter):
            values = tensor.detach().double().cpu()
            # Statistics: a variance stays positive, a mean does not stay zero.
            positive = bool((values > 0).all())
            return (values * (0.5 + noise) if positive else values + noise - 0.5).to(tensor.device)
        if tensor.ndim > 1:
            fan_in = max(1, tensor.numel() // tensor.shape[0])
            values = (noise - 0.5) * gain * (12 / fan_in) ** 0.5
        else:
            values = (noise + 0.5) * torch.where(noise * 1e6 % 1 < 0.3, -1.0, 1.0)
        return nn.Parameter(values.to(tensor.device))

    return duplicate(model, random, _doubled)


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach().clone()


def _random_input(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
