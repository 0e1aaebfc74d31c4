"""Verification, with a model's own weights: what is handed out gives what the dense network gives, masked.

First the dense network runs with the removed channels masked where contractions read them, as it is: on its device,
in its dtype. What it returns is held against the plain forward of the cut network, which nothing observes. Where
rounding may be what differs, or operators mix channels, both run again in float64, operator by operator.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from structprune.compat import storage_key, tree_leaves
from structprune.errors import OptionError, StructPruneError, TraceError, VerificationError, brief
from structprune.inputs import Invocation, Invocations, read_inputs
from structprune.ir.operators import Operator
from structprune.ir.slices import Coupling, SliceSpace
from structprune.meta.caches import undisturbed
from structprune.meta.forward import running
from structprune.meta.replica import duplicate, like_parameter
from structprune.plan.plan import Plan
from structprune.surgery.slicing import cut_copy
from structprune.tracing.discovery import Discovery
from structprune.tracing.outputs import output_tensors
from structprune.tracing.session import Session, follow, has_values, labels_of, lent
from structprune.verify.masked import MaskedDense, WritesWeightsError
from structprune.verify.outputs import relative_difference, shows_something
from structprune.verify.runs import (
    CannotCompareError,
    DiffersError,
    Runs,
    check_shapes,
    compared,
    cut_alike,
    doubled,
    is_finite,
    left_by,
)

Verify = Literal["auto"] | bool
# "auto" verifies where the dense and the cut forward together take at most this many multiply-accumulates: about a
# second on two CPU cores.
MOST_MACS = 20_000_000_000
# And where a copy in float64, if one is needed, has at most this many bytes.
MOST_BYTES = 4_000_000_000
# What rounding alone may make of the largest output. Above that, float64 tells rounding from a wrong cut.
_SURELY_EQUAL = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# In float64 more than this is no rounding.
_EQUAL = 1e-7
# Nor is this in any dtype, unless the network decides by values, and then rounding may decide otherwise.
_GROSS = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 0.2, torch.bfloat16: 0.5}
# How many times as far as the masked dense network the cut one may be from what float64 gives.
_LOST = 10


def read_verify(verify: Any) -> Verify:
    """Check the option.

    Raises:
        OptionError: It is none of its values.
    """
    if isinstance(verify, bool):
        return verify
    if isinstance(verify, str) and verify == "auto":
        return "auto"
    raise OptionError(f"verify is {verify!r}; expected 'auto', True or False.")


def verify_cut(plan: Plan, model: nn.Module, pruned: nn.Module | None, verify: Verify, example_inputs: Any) -> str:
    """Verify what a plan makes of a model.

    Args:
        plan: What goes; it fits the model.
        model: The dense model; it is not changed.
        pruned: The cut copy, or ``None``: one is made.
        verify: ``True``: or raise; ``"auto"``: where it costs little; ``False``: do not.
        example_inputs: What to run both with (``None``: what the plan was made with, or what can be inferred).

    Returns:
        Why it was not verified, for a note; an empty string if it was, or was not to be.

    Raises:
        VerificationError: It is not what the plan says, or, with ``True``, that cannot be verified.
    """
    if verify is False or not plan.kept:
        return ""
    why = _why_not(plan) if verify == "auto" else ""
    if not why:
        try:
            if pruned is None or plan.shifts or plan.scales or plan.values:
                # What makes up for removed channels is no part of the masked network.
                pruned = cut_copy(model, replace(plan.cut, shifts={}, scales={}, values={}))
            _check_with_any(plan, model, pruned, example_inputs, spares=verify == "auto")
            return ""
        except CannotCompareError as error:
            why = str(error)
    if verify is True:
        raise VerificationError(
            f"The cut of this {type(model).__name__} cannot be verified: {why}. The model is as it was; verify=False "
            "prunes it all the same."
        )
    return f"not verified: {why}. verify=True insists, structprune.prove(model, pruned) is the thorough check"


def _why_not(plan: Plan) -> str:
    """Why ``"auto"`` lets it be."""
    macs = sum(plan.macs)
    if macs > MOST_MACS:
        return f"the two forwards take {macs / 1e9:,.0f} GMACs, more than the {MOST_MACS / 1e9:.0f} that 'auto' spends"
    return ""


def _candidates(plan: Plan, model: nn.Module, example_inputs: Any) -> Iterator[Invocations]:
    """What to run the networks with, best first: constant inputs become random ones, if the model runs with those."""
    if example_inputs is not None or plan.examples:
        calls = read_inputs(list(plan.examples) if example_inputs is None else example_inputs)
    else:
        try:
            # Tried on the meta device: with numbers a wrong guess may take minutes, and more memory than there is.
            calls = Session(model, rules=plan.rules).examples
        except StructPruneError:
            return
    varied = _varied(calls)
    if not all(map(_same_inputs, calls, varied)):
        yield varied
    yield calls


def _check_with_any(plan: Plan, dense: nn.Module, pruned: nn.Module, example_inputs: Any, *, spares: bool) -> None:
    """Hold the cut network against the dense one with the first inputs that this runs with.

    Raises:
        VerificationError: It gives something else.
        CannotCompareError: That cannot be said.
    """
    if not has_values(dense):
        raise CannotCompareError("the model is on the meta device and has no values")
    failed = "there are no example inputs, and none could be inferred: give example_inputs"
    for calls in _candidates(plan, dense, example_inputs):
        try:
            _check(plan, dense, pruned, calls, spares=spares)
            return
        except _DoesNotRunError as error:
            failed = str(error)
            if example_inputs is None and not plan.examples:
                failed = f"there are no example inputs, and with inferred ones {failed}: give example_inputs"
    raise CannotCompareError(failed)


class _DoesNotRunError(CannotCompareError):
    """The dense model does not run with these inputs."""


def _same_inputs(left: Invocation, right: Invocation) -> bool:
    pairs = zip(tree_leaves((left.args, left.kwargs)), tree_leaves((right.args, right.kwargs)), strict=True)
    return all(a is b for a, b in pairs)


def _check(plan: Plan, dense: nn.Module, pruned: nn.Module, calls: Invocations, *, spares: bool) -> None:
    """Hold the cut network against the masked dense one; ``spares`` memory.

    Raises:
        VerificationError: It gives something else.
        CannotCompareError: That cannot be said.
    """
    error = math.nan
    try:
        try:
            expected, observed = _masked_outputs(plan, dense, calls)
        except WritesWeightsError:
            dense, pruned = _copied(dense), _copied(pruned)
            expected, observed = _masked_outputs(plan, dense, calls, writes=True)
        if not any(map(shows_something, expected)):
            raise CannotCompareError("with these weights all outputs are zero or no numbers, whatever is removed")
        got = _plain_outputs(pruned, calls)
        alike = [t.shape for t in expected] == [t.shape for t in got]
        if not (observed.mixed or observed.decides):
            check_shapes(expected, got)
        dtype = max(observed.dtypes & _SURELY_EQUAL.keys(), key=_SURELY_EQUAL.__getitem__, default=torch.float32)
        error, gross = relative_difference(expected, got) if alike else math.inf, _GROSS.get(dtype, 1e-2)
        if observed.mixed or not error <= _SURELY_EQUAL.get(dtype, 1e-5):
            if spares and 8 * sum(p.numel() for p in dense.parameters()) > MOST_BYTES:
                raise CannotCompareError("that takes a copy in float64, which is more memory than 'auto' spends")
            _check_closely(plan, dense, pruned, calls, observed, got, gross)
    except DiffersError as difference:
        first = _first_difference(plan, dense, pruned, calls)
        where = f"; they part at {first}" if first and first not in str(difference) else ""
        by = f"the outputs differ by {error:.1e} of their scale: " if math.isfinite(error) else ""
        raise VerificationError(
            f"The cut {type(dense).__name__} does not give what the dense one gives with those channels masked: "
            f"{by}{difference}{where}. The model is as it was. Code that structprune cannot follow (NumPy, a kernel of "
            "its own, a branch on values or on the device) may read what was cut: ignore=[...] leaves modules alone, "
            "and verify=False prunes all the same."
        ) from difference


def _check_closely(
    plan: Plan,
    dense: nn.Module,
    pruned: nn.Module,
    calls: Invocations,
    observed: MaskedDense,
    got: list[torch.Tensor],
    gross: float,
) -> None:
    """Tell a wrong cut from rounding, chance, decisions and statistics over channels.

    What the cut network returned by itself must be what it returns under observation, and be near to the masked network
    in the model's own dtype; under observation and in float64 the two must be equal.
    """
    # What is drawn anew may differ. What comes out the same from other seeds has a seed of the forward's own.
    draws = bool(observed.draws) and not all(map(torch.equal, got, _plain_outputs(pruned, calls, seed=1)))
    # PyTorch's fast path through attention, which nobody can observe, returns zeros where places are padded.
    slow = _plain_outputs(pruned, calls, decomposed=True)
    apart = min(
        relative_difference(_observed_outputs(plan, pruned, calls), got),
        relative_difference(_observed_outputs(plan, pruned, calls, decomposed=True), slow),
    )
    if not apart <= gross:
        raise DiffersError(f"observed, the cut network's own outputs differ by {apart:.1e} of their scale")
    double = _in_double(plan, dense, pruned, calls, draws_anew=not draws)
    if not is_finite(double):
        raise CannotCompareError(f"the largest output is {double.scale}")
    apart = relative_difference(double.masked, double.cut)
    if not apart <= _EQUAL:
        if draws:
            raise CannotCompareError(f"the forward draws random numbers ({observed.draws[0]})")
        raise DiffersError(f"in float64 the outputs differ by {apart:.1e} of their scale")
    if not (observed.mixed or observed.decides or draws):
        # The first run does not know what constants shrink with; this one does. Some networks lose more digits.
        single = compared(lambda: dense, lambda _: pruned, plan, calls, widens=False, draws_anew=True).masked
        error = relative_difference(single, slow)
        if not error <= max(gross, _LOST * relative_difference(double.masked, single)):
            moved = _plain_outputs(pruned, [call.mapped(_moved) for call in calls], decomposed=True)
            if not error <= _LOST * relative_difference(slow, moved):
                raise DiffersError("more than rounding would make")
            raise CannotCompareError("rounding changes its outputs as much as a wrong cut would")


def _in_double(
    plan: Plan,
    dense: nn.Module,
    pruned: nn.Module,
    calls: Invocations,
    *,
    locates: bool = False,
    draws_anew: bool = False,
) -> Runs:
    """Both in float64, where operators that mix channels have a surrogate in both."""
    calls = [call.mapped(doubled) for call in calls]
    return compared(
        lambda: duplicate(dense, lambda _name, tensor: like_parameter(tensor, doubled(tensor)), doubled),
        lambda model: cut_alike(pruned, model, plan),
        plan,
        calls,
        locates=locates,
        draws_anew=draws_anew,
    )


def _first_difference(plan: Plan, dense: nn.Module, pruned: nn.Module, calls: Invocations) -> str:
    """Where the networks part, if they do so in float64 under observation."""
    try:
        return _in_double(plan, dense, pruned, calls, locates=True).first
    except DiffersError as error:
        return str(error)
    except Exception:  # where they part is told if it is found; that they do is known
        return ""


def _copied(model: nn.Module) -> nn.Module:
    return duplicate(model, lambda _name, tensor: like_parameter(tensor, tensor.detach().clone()), torch.clone)


def _masked_outputs(
    plan: Plan, dense: nn.Module, calls: Invocations, *, writes: bool = False
) -> tuple[list[torch.Tensor], MaskedDense]:
    """What the dense network returns with the removed channels masked, and what was seen on the way.

    Raises:
        WritesWeightsError: The forward writes into a weight, and it may not.
    """
    space = SliceSpace()
    coupling, labels = Coupling(space), labels_of(dense, space)
    observed = MaskedDense(space, coupling, plan, labels)
    if not writes:
        observed.lent = frozenset(storage_key(t) for t in dense.parameters())
    try:
        record = follow(dense, [call.mapped(torch.clone) for call in calls], observed, labels)
    except TraceError as error:
        raise CannotCompareError(brief(error)) from error
    except (StructPruneError, WritesWeightsError):
        raise
    except Exception as error:
        raise _DoesNotRunError(f"the dense model does not run ({brief(error)})") from error
    if record.unknown:
        names = ", ".join(name.removeprefix("aten::") for name in record.unknown)
        raise CannotCompareError(f"channels reach operators without a rule here ({names})")
    left_by(plan, space, coupling.roots())
    return record.results, observed


def _plain_outputs(
    pruned: nn.Module, calls: Invocations, *, seed: int = 0, decomposed: bool = False
) -> list[torch.Tensor]:
    """What the cut network returns by itself."""
    own = [call.mapped(torch.clone) for call in calls]
    try:
        try:
            return _outputs(lent(pruned), own, seed, decomposed)
        except RuntimeError:
            # Some forwards cannot run while gradients are recorded: those that write by ``out=``, for instance.
            with torch.no_grad():
                return _outputs(lent(pruned), [call.mapped(torch.clone) for call in calls], seed, decomposed)
    except Exception as error:
        raise DiffersError(f"the cut network fails: {brief(error)}") from error


def _observed_outputs(
    plan: Plan, pruned: nn.Module, calls: Invocations, *, decomposed: bool = False
) -> list[torch.Tensor]:
    """What the cut network returns as the comparison in float64 runs it: without gradients, and observed."""
    space = SliceSpace()
    observer = Discovery(space, Coupling(space), {}, Operator.run, training=False, rules=plan.rules)
    return follow(pruned, calls, observer, labels_of(pruned, space), decomposed=decomposed).results


def _outputs(model: nn.Module, calls: Invocations, seed: int = 0, decomposed: bool = False) -> list[torch.Tensor]:
    """The tensors that a copy returns in evaluation mode; whether gradients are recorded is the caller's wish."""
    here = running(model, training=False, decomposed=decomposed, seed=seed)
    with here, warnings.catch_warnings(), undisturbed(model):
        warnings.simplefilter("ignore")  # the user's own calls say it
        return [tensor.detach() for call in calls for tensor in output_tensors(call(model)).tensors]


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    """An input that differs in its last digits."""
    return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps) if tensor.is_floating_point() else tensor


def _varied(calls: Invocations) -> Invocations:
    """Calls with inputs of zeros or the like as ones through which something flows: only their shapes were meant."""
    generator = torch.Generator().manual_seed(0)

    def varied(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.ndim < 2 or bool((tensor != tensor.flatten()[:1]).any()):
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype).to(tensor.device)

    return [call.mapped(varied) for call in calls]


Plan.verifies = staticmethod(verify_cut)
