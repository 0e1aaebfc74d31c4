"""The proof, on random numbers: the pruned network equals the dense one with those channels masked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from structprune.compat import NormWithStatistics
from structprune.errors import OptionError, PlanError
from structprune.inputs import Invocations
from structprune.ir.registry import Registry, read_rules
from structprune.meta.given import check_module
from structprune.meta.replica import duplicate, held_tensors, walk
from structprune.meta.surroundings import ordinary_tensors
from structprune.plan.plan import Plan, carried_plan, plan_of, refitted_by
from structprune.surgery.slicing import cut_values
from structprune.tracing.checks import check_model
from structprune.tracing.discovery import is_float
from structprune.tracing.session import Session
from structprune.verify.masking import double_of
from structprune.verify.runs import CannotCompareError, DiffersError, Runs, compared, cut_alike, doubled, is_finite

TOLERANCE = 1e-9
LEAST_POWER = 1e-3
# Networks that multiply activations with each other may overflow with weights of unit gain, or
# lose digits: a cut that is wrong shows by far more than rounding does, with any weights. So may batch norms in
# training, which divide by the spread of a batch of two.
_GAINS = (1.0, 0.5, 0.1)
_ROUNDING = 1e-5
_BOTH = "evaluation and training mode, in float64"


@dataclass(frozen=True)
class Proof:
    """What the comparison of a pruned network with its masked dense one gave.

    Attributes:
        proved: The outputs agree within ``1e-9`` of their scale, the masking changed them by more
            than ``1e-3`` of it, and every parameter and buffer of the pruned model is a slice of the dense
            one's. In training mode, with a batch of at least two, they agree too, where it can be compared.
        max_error: Largest difference between the outputs in evaluation mode, divided by the largest output.
        power: Largest change of the dense outputs by the masking, on the same scale. Without it
            an agreement would mean nothing.
        mixed: Operators that take a statistic over channels; in both networks an elementwise
            surrogate stood in for them.
        reason: Why it is not proved.
        covers: The modes that were compared, in which dtype, and why not both.
    """

    proved: bool
    max_error: float
    power: float
    mixed: tuple[str, ...] = ()
    reason: str = ""
    covers: str = ""

    def __bool__(self) -> bool:
        return self.proved

    def __str__(self) -> str:
        verdict = (
            "proved: the pruned network equals the masked dense one" if self.proved else f"not proved: {self.reason}"
        )
        mixed = f"; {len(self.mixed)} times channels are mixed, compared elementwise" if self.mixed else ""
        covers = f"; {self.covers}" if self.covers else ""
        return f"{verdict} (largest error {self.max_error:.1e}, power {self.power:.1e}{mixed}{covers})"


@ordinary_tensors()
def prove(dense: nn.Module, pruned: nn.Module, example_inputs: Any = None, *, rules: Registry | None = None) -> Proof:
    """Compare a pruned model with the dense one whose removed channels are masked.

    Both run in float64 with the same random weights (zero-initialised layers would hide errors), in evaluation mode,
    and in training mode with a batch of at least two, where what is drawn by chance is drawn once for both. Every
    operator that reads a removed channel reads zeros in the dense network. Other dtypes and other sizes of inputs are
    not compared.

    Args:
        dense: The model before pruning; unchanged.
        pruned: What ``structprune.prune_model`` or ``Plan.apply`` made of it; unchanged.
        example_inputs: As for ``structprune.prune_model``; only shapes and integers matter.
        rules: As for ``structprune.prune_model``.

    Returns:
        The proof, with the largest error, its power, and the reason if it failed.

    Raises:
        PlanError: ``pruned`` carries no plan, or its plan is not for ``dense``.
        InputError: The inputs could not be inferred, or do not run.
        OptionError: The plan was made with rules, and none are given.
    """
    check_module(pruned)
    plan = plan_of(pruned)
    first = carried_plan(dense)
    if first is not None and not plan.fits(dense):
        plan = plan.after(first)
    plan = replace(plan, rules=read_rules(rules))
    steps = plan.settings.get("steps", [plan.settings])
    needed = dict.fromkeys(name for step in steps for name in step.get("rules", ()))
    missing = [name for name in needed or () if plan.rules is None or name not in plan.rules.added]
    if missing:
        raise OptionError(f"The plan was made with rules for {', '.join(missing)}: give the registry as rules=.")
    _check_pair(plan, dense, pruned)
    check_model(dense)
    session = Session(dense, example_inputs, plan.rules)
    calls = _with_random_inputs(session.examples)
    proof, gain = Proof(False, math.nan, math.nan, reason="nothing was compared"), _GAINS[0]
    for gain in _GAINS:
        try:
            runs = _runs(dense, pruned, plan, calls, gain)
        except DiffersError as error:
            return Proof(False, math.nan, math.nan, reason=str(error))
        except CannotCompareError as error:
            return Proof(False, math.nan, math.nan, reason=f"the networks cannot be compared: {error}")
        proof = _verdict(runs)
        if is_finite(runs) and not TOLERANCE < proof.max_error < _ROUNDING:
            break
    if proof.proved:
        trained = _with_random_inputs(session.training_examples)
        proof = _in_training(proof, dense, pruned, plan, trained, gain)
    changed = _changed_tensors(plan, dense, pruned)
    return replace(proof, proved=False, reason=_said(changed, pruned)) if changed and proof.proved else proof


def _runs(
    dense: nn.Module, pruned: nn.Module, plan: Plan, calls: Invocations, gain: float, *, training: bool = False
) -> Runs:
    return compared(
        lambda: _randomised(dense, gain), lambda model: cut_alike(pruned, model, plan), plan, calls, training=training
    )


def _verdict(runs: Runs) -> Proof:
    if not is_finite(runs):
        return Proof(False, math.nan, math.nan, runs.mixed, f"the largest output is {runs.scale}")
    reason = ""
    if not runs.error <= TOLERANCE:
        reason = f"the outputs differ by {runs.error:.1e} of their scale"
    elif not runs.power > LEAST_POWER:
        reason = f"masking changed the dense outputs by {runs.power:.1e} of their scale only, which proves nothing"
    return Proof(not reason, runs.error, runs.power, runs.mixed, reason, "evaluation mode, in float64")


def _in_training(
    proof: Proof, dense: nn.Module, pruned: nn.Module, plan: Plan, calls: Invocations, gain: float
) -> Proof:
    """A proof that covers training mode as well, or says why it does not."""
    if not calls:
        return replace(proof, covers=f"{proof.covers}; the model does not run in training mode with these inputs")
    try:
        runs = _runs(dense, pruned, plan, calls, gain, training=True)
    except DiffersError as error:
        return replace(proof, proved=False, reason=f"in training mode: {error}")
    except CannotCompareError as error:
        return replace(proof, covers=f"{proof.covers}; training mode was not compared: {error}")
    if not is_finite(runs):
        return replace(proof, covers=f"{proof.covers}; in training mode the largest output is {runs.scale}")
    if not runs.error <= _ROUNDING:
        reason = f"in training mode the outputs differ by {runs.error:.1e} of their scale"
        return replace(proof, proved=False, reason=reason)
    return replace(proof, covers=_BOTH)


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


def _changed_tensors(plan: Plan, dense: nn.Module, pruned: nn.Module) -> list[str]:
    """The parameters and buffers of the pruned model that are not the planned slices of the dense one's."""
    originals, cut = held_tensors(dense), plan.cut
    free, refitted = plan.free_buffers(pruned), refitted_by(plan.solved)
    found = []
    for name, tensor in plan.tensors_of(pruned).items():
        if name in refitted:
            continue  # what they are is for the plan to say; the proof is with random weights
        if name in free and tensor.shape != originals[name].shape:
            continue
        expected = cut_values(name, originals[name], cut)
        # Two cuts that compensate round twice, where one plan for both rounds once.
        computed = name in cut.shifts or name in cut.scales or name in cut.row_scales
        alike = tensor.device == expected.device and tensor.dtype == expected.dtype
        if not alike or not (
            _same_values(tensor, expected) or (computed and torch.allclose(tensor, expected, rtol=1e-5, atol=1e-6))
        ):
            found.append(name)
    return found


