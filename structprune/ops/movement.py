"""Operators that move entries about: the labels are moved like the data."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

from structprune.ir.operators import free
from structprune.ir.slices import Ids, Labels
from structprune.ops import scaling, shapes
from structprune.ops.call import Call, normalised

FROZEN = "frozen"
Block = tuple[tuple[int, ...], tuple[int, ...]]


def view(call: Call) -> Labels:
    """Merge and split dimensions. Where one that shrinks is split, any of its parts may shrink."""
    x = call["self"]
    if "dtype" in call:
        return _as_dtype(call, x)
    blocks = call.remember("blocks", dimension_blocks(call.shape(x), call.out_shape()))
    labels: list[Ids | None] = [None] * call.out.ndim
    for inputs, outputs in blocks:
        if prod(call.out.shape[d] for d in outputs) != prod(x.shape[d] for d in inputs):
            continue
        for dim, ids in zip(outputs, _block(call, x, inputs, outputs), strict=True):
            labels[dim] = ids
    return tuple(labels)


def _as_dtype(call: Call, x: torch.Tensor) -> Labels:
    """The same memory as numbers of another kind, which may be more or fewer along the last dimension."""
    labels = call.labels(x)
    if labels and x.element_size() != call.out.element_size():
        call.freeze(labels[-1], "is read as numbers of another size")
        return (*labels[:-1], None)
    return labels


def _block(call: Call, x: torch.Tensor, inputs: Sequence[int], outputs: Sequence[int]) -> list[Ids | None]:
    """The labels of ``outputs``, the dimensions into which ``inputs`` are merged and split."""
    nothing: list[Ids | None] = [None] * len(outputs)
    labels, dense = call.labels(x), call.out_shape()
    labelled = [d for d in inputs if labels[d] is not None]
    wide = [d for d in labelled if call.shape(x)[d] != 1] or labelled[:1]
    if not wide:
        return nothing
    if len(inputs) == len(outputs) == 1:
        return [labels[inputs[0]]]
    question = f"of dim {inputs[0]}"
    carrier = _carrier(call, [(d, labels[d]) for d in wide], question, merges=len(outputs) == 1)
    for d in labelled:
        if d != carrier or not outputs:
            call.freeze(labels[d], "is merged with another dimension that may shrink" if outputs else "is dropped")
    ids = labels[carrier] if carrier is not None else None
    if ids is None or not outputs:
        return nothing
    if 0 in dense:
        call.freeze(ids, "is shaped anew where there is nothing")
        return nothing
    place = [len(ids) if d == carrier else 1 for d in inputs]
    spread = np.broadcast_to(ids.reshape(place), [x.shape[d] for d in inputs])
    grid = spread.reshape([call.out.shape[d] for d in outputs])
    return split_labels(call, grid, [dense[d] for d in outputs], question)


def _carrier(call: Call, labelled: list[tuple[int, Ids | None]], question: str, *, merges: bool) -> int | None:
    """The dimension that goes on shrinking in a merger: the one that is not only filled up, if it is alone."""
    if len(labelled) > 1:
        filled = [d for d, ids in labelled if ids is not None and call.is_placeholder(ids)]
        if len(filled) == len(labelled):
            # All of a tensor that was made empty and written into since: one may have become a weight's.
            met = [d for d, ids in labelled if ids is not None and call.meets_axis(ids)]
            met = call.remember(f"met by a weight {question}", met)
            filled = [d for d in filled if d not in met]
        labelled = [(d, ids) for d, ids in labelled if d not in filled]
        if len(labelled) > 1 and merges:

            def effect(interpretation: str) -> tuple[Ids, None]:
                return np.concatenate([i for d, i in labelled if i is not None and interpretation != f"dim {d}"]), None

            interpretations = (*(f"dim {d}" for d, _ in labelled), FROZEN)
            chosen = call.choose(*interpretations, question=f"merging {question}", effect=effect)
            return None if chosen == FROZEN else _dim(chosen)
    return labelled[0][0] if len(labelled) == 1 else None


def split_labels(call: Call, grid: Ids, dense: Sequence[int], question: str) -> list[Ids | None]:
    """Labels of the dimensions of ``grid``, of which one will carry the ids: the interpretation chosen."""
    result: list[Ids | None] = [None] * grid.ndim
    candidates = call.remember(f"varying {question}", _varying(grid, dense))
    if not candidates:
        return result
    carrier = candidates[0]
    if len(candidates) > 1:

        def effect(interpretation: str) -> tuple[Ids, Ids | None]:
            return (grid.ravel(), None) if interpretation == FROZEN else _along(grid, _dim(interpretation))

        interpretations = (*(f"dim {d}" for d in candidates), FROZEN)
        chosen = call.choose(*interpretations, question=f"splitting {question}", effect=effect)
        if chosen == FROZEN:
            choice = call.node.choices.get(f"splitting {question}")
            call.freeze(grid.ravel(), (choice and choice.reason) or "is split in a way that cannot shrink")
            return result
        carrier = _dim(chosen)
        call.couple(*_along(grid, carrier), "")
    result[carrier] = np.ascontiguousarray(np.moveaxis(grid, carrier, 0).reshape(grid.shape[carrier], -1)[:, 0])
    return result


def _along(grid: Ids, dim: int) -> tuple[Ids, Ids]:
    """What is coupled where only ``dim`` may shrink: all entries with one index along it."""
    lines = np.moveaxis(grid, dim, 0).reshape(grid.shape[dim], -1)
    return lines.ravel(), lines[:, 0].repeat(lines.shape[1])


def _dim(interpretation: str) -> int:
    return int(interpretation.removeprefix("dim "))


def _varying(grid: Ids, dense: Sequence[int]) -> list[int]:
    """The dimensions along which the ids differ, outermost first; one of size one if it is alone."""
    wide = [d for d, size in enumerate(dense) if size != 1]
    if len(wide) <= 1:
        return wide or list(range(grid.ndim - 1, grid.ndim))
    return [d for d in wide if (grid != grid.take([0], axis=d)).any()]


def dimension_blocks(before: Sequence[int], after: Sequence[int]) -> list[Block]:
    """Pair the dimensions of two shapes of one size into the smallest blocks with equal products.

    Examples:
        >>> dimension_blocks((2, 12, 5), (2, 3, 4, 5))
        [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,))]
    """
    if tuple(before) != tuple(after) and (0 in before or 0 in after):
        return [(tuple(range(len(before))), tuple(range(len(after))))]
    blocks: list[Block] = []
    i = j = 0
    while i < len(before) and j < len(after):
        inputs, outputs = [i], [j]
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        if left != right and 1 in (left, right) and left * right != 1:
            # A dimension of one beside a wide one: it was added or dropped, not merged.
            if left == 1:
                blocks.append(((inputs[0],), ()))
                j -= 1
            else:
                blocks.append(((), (outputs[0],)))
                i -= 1
            continue
        while left != right:
            if left < right:
                inputs.append(i)
                left *= before[i]
                i += 1
            else:
                outputs.append(j)
                right *= after[j]
                j += 1
        blocks.append((tuple(inputs), tuple(outputs)))
    blocks += [((d,), ()) for d in range(i, len(before))]
    blocks += [((), (d,)) for d in range(j, len(after))]
    return blocks


def permute(call: Call) -> Labels:
    """Reorder the dimensions."""
    x = call["self"]
    order = list(range(x.ndim))
    if call.op.startswith("permute"):
        order = [normalised(d, x.ndim) for d in call["dims"]]
    elif call.op in ("t", "t_copy"):
        order.reverse()
    elif x.ndim:
        a, b = (normalised(call[name], x.ndim) for name in ("dim0", "dim1"))
        order[a], order[b] = order[b], order[a]
    return tuple(call.labels(x)[d] for d in order)


def squeeze(call: Call) -> Labels:
    """Drop dimensions of one."""
    x = call["self"]
    shape = call.shape(x)
    asked = range(len(shape))  # in place, ``x`` has lost its dimensions already
    if "dim" in call:
        dim = call["dim"]
        asked = [normalised(d, len(shape)) for d in ([dim] if isinstance(dim, int) else dim)]  # type: ignore[assignment]
    dropped = {d for d in asked if shape[d] == 1}
    for d in dropped:
        call.freeze(call.labels(x)[d], "is the only entry of a dimension that is dropped")
    return tuple(ids for d, ids in enumerate(call.labels(x)) if d not in dropped)


def unsqueeze(call: Call) -> Labels:
    """Add a dimension of one."""
    x = call["self"]
    labels = call.labels(x)
    dim = normalised(call["dim"], len(labels) + 1)
    return (*labels[:dim], None, *labels[dim:])


def expand(call: Call) -> Labels:
    """Repeat entries along dimensions of one: all alike there, so they may shrink with others."""
    x = call["self"]
    shape, out = call.shape(x), call.out_shape()
    labels: list[Ids | None] = []
    for dim, size in enumerate(out):
        own = dim - len(out) + len(shape)
        if own >= 0 and (shape[own] != 1 or size == 1):
            labels.append(call.labels(x)[own])
        else:
            if own >= 0:
                call.freeze(call.labels(x)[own], "is broadcast along another dimension")
            labels.append(call.fresh(call.out.shape[dim]) if size > 1 else None)
    return tuple(labels)


def repeat(call: Call) -> Labels:
    """Set copies of the whole side by side."""
    x, repeats = call["self"], list(call["repeats"])
    labels: list[Ids | None] = []
    for dim, count in enumerate(repeats):
        own = dim - len(repeats) + x.ndim
        ids = call.labels(x)[own] if own >= 0 else None
        if ids is not None and (call.shape(x)[own] != 1 or count == 1):
            labels.append(np.tile(ids, count))
        elif own < 0 or call.shape(x)[own] == 1:
            call.freeze(ids, "is repeated along its dimension")
            labels.append(call.fresh(call.out.shape[dim]) if call.out_shape()[dim] > 1 else None)
        else:
            labels.append(None)
    return tuple(labels)


def flip(call: Call) -> Labels:
    """Reverse dimensions."""
    x = call["self"]
    dims = {normalised(d, x.ndim) for d in call["dims"]}
    return tuple(ids[::-1] if d in dims and ids is not None else ids for d, ids in enumerate(call.labels(x)))


def roll(call: Call) -> Labels:
    """Move the last ``shift`` entries of a dimension to its front."""
    x = call["self"]
    labels = list(call.labels(x))
    dims = [normalised(d, x.ndim) for d in call["dims"]]
    if not dims:
        call.freeze_all("is rolled as one long dimension")
        return (None,) * len(labels)
    for dim, shift in zip(dims, call["shifts"], strict=True):
        ids = labels[dim]
        if ids is None or shift % len(ids) == 0:
            continue
        head = len(ids) - shift % len(ids)
        # A shift written as a number needs the entries that wrap around; one computed from the
        # size (half of the channels) needs both stretches to shrink alike.
        interpretation = call.choose("free", "anchored", FROZEN)
        if interpretation == "anchored":
            call.freeze(ids[head:] if shift > 0 else ids[: -shift % len(ids)], "is rolled by a fixed shift")
        elif interpretation == FROZEN:
            call.freeze(ids, "is rolled by a fixed shift")
        call.piece(ids[:head])
        call.piece(ids[head:])
        labels[dim] = np.concatenate([ids[head:], ids[:head]])
    return tuple(labels)


def shuffle(call: Call) -> Labels:
    """Move factors of the channels to space or back, or mix two factors of the channels."""
    x = call["self"]
    channel = 1 if "channel_shuffle" in call.op else x.ndim - 3
    labels = [*call.labels(x)[: channel + 1], *(None,) * (x.ndim - channel - 1)]
    for ids in call.labels(x)[channel + 1 :]:
        call.freeze(ids, f"is a spatial dimension of {call.op}")
    ids = labels[channel]
    if ids is None:
        return tuple(labels)
    if call.op == "pixel_unshuffle":
        labels[channel] = np.repeat(ids, call["downscale_factor"] ** 2)
    elif call.op == "pixel_shuffle":
        factors = ids.reshape(-1, call["upscale_factor"] ** 2)
        first = np.ascontiguousarray(factors[:, 0])
        call.couple(factors.ravel(), first.repeat(factors.shape[1]), "")
        labels[channel] = first
    else:
        factors = ids.reshape(call["groups"], -1)
        call.couple(factors.ravel(), np.tile(factors[0], len(factors)), "")
        labels[channel] = np.tile(factors[0], (len(factors), 1)).T.ravel()
    return tuple(labels)


def im2col(call: Call) -> Labels:
    """``(n, c, h, w)`` to ``(n, c * kernel, windows)``."""
    x = call["self"]
    lead = call.labels(x)[:-3]
    ids = call.labels(x)[-3]
    for spatial in call.labels(x)[-2:]:
        call.freeze(spatial, "is slid over by a window")
    return (*lead, None if ids is None else np.repeat(ids, prod(call["kernel_size"])), None)


def col2im(call: Call) -> Labels:
    """``(n, c * kernel, windows)`` to ``(n, c, h, w)``."""
    x = call["self"]
    ids = call.labels(x)[-2]
    call.freeze(call.labels(x)[-1], "is a dimension of windows")
    if ids is not None:
        taps = ids.reshape(-1, prod(call["kernel_size"]))
        call.couple(taps.ravel(), taps[:, :1].repeat(taps.shape[1], 1).ravel(), "")
        ids = np.ascontiguousarray(taps[:, 0])
    return (*call.labels(x)[:-2], ids, None, None)


def positional(call: Call) -> Labels:
    """What happens depends on positions: the dimensions it works on stay."""
    x = call["self"]
    if call.op == "unfold":
        touched = {normalised(call["dimension"], x.ndim)}
    elif call.op in ("tril", "triu"):
        touched = {x.ndim - 1, x.ndim - 2}
    else:
        touched = set(range(x.ndim))
    for dim in touched:
        call.freeze(call.labels(x)[dim], f"keeps its positions for {call.op}")
    kept = [None if d in touched else ids for d, ids in enumerate(call.labels(x))]
    return (*kept, *(None,) * (call.out.ndim - x.ndim))[: call.out.ndim]


def as_strided(call: Call) -> Labels:
    """Other strides over the same memory: the same tensor if they are those of its shape, else anything."""
    x = call["self"]
    sizes = tuple(call["size"])
    contiguous = torch.empty(sizes, device="meta").stride()
    plain = all(s == c for n, s, c in zip(sizes, call["stride"], contiguous, strict=True) if n != 1)
    same = sizes == tuple(x.shape) and plain and not call["storage_offset"] and (call.in_place or x.is_contiguous())
    if call.remember("same", same):
        return call.labels(x)
    call.freeze_all("is read with other strides")
    return (None,) * len(call.out.shape)


def complex_parts(call: Call) -> Labels:
    """Complex numbers as pairs, and back."""
    labels = call.labels(call["self"])
    if call.op == "view_as_real":
        return (*labels, None)
    if call.op == "view_as_complex":
        call.freeze(labels[-1], "is a pair of real and imaginary part")
        return labels[:-1]
    return labels


SPECS = (
    *free("view", view, asks=True, moves="all", scaling=scaling.viewed),
    *free("_unsafe_view", view, asks=True, same_as="view", moves="all", scaling=scaling.viewed),
    *free("reshape", same_as="view", moves="all", scaling=scaling.viewed),
    *free("_reshape_alias", view, asks=True, same_as="view", sizes=("stride",)),
    *free("_reshape_copy view_copy", view, asks=True),
    *free("permute transpose", permute, moves="all", scaling=scaling.moved),
    *free("t", permute, on_meta=shapes.transposed, moves="all", scaling=scaling.moved),
    *free("permute_copy transpose_copy t_copy", permute),
    *free("squeeze", squeeze, moves="all", scaling=scaling.moved),
    *free("squeeze_copy", squeeze),
    *free("unsqueeze", unsqueeze, moves="all", scaling=scaling.moved),
    *free("unsqueeze_copy", unsqueeze),
    *free("expand", expand, moves="some", scaling=scaling.moved),
    *free("expand_copy", expand),
    *free("repeat", repeat),
    *free("flip", flip),
    *free("roll", roll, asks=True, sizes=("shifts",), placed=True),
    *free("pixel_shuffle pixel_unshuffle channel_shuffle", shuffle),
    *free("im2col", im2col),
    *free("col2im", col2im),
    *free("unfold diagonal diag_embed tril triu rot90 trace", positional),
    *free("as_strided", as_strided, sizes=("stride",)),
    *free("view_as_real view_as_complex _neg_view", complex_parts),
)
