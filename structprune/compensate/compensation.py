"""What removed channels gave goes into the biases and batch norms of the layers that read them.

In a contraction that reads removed channels every output loses ``sum_c w_c x_c`` over them: its mean, and a part of its
variance. The mean goes into the bias, or off the running mean of the batch norm that follows; the running variance
shrinks by the share that is lost, so that the batch norm gives again what it gave. Both are known beforehand: from
batches, or, without data, from the batch norms before, whose outputs in a trained network have the mean ``bias`` and
the standard deviation ``weight`` in every channel. What activations make of such a Gaussian is averaged over its
quantiles, the operators themselves computing it; channels are taken as independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from structprune.compensate.moments import MomentReader, Moments
from structprune.compensate.places import Place, Vectors, place_of
from structprune.errors import InputError, ModelError, StructPruneError, brief
from structprune.inputs import Invocations, read_inputs
from structprune.ir.record import Record
from structprune.ir.slices import Coupling, SliceSpace, Vector
from structprune.meta.pseudo import QUANTILES
from structprune.plan.plan import Plan
from structprune.tracing.session import follow, has_values, labels_of

# A variance may come out as nothing, or more than it was, where channels depend on each other.
_LEAST, _MOST = 0.01, 4.0
_UNKNOWN = "without a batch norm before them the means are not known; a list of batches would tell"
_NOWHERE = "there is no bias of their own, or batch norm right after, to add them to"


def check_compensable(model: nn.Module, option: str = "compensate") -> None:
    """Refuse a model whose weights have no values.

    Raises:
        ModelError: The model is on the meta device.
    """
    if not has_values(model):
        raise ModelError(f"{option} needs the values of the weights, and the model is on the meta device.")


def compensated(plan: Plan, model: nn.Module, examples: Invocations, batches: bool | Sequence[Any]) -> Plan:
    """Add to a plan what makes up for the removed channels.

    Args:
        plan: The plan; its cut stays as it is.
        model: The dense model with its values; it is not changed.
        examples: Calls that it runs with.
        batches: What to take the means from; ``True``: from the statistics of batch norms.

    Raises:
        ModelError: The model is on the meta device.
        InputError: It does not run with a batch.
    """
    check_compensable(model)
    if isinstance(batches, bool):
        seen = [_observe(model, examples, plan, 0)]
        if any(isinstance(place, Place) for place in seen[0].places.values()):
            seen += [_observe(model, examples, plan, quantile) for quantile in range(1, QUANTILES)]
    else:
        seen = [_observe(model, read_inputs(batch), plan, None) for batch in batches]
    # A batch may take another way through the network: runs are matched by the vector, which has one reader.
    found: dict[Place, list[Moments]] = {}
    for run in seen:
        for node, place in run.places.items():
            if isinstance(place, Place):
                found.setdefault(place, []).append(run.moments[node])
    shifts, scales = {}, {}
    for place, moments in found.items():
        mean, square, mean_left, square_left = np.mean(moments, axis=0)
        if not np.isfinite([mean, square, mean_left, square_left]).all():
            raise InputError(f"compensate: what {place.vector} is added to is not finite with these batches.")
        shifts[place.vector] = (mean - mean_left) * (-1 if place.is_mean else 1)
        if place.variance:
            scales[place.variance] = _share(square - mean**2, square_left - mean_left**2)
    return replace(
        plan,
        shifts=_by_name(plan, shifts),
        scales=_by_name(plan, scales),
        notes=(*plan.notes, *_notes(list(seen[-1].places.values()))),
    )


def _share(before: Vector, after: Vector) -> Vector:
    """The share of a variance that is left; 1 where there was none."""
    left = np.divide(after, before, out=np.ones_like(before), where=before > 0)
    return np.clip(left, _LEAST, _MOST)


def _by_name(plan: Plan, found: Mapping[str, Vector]) -> dict[str, tuple[float, ...]]:
    """The entries that stay."""
    kept = {name: plan.kept.get(name, {}).get(0) for name in found}
    return {n: tuple((v if (k := kept[n]) is None else v[list(k)]).tolist()) for n, v in found.items()}


def _notes(places: list[Place | str]) -> Iterator[str]:
    """How many contractions are made up for, and what stands in the way of the others."""
    skipped = Counter(place for place in places if isinstance(place, str))
    count = len(places)
    yield f"compensate: made up for the removed channels' means in {count - skipped.total()} of {count} contractions"
    yield from (f"compensate: {reason} ({number} contractions)" for reason, number in skipped.items())


class _Seen(NamedTuple):
    """One run: moments by contraction, and where what is lost can go, or why nowhere."""

    moments: dict[int, Moments]
    places: dict[int, Place | str]


def _observe(model: nn.Module, calls: Invocations, plan: Plan, quantile: int | None) -> _Seen:
    space = SliceSpace()
    coupling, labels = Coupling(space), labels_of(model, space)
    reader = MomentReader(space, coupling, plan, quantile)
    try:
        record = follow(model, calls, reader, labels)
    except StructPruneError:
        raise
    except Exception as error:
        raise InputError(
            f"compensate: {type(model).__name__} does not run with {', '.join(map(str, calls))}: {brief(error)}"
        ) from error
    vectors = Vectors(space, coupling.roots(), record)
    places: dict[int, Place | str] = {}
    for index in reader.moments:
        if quantile is not None and not _behind_batch_norm(record, reader.activations[index]):
            places[index] = _UNKNOWN
        else:
            places[index] = place_of(record, index, reader.channels[index], vectors) or _NOWHERE
    return _Seen(reader.moments, places)


def _behind_batch_norm(record: Record, start: int) -> bool:
    """Whether every way from the inputs to a node leads through a batch norm."""
    pending, seen = [start], set()
    while pending:
        node = record.nodes[pending.pop()]
        if node.index in seen or node.parametric or node.spec.normalises:
            continue
        seen.add(node.index)
        if node.is_leaf:
            return False
        pending.extend(node.parents)
    return True