def _said(changed: list[str], pruned: nn.Module) -> str:
    """What is wrong with tensors that are no slices of the dense model's."""
    norms = [path for path, module in walk(pruned) if isinstance(module, NormWithStatistics)]
    statistics = {f"{path}.{name}" if path else name for path in norms for name in _STATISTICS}
    if statistics.issuperset(changed):
        number = len({name.rpartition(".")[0] for name in changed})
        return (
            f"the networks are alike, but the running statistics of {number} batch norms are not slices of the dense "
            f"model's ({changed[0]}): a forward in training mode moved them since, or recalibrate. Call .eval() before "
            "the first forward, or prove before"
        )
    return f"{changed[0]} is not a slice of the dense model's (trained since?)"


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _same_values(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors hold the same, NaN (of memory that nobody filled) included."""
    if torch.equal(left, right):
        return True
    return left.shape == right.shape and bool(((left == right) | (left.isnan() & right.isnan())).all())


def _randomised(model: nn.Module, gain: float) -> nn.Module:
    """A float64 copy with random parameters, and buffers moved away from special values."""
    generator = torch.Generator().manual_seed(0)
    return duplicate(model, partial(_random, gain=gain, generator=generator), doubled)


def _random(_name: str, tensor: torch.Tensor, *, gain: float, generator: torch.Generator) -> torch.Tensor:
    if not is_float(tensor):
        return doubled(tensor)
    parts = (tensor.detach().real, tensor.detach().imag) if tensor.is_complex() else (tensor.detach(),)
    learnt = isinstance(tensor, nn.Parameter)
    made = [_random_weight(part, gain, generator) if learnt else _moved(part, generator) for part in parts]
    values = (torch.complex(*made) if tensor.is_complex() else made[0]).to(tensor.device)
    return nn.Parameter(values) if learnt else values


def _random_weight(tensor: torch.Tensor, gain: float, generator: torch.Generator) -> torch.Tensor:
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    if tensor.ndim > 1:
        scale: float = gain * (12 / max(1, tensor.numel() // tensor.shape[0])) ** 0.5
        return (noise - 0.5) * scale
    return (noise + 0.5) * torch.where(noise * 1e6 % 1 < 0.3, -1.0, 1.0)


def _moved(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Statistics: a variance stays positive, a mean does not stay zero."""
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    values = tensor.double().cpu()
    return values * (0.5 + noise) if bool((values > 0).all()) else values + noise - 0.5


def _with_random_inputs(calls: Invocations) -> Invocations:
    """Calls with other numbers in every tensor: of two equal images a network may say that they are alike."""
    generator = torch.Generator().manual_seed(1)

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        if not is_float(tensor):
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=double_of(tensor.dtype)).to(tensor.device)

    return [call.mapped(drawn) for call in calls]
