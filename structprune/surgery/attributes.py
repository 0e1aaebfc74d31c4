"""The sizes that torch.nn's own layers hold, and how they follow a cut."""

from __future__ import annotations

from typing import Any

from torch import nn

from structprune.graph.groups import DependencyGraph
from structprune.graph.record import SizeHeld
from structprune.graph.slices import Mask
from structprune.surgery.cut import AttributeChange

_HELD: dict[type[nn.Module], frozenset[str]] = {
    nn.modules.conv._ConvNd: frozenset(("in_channels", "out_channels", "groups")),
    nn.Linear: frozenset(("in_features", "out_features")),
    nn.modules.batchnorm._NormBase: frozenset(("num_features",)),
    nn.LayerNorm: frozenset(("normalized_shape",)),
    nn.RMSNorm: frozenset(("normalized_shape",)),
    nn.GroupNorm: frozenset(("num_groups", "num_channels")),
    nn.PReLU: frozenset(("num_parameters",)),
    nn.Embedding: frozenset(("embedding_dim",)),
}


def layer_changes(model: nn.Module, graph: DependencyGraph, present: Mask) -> tuple[AttributeChange, ...]:
    """The attributes of torch.nn's layers that the cut changes.

    The rules say which sizes each operator was given (``Call.size``); the layer that ran the
    operator holds them.
    """
    modules = dict(model.named_modules())
    changes: dict[tuple[str, str], AttributeChange] = {}
    for record in graph.records:
        for node in record.nodes:
            names = _held_by(type(modules[node.module])) if node.sizes else ()
            for size in node.sizes:
                if size.name in names:
                    held = getattr(modules[node.module], size.name)
                    known = changes.get((node.module, size.name))
                    new = _followed(held, known.new if known else held, size, present)
                    if new is not None and new != held:
                        changes[node.module, size.name] = AttributeChange(node.module, size.name, held, new)
    return tuple(changes.values())


def _held_by(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset().union(*(names for base, names in _HELD.items() if issubclass(kind, base)))


def _followed(held: Any, so_far: Any, size: SizeHeld, present: Mask) -> Any:
    """The new value of an attribute, or ``None`` if it does not count these slices."""
    if size.entry is not None:
        entries = list(so_far)
        entries[size.entry] = int(present[size.ids].sum())
        return tuple(entries)
    if held == len(size.ids):
        return int(present[size.ids].sum())
    if isinstance(held, int) and held and len(size.ids) % held == 0:
        # Instance norm hands (1, batch * channels) on: the channels come once per sample.
        return int(present[size.ids[:held]].sum())
    return None
