"""Pooling, resampling and padding-like operators: they work on trailing dimensions, channels pass."""

from __future__ import annotations

from structprune.ir.slices import Labels
from structprune.ops.call import Call
from structprune.ops.registry import rule

_RANKS = {"1d": 1, "2d": 2, "3d": 3}


@rule(
    *(f"avg_pool{rank}d" for rank in (2, 3)),
    *(f"adaptive_max_pool{rank}d" for rank in (2, 3)),
    *(f"_adaptive_avg_pool{rank}d" for rank in (2, 3)),
    *(f"max_pool{rank}d_with_indices" for rank in (2, 3)),
    *(f"{pad}_pad{rank}d" for pad in ("reflection", "replication") for rank in (1, 2, 3)),
    *(f"upsample_{kind}" for kind in ("linear1d", "trilinear3d")),
    *(f"upsample_{kind}2d" for kind in ("bilinear", "bicubic")),
    *(f"upsample_nearest{rank}d" for rank in (1, 2, 3)),
    *(f"_upsample_nearest_exact{rank}d" for rank in (1, 2, 3)),
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "mkldnn_max_pool2d",
)  # fmt: skip
def window(call: Call) -> list[Labels]:
    """Work along the last one, two or three dimensions; the ones before pass."""
    x = call.tensors[0]
    rank = next(r for suffix, r in _RANKS.items() if suffix in call.op)
    labels = call.labels(x)
    for ids in labels[-rank:]:
        call.freeze(ids, f"is a spatial dimension of {call.op}")
    kept = labels[:-rank] + (None,) * rank
    return [kept] * (len(call.out) if isinstance(call.out, tuple) else 1)


@rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call) -> Labels:
    """Samples ``(n, c, ...)`` at the positions of a grid."""
    x, grid = call.tensors
    for ids in (*call.labels(x)[2:], *call.labels(grid)[1:]):
        call.freeze(ids, "is a dimension of a sampling grid")
    call.couple(call.labels(x)[0], call.labels(grid)[0], "is sampled by a grid of fixed size")
    return (call.labels(x)[0], call.labels(x)[1], *(None,) * (x.ndim - 2))


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(call: Call) -> Labels:
    """Every frequency sums over all positions of ``dim``; the other dimensions pass."""
    x = call.tensors[0]
    dims = {d % x.ndim for d in call["dim"]}
    for d in dims:
        call.freeze(call.labels(x)[d], "is transformed to frequencies")
    return tuple(None if d in dims else ids for d, ids in enumerate(call.labels(x)))
