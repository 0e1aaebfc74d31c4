"""What torch.nn's recurrent layers take for granted and not every forward shows: their state comes back to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from structprune.ir.slices import Coupling, Ids, Labels
from structprune.meta.replica import named_tensors, walk

# Where the wrappers of torch.nn.utils (parametrizations, weight norm, spectral norm, pruning) keep what the weight of
# this name is computed from.
_BEHIND = ("parametrizations.{}.original", "parametrizations.{}.original1", "{}_v", "{}_orig")


class StoredNames:
    """Under which names a model's tensors are known: a tied one is known under its first only."""

    def __init__(self, model: nn.Module) -> None:
        named = named_tensors(model)
        self._names = {id(tensor): name for name, tensor in named.items()}
        self._shapes = {name: tensor.shape for name, tensor in named.items()}

    def of(self, module: nn.Module, path: str, name: str) -> str | None:
        """The tensor that ``name`` of the module at ``path`` is, or is computed from; ``None`` if it is not found."""
        outer, _, last = name.rpartition(".")
        owner = module.get_submodule(outer)
        prefix = ".".join(filter(None, (path, outer)))
        wrapped = parametrize.is_parametrized(owner, last)
        tensor = None if wrapped else getattr(owner, last, None)
        if isinstance(tensor, torch.Tensor) and id(tensor) in self._names:
            return self._names[id(tensor)]
        for pattern in _BEHIND:
            behind = ".".join(filter(None, (prefix, pattern.format(last))))
            shape = self._shapes.get(behind)
            if shape is not None and (tensor is None or tensor.shape == shape):
                return behind
        return None


def couple_states(model: nn.Module, labels: Mapping[str, Labels], coupling: Coupling) -> None:
    """Couple every hidden unit's rows with the column that reads the unit's state.

    A forward of one step, or one whose first state is made by other layers, reads no state that the layer made, and
    would let either go alone: the next step would not run.
    """
    stored: StoredNames | None = None
    for path, module in walk(model):
        if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            continue
        stored = stored or StoredNames(model)
        for recurrent, projection in _recurrent_weights(module):
            reads = stored.of(module, path, recurrent)
            makes = stored.of(module, path, projection) if projection else reads
            if reads is None or makes is None:
                continue
            rows, columns = labels[reads][:2]
            if projection:
                _couple_gates(coupling, rows, labels[makes][1])
                rows = labels[makes][0]
            _couple_gates(coupling, rows, columns)


def _recurrent_weights(module: nn.RNNBase | nn.RNNCellBase) -> Iterator[tuple[str, str]]:
    """The names of the weights that read the state, with those that project it, of every layer and direction."""
    if isinstance(module, nn.RNNCellBase):
        yield "weight_hh", ""
        return
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            yield f"weight_hh_l{layer}{suffix}", f"weight_hr_l{layer}{suffix}" if module.proj_size else ""


def _couple_gates(coupling: Coupling, rows: Ids | None, units: Ids | None) -> None:
    """Couple the rows of all gates, which lie one gate after the other, with the units that they compute."""
    if rows is not None and units is not None and len(units) and len(rows) % len(units) == 0:
        coupling.couple(rows, np.tile(units, len(rows) // len(units)))
