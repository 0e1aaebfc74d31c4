"""Normalisations: parameters and statistics go with the channel; statistics over channels mix them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from structprune.ir.operators import Surrogate, free
from structprune.ir.slices import Ids, Labels
from structprune.ops import scaling, shapes
from structprune.ops.call import Call, dims_of, normalised
from structprune.ops.contraction import couple_positions
from structprune.ops.surrogates import SOFT, affine

_FIXED = "meets a statistic of fixed size"


def batch_norm(call: Call) -> list[Labels]:
    """Statistics over all dimensions but the second: channels stay apart, labels elsewhere mix."""
    x = call.tensors[0]
    labels = call.labels(x)
    for tensor in call.tensors[1:]:
        call.couple(labels[1], call.labels(tensor)[0], _FIXED)
    training = bool(call["training"]) if "training" in call else call.op == "_batch_norm_with_update"
    for dim, ids in enumerate(labels):
        if dim != 1 and ids is not None and training:
            call.mix(x, dim)
    call.size("num_features", labels[1])
    # The saved statistics have the channels' size, or none where a backend does not save them.
    channels = None if labels[1] is None else len(labels[1])
    return [labels] + [(labels[1] if t.shape == (channels,) else None,) * t.ndim for t in _rest(call)]


def layer_norm(call: Call) -> list[Labels]:
    """Statistics over the last dimensions: they mix what they run over."""
    x = call.tensors[0]
    labels = call.labels(x)
    rank = len(call["normalized_shape"])
    first = len(labels) - rank
    for entry in range(rank):
        call.mix(x, first + entry)
        for tensor in call.tensors[1:]:
            call.couple(labels[first + entry], call.labels(tensor)[entry], _FIXED)
        call.size("normalized_shape", labels[first + entry], entry)
    kept = labels[:first]
    return [labels] + [(*kept, *(None,) * (t.ndim - first)) for t in _rest(call)]


def group_norm(call: Call) -> list[Labels]:
    """Statistics over groups of channels: whole groups leave exactly, or the same positions of each."""
    x = call.tensors[0]
    labels, groups = call.labels(x), int(call["group"])
    ids = labels[1]
    per_statistic: Ids | None = None
    for tensor in call.tensors[1:]:
        call.couple(ids, call.labels(tensor)[0], _FIXED)
    for spatial in labels[2:]:
        call.freeze(spatial, "is a dimension of a group norm's statistics")
    if ids is not None:
        groups = call.remember("groups", groups)
        width = call.shape(x)[1] // groups
        interpretations = (
            ("groups", "positions") if groups > 1 and width > 1 else ("groups",) if groups > 1 else ("positions",)
        )
        per_group = ids.reshape(-1, width) if len(ids) % width == 0 else ids[:, None]

        def effect(interpretation: str) -> tuple[Ids, Ids]:
            if interpretation == "groups":
                return per_group.ravel(), per_group[:, :1].repeat(per_group.shape[1], 1).ravel()
            return ids, np.resize(ids[: len(ids) // groups], len(ids))

        if call.choose(*interpretations, effect=effect) == "groups":
            call.couple(*effect("groups"), "")
            per_statistic = per_group[:, 0]
            call.size("num_groups", per_statistic)
            followed = int(call["group"]) * width == len(ids)
        else:
            couple_positions(call, ids, groups)
            call.mix(x, 1)
            followed = int(call["group"]) == groups
        call.size("num_channels", ids)
        if not followed:
            # Shapes do not show it: the statistics would run over other groups.
            labels = (labels[0], None, *labels[2:])
    return [labels] + [(labels[0], per_statistic)] * (len(_rest(call)))


def over_one_dim(call: Call) -> Labels:
    """A statistic over one dimension that keeps it: the dimension mixes."""
    x = call.tensors[0]
    call.mix(x, call["dim"] % max(x.ndim, 1)) if x.ndim else None
    return call.labels(x)


def accumulated(call: Call) -> Labels:
    """What stands at a position depends on how many come before it: over ones, it is the position."""
    x = call.tensors[0]
    dim = normalised(call["dim"], max(x.ndim, 1))
    if x.ndim:
        call.freeze(call.labels(x)[dim], f"is accumulated by {call.op}")
    return tuple(None if d == dim else ids for d, ids in enumerate(call.labels(x)))


def weight_norm(call: Call) -> list[Labels]:
    """``g * v / norm(v)`` with the norm over all dimensions but ``dim``."""
    v, g = call.tensors
    dim = call["dim"] % v.ndim
    for other in range(v.ndim):
        if other != dim:
            call.mix(v, other)
    call.couple(call.labels(v)[dim], call.labels(g)[dim], _FIXED)
    norms: list[Any] = [None] * v.ndim
    norms[dim] = call.labels(v)[dim]
    return [call.labels(v), tuple(norms)]


def renorm(call: Call) -> Labels:
    """Norms over all dimensions but one, clipped."""
    x = call.tensors[0]
    for dim in range(x.ndim):
        if dim not in dims_of(call["dim"], x.ndim):
            call.mix(x, dim)
    return call.labels(x)


def _rest(call: Call) -> list[torch.Tensor]:
    """The outputs after the first: saved statistics."""
    return list(call.out[1:]) if isinstance(call.out, (list, tuple)) else []


_BY_CHANNEL, _BY_LAST = affine(1), affine(-1)
SPECS = (
    *free("native_batch_norm", batch_norm, on_meta=shapes.batch_norm, surrogate=_BY_CHANNEL, normalises=True),
    *free("_native_batch_norm_legit _batch_norm_with_update", batch_norm, surrogate=_BY_CHANNEL),
    *free("_native_batch_norm_legit_no_training cudnn_batch_norm _batch_norm_no_update", batch_norm, normalises=True),
    *free(
        "native_layer_norm", layer_norm, on_meta=shapes.layer_norm, surrogate=_BY_LAST, scaling=scaling.normalised,
        weight="weight",
    ),
    *free("_fused_rms_norm", layer_norm, surrogate=_BY_LAST),
    *free("native_group_norm", group_norm, asks=True, sizes=("N", "C", "HxW", "group"), surrogate=_BY_CHANNEL),
    *free("_softmax _safe_softmax", over_one_dim, on_meta=shapes.softmax, surrogate=SOFT),
    *free("_log_softmax", over_one_dim, surrogate=SOFT),
    *free("cumsum logcumsumexp", accumulated),
    *free("_weight_norm_interface", weight_norm, surrogate=Surrogate()),
    *free("renorm", renorm, surrogate=Surrogate()),
)  # fmt: skip
