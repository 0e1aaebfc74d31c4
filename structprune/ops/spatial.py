"""Pooling, resampling and padding-like operators: they work on trailing dimensions, channels pass."""

from __future__ import annotations

from structprune.ir.operators import each, free
from structprune.ir.slices import Labels
from structprune.ops import scaling, shapes
from structprune.ops.call import Call

_RANKS = {"1d": 1, "2d": 2, "3d": 3}


def window(call: Call) -> list[Labels]:
    """Work along the last one, two or three dimensions; the ones before pass."""
    x = call.tensors[0]
    rank = next(r for suffix, r in _RANKS.items() if suffix in call.op)
    labels = call.labels(x)
    for ids in labels[-rank:]:
        call.freeze(ids, f"is a spatial dimension of {call.op}")
    kept = labels[:-rank] + (None,) * rank
    return [kept] * (len(call.out) if isinstance(call.out, tuple) else 1)


def grid_sampler(call: Call) -> Labels:
    """Samples ``(n, c, ...)`` at the positions of a grid."""
    x, grid = call.tensors
    for ids in (*call.labels(x)[2:], *call.labels(grid)[1:]):
        call.freeze(ids, "is a dimension of a sampling grid")
    call.couple(call.labels(x)[0], call.labels(grid)[0], "is sampled by a grid of fixed size")
    return (call.labels(x)[0], call.labels(x)[1], *(None,) * (x.ndim - 2))


def fourier(call: Call) -> Labels:
    """Every frequency sums over all positions of ``dim``; the other dimensions pass."""
    x = call.tensors[0]
    dims = {d % x.ndim for d in call["dim"]}
    for d in dims:
        call.freeze(call.labels(x)[d], "is transformed to frequencies")
    return tuple(None if d in dims else ids for d, ids in enumerate(call.labels(x)))


SPECS = (
    *free("avg_pool2d _adaptive_avg_pool2d max_pool2d_with_indices", window, scaling=scaling.pooled),
    *free("avg_pool3d _adaptive_avg_pool3d max_pool3d_with_indices", window),
    *free("adaptive_max_pool2d adaptive_max_pool3d mkldnn_max_pool2d", window),
    *free("reflection_pad1d reflection_pad2d reflection_pad3d", window),
    *free("replication_pad1d replication_pad2d replication_pad3d", window),
    *free("upsample_bicubic2d upsample_bilinear2d upsample_nearest2d", window, on_meta=shapes.upsample),
    *free("upsample_linear1d upsample_trilinear3d upsample_nearest1d upsample_nearest3d", window),
    *free("_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d", window),
    *free("_upsample_bilinear2d_aa _upsample_bicubic2d_aa", window),
    *free("grid_sampler_2d grid_sampler_3d", grid_sampler),
    *each("_fft_r2c _fft_c2c _fft_c2r", fourier),
)
