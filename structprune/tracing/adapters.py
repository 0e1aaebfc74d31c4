"""Adapters as peft adds them to a model: their ranks stay."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from structprune.ir.slices import Ids, SliceSpace
from structprune.meta.replica import walk

RANK = "is the rank of an adapter, which peft's configuration holds and its files are read by"


def adapted(model: nn.Module) -> tuple[str, ...]:
    """What the names of adapters' weights begin with: peft's layers list the attributes that hold them."""
    found = []
    for path, module in walk(model):
        listed = getattr(type(module), "adapter_layer_names", ())
        if isinstance(listed, tuple):
            found += [f"{path}.{name}." if path else f"{name}." for name in listed if isinstance(name, str)]
    return tuple(found)


def ranks(beginnings: tuple[str, ...], space: SliceSpace, roots: Ids) -> Iterator[Ids]:
    """The dimensions that adapters have for themselves: no other weight has these channels."""
    own = {name for name in space.by_tensor if name.startswith(beginnings)}
    shared = np.zeros(space.size, dtype=bool)
    for axis in space.axes:
        if axis.tensor not in own:
            shared[roots[axis.ids]] = True
    for axis in space.axes:
        if axis.tensor in own and not shared[roots[axis.ids]].any():
            yield axis.ids
