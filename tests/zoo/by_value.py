"""The oracle of the tests on a network of the zoo, whoever pruned it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from tests.support import oracle
from tests.zoo.calls import Bound, Call
from tests.zoo.process import described


class _Weight(NamedTuple):
    """A weight, its bias, and which dimension of the weight is summed over."""

    name: str
    bias: str
    inputs: int


def by_value(dense: nn.Module, pruned: nn.Module, call: Call) -> dict[str, Any]:
    """The oracle's verdict on a randomised network and what is left of it.

    The oracle masks what layers read. Where channels of queries and keys went, which an operator without weights
    sums over, what layers produce must be masked too: right is what agrees with either.
    """
    big, small = Bound(dense, call).eval(), Bound(pruned, call).eval()
    # Of layers that the oracle does not know.
    raw = {w.name: w.inputs for w in _weights(big) if not isinstance(big.get_submodule(_owner(w.name)), _KNOWN)}
    try:
        return {"oracle": "right", "oracle_power": oracle.check(big, small, raw_inputs=raw)}
    except oracle.WrongCut as first:
        try:
            oracle.check(_silenced(big, small), small, raw_inputs=raw)
        except oracle.WrongCut:
            return {"oracle": described(first)}
    return {"oracle": "right", "oracle_power": None}


_KNOWN = (nn.modules.conv._ConvNd, nn.Linear)


def _silenced(dense: nn.Module, pruned: nn.Module) -> nn.Module:
    """The dense network whose layers produce zeros in the channels that the pruned one does not have."""
    kept = oracle.kept_slices(dense, pruned)
    silent = copy.deepcopy(dense)
    parameters = dict(silent.named_parameters())
    with torch.no_grad():
        for weight in _weights(silent):
            outputs = 1 - weight.inputs
            for name, dim in ((weight.name, outputs), (weight.bias, 0)):
                if name in parameters and dim in kept.get(name, {}):
                    gone = torch.ones(parameters[name].shape[dim], dtype=torch.bool)
                    gone[kept[name][dim]] = False
                    parameters[name].index_fill_(dim, gone.nonzero().flatten(), 0.0)
    return silent


def _weights(model: nn.Module) -> Iterator[_Weight]:
    """The weights of layers: convolutions, linear ones, attention's projections, libraries' own linear."""
    for path, module in model.named_modules():
        if isinstance(module, _KNOWN):
            yield _Weight(f"{path}.weight", f"{path}.bias", 0 if getattr(module, "transposed", False) else 1)
        elif isinstance(module, nn.MultiheadAttention):
            yield _Weight(f"{path}.in_proj_weight", f"{path}.in_proj_bias", 1)
        elif type(module).__name__ == "Conv1D":
            yield _Weight(f"{path}.weight", f"{path}.bias", 0)
        elif type(module).__name__ == "Linear":  # a library's own
            yield _Weight(f"{path}.weight", f"{path}.bias", 1)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
