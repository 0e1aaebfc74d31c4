"""Which tensors of a model the names in a file mean: tied ones have several, and not all are in every file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from structprune.errors import CheckpointError, nearest
from structprune.meta.replica import named_tensors, walk

_SHOWN = 5


class Names:
    """The tensors of a model by every name that they have.

    Attributes:
        tensors: The tensors by their first name.
        first: The first name, by every name.
        non_persistent: First names of the buffers that a state_dict leaves out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors = named_tensors(model)
        by_identity = {id(tensor): name for name, tensor in self.tensors.items()}
        self.first: dict[str, str] = {}
        persistent: set[str] = set()
        # Every path, also those to a module that is there twice.
        for path, module in model.named_modules(remove_duplicate=False):
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and id(tensor) in by_identity:
                    first = self.first[f"{path}.{name}" if path else name] = by_identity[id(tensor)]
                    if name not in module._non_persistent_buffers_set:
                        persistent.add(first)
        self.non_persistent = set(self.tensors) - persistent

    def match(self, stored: Iterable[str], where: object) -> dict[str, str]:
        """The first name of the model's tensor for every name in a file.

        Raises:
            CheckpointError: A name is unknown to the model, or a tensor of its state is missing.
        """
        names = list(stored)
        unknown = [name for name in names if name not in self.first]
        missing = sorted(self.tensors.keys() - self.non_persistent - {self.first.get(name) for name in names})
        if unknown or missing:
            said = [f"{where} does not fit the model."]
            if missing:
                said.append(f"It lacks {_listed(missing)}{nearest(missing[0], unknown)}")
            if unknown:
                said.append(f"The model has no {_listed(unknown)}{nearest(unknown[0], missing or self.first)}")
            raise CheckpointError(" ".join([*said, "Give the architecture that the weights are of, with their names."]))
        return {name: self.first[name] for name in names}


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(f"{n:.200}" for n in names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def own_states(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold state that is no parameter or buffer, which they hand over themselves."""
    return {
        path: module for path, module in walk(model) if type(module).get_extra_state is not nn.Module.get_extra_state
    }


def same_kind(one: torch.dtype, other: torch.dtype) -> bool:
    """Whether values of one dtype may stand for the other: any two of floating point, or the same."""
    return one == other or (one.is_floating_point and other.is_floating_point)


def check_shapes(expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse tensors of other shapes.

    Raises:
        CheckpointError: With the first that differs.
    """
    for name, shape in got.items():
        if name in expected and shape != expected[name]:
            raise CheckpointError(f"{where}: {name} is {list(shape)}, expected {list(expected[name])}.")
