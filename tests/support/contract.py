"""The contract of a rule, checked on real tensors: ``op(slice(x)) == slice(op(x))``.

The channels that go are zeroed in every tensor on the dense side, so that a contraction over fewer
entries has the same value; that masking knows nothing of the rule under test. Operators that take
a statistic over what goes are compared through the surrogates of the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from structprune.inputs import Invocation
from structprune.ir.record import Choice, Record
from structprune.ir.slices import Coupling, Ids, Labels, Mask, SliceSpace
from structprune.ir.tensors import tensors_of
from structprune.tracing.discovery import Discovery, is_float
from structprune.tracing.replay import Replay
from structprune.tracing.session import follow
from structprune.verify.masking import MaskedRun, run_in_double

Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A function of tensors of these shapes, and how many of its slices may go."""

    name: str
    function: Function
    shapes: tuple[tuple[int, ...], ...]
    free: tuple[str, ...]
    """The dimensions that may shrink, as ``"0.1"``: tensor 0, dimension 1. All others are frozen."""
    interpretation: str = ""
    make: Callable[[Sequence[int]], torch.Tensor] = torch.randn


class Holder(nn.Module):
    """A model whose parameters are the operands, and whose forward is the function."""

    def __init__(self, function: Function, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        for i, tensor in enumerate(tensors):
            self.register_buffer(str(i), tensor)

    def forward(self) -> Any:
        """Apply the function to the operands."""
        return self.function(*(getattr(self, str(i)) for i in range(len(self._buffers))))


class ContractBroken(AssertionError):
    """A rule does not keep its contract."""


@dataclass(frozen=True)
class Traced:
    """A function traced on its operands."""

    record: Record
    labels: dict[str, Labels]
    outputs: list[Labels]
    roots: Ids
    stuck: Mask
    pieces: list[Ids]
    space: SliceSpace


class _Forced(Discovery):
    """A discovery in which every ambiguous operator is read as the case says."""

    interpretation = ""

    def choose(self, node: Any, question: str, interpretations: tuple[str, ...], effect: Any) -> str:
        taken = self.interpretation if self.interpretation in interpretations else interpretations[0]
        node.choices[question] = Choice(interpretations, taken)
        return taken

    def output(self, ids: Ids) -> None:
        """The outputs of a case may shrink: that is what is compared."""


def traced(case: Case, tensors: Sequence[torch.Tensor]) -> Traced:
    """Trace the case's function and collect what its rules say."""
    space = SliceSpace()
    coupling = Coupling(space)
    labels = {str(i): space.add_tensor(str(i), t.shape) for i, t in enumerate(tensors)}
    observer = _Forced(space, coupling, {}, run_in_double, training=False)
    observer.interpretation = case.interpretation
    outputs: list[Labels] = []

    def run(model: nn.Module) -> Any:
        return model()

    record = follow(Holder(case.function, tensors), [Invocation(function=run)], observer, labels)
    for tensor in record.results:
        value = getattr(tensor, "_structprune", None)
        outputs.append(value.labels if value is not None else labels["0"])
    pieces = [ids for node in record.nodes for ids in node.pieces]
    return Traced(record, labels, outputs, coupling.roots(), coupling.reasons()[0] >= 0, pieces, space)


def check_case(case: Case, seed: int) -> set[str]:
    """Check one case with one random kept set; returns the operators that ran.

    Raises:
        ContractBroken: What the rules say and what the operators do differ.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tensors = [case.make(shape) for shape in case.shapes]
    trace = traced(case, [t.clone() for t in tensors])
    _check_freedom(case, trace)
    present = _some_present(trace, rng)
    left = [_sliced(t, trace.labels[str(i)], present) for i, t in enumerate(tensors)]
    masked = [_masked(t, trace.labels[str(i)], present) for i, t in enumerate(tensors)]
    if any(node.mixed for node in trace.record.nodes):
        got, wanted = _through_surrogates(case, trace, tensors, left, present)
    else:
        with torch.no_grad():
            got = tensors_of(case.function(*left))
            wanted = tensors_of(case.function(*masked))
    if len(got) != len(wanted):
        raise ContractBroken(f"{case.name}: {len(got)} outputs where {len(wanted)} were expected")
    for small, big, labels in zip(got, wanted, trace.outputs, strict=True):
        _compare(case, small, _sliced(big, labels, present))
    return {node.op for node in trace.record.nodes}


def _check_freedom(case: Case, trace: Traced) -> None:
    """Exactly the dimensions that the case names may shrink."""
    free = tuple(
        f"{name}.{dim}"
        for name, labels in trace.labels.items()
        for dim, ids in enumerate(labels)
        if ids is not None and len(ids) > 1 and not trace.stuck[ids].all()
    )
    if free != tuple(sorted(case.free)):
        raise ContractBroken(f"{case.name}: {free} may shrink, expected {case.free}")


def _some_present(trace: Traced, rng: np.random.Generator) -> Mask:
    """Take about half of the free channels, the same share of every piece of a split dimension."""
    gone = np.zeros(len(trace.roots), dtype=bool)
    signature = np.zeros(len(trace.roots), dtype=np.uint64)
    arrays = [ids for labels in trace.labels.values() for ids in labels if ids is not None and len(ids) > 1]
    for ids in (*arrays, *trace.pieces):
        signature[np.unique(trace.roots[ids])] ^= rng.integers(1, 2**63, dtype=np.uint64)
    roots = np.unique(np.concatenate([np.arange(0), *(trace.roots[ids] for ids in arrays)]))
    roots = roots[~trace.stuck[roots]]
    for mark in np.unique(signature[roots]):
        partition = rng.permutation(roots[signature[roots] == mark])
        gone[partition[: len(partition) // 2]] = True
    present: Mask = ~gone[trace.roots]
    for ids in arrays:
        if not trace.stuck[ids].all() and present[ids].all():
            raise ContractBroken("a dimension that may shrink has no channel that can leave")
    return present


def _sliced(tensor: torch.Tensor, labels: Labels, present: Mask) -> torch.Tensor:
    for dim, ids in enumerate(labels):
        if ids is not None:
            if len(ids) != tensor.shape[dim]:
                raise ContractBroken(f"{len(ids)} labels along a dimension of {tensor.shape[dim]}")
            tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(present[ids])))
    return tensor


def _masked(tensor: torch.Tensor, labels: Labels, present: Mask) -> torch.Tensor:
    tensor = tensor.clone()
    for dim, ids in enumerate(labels):
        if ids is not None and is_float(tensor):
            tensor.index_fill_(dim, torch.from_numpy(np.flatnonzero(~present[ids])), 0.0)
    return tensor


def _through_surrogates(
    case: Case, trace: Traced, tensors: Sequence[torch.Tensor], left: Sequence[torch.Tensor], present: Mask
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    results = []
    kept = {n: tuple(None if i is None else i[present[i]] for i in la) for n, la in trace.labels.items()}
    everything = np.ones_like(present)
    for operands, labels, shown, masks in (
        (left, kept, present, everything),
        ([t.clone() for t in tensors], trace.labels, everything, present),
    ):
        replay = Replay(trace.record, trace.space, trace.roots, None, shown, MaskedRun(masks))
        try:
            record = follow(Holder(case.function, operands), [Invocation(function=lambda m: m())], replay, labels)
        except Exception as error:
            raise ContractBroken(f"{case.name}: {error}") from error
        if replay.mismatches:
            raise ContractBroken(f"{case.name}: {replay.mismatches[0]}")
        results.append(record.results)
    return results[0], results[1]


def _compare(case: Case, small: torch.Tensor, big: torch.Tensor) -> None:
    if small.shape != big.shape:
        raise ContractBroken(f"{case.name}: op(slice(x)) is {list(small.shape)}, slice(op(x)) {list(big.shape)}")
    small, big = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (small, big))
    if not torch.allclose(small, big, rtol=1e-5, atol=1e-5, equal_nan=True):
        raise ContractBroken(f"{case.name}: op(slice(x)) and slice(op(x)) differ")
