"""Tensors that stand for others without keeping their values."""

from __future__ import annotations

from typing import Any

import torch

from structprune.compat import StorageWeakRef, tree_map_only


class StandIns:
    """Makes tensors on the meta device that lie in memory as others do: where two share it, so do their stand-ins."""

    def __init__(self) -> None:
        self._memory: dict[int, tuple[StorageWeakRef, torch.Tensor]] = {}

    def of(self, values: Any) -> Any:
        """The same nested arguments or results of one operator, every tensor replaced by its stand_in."""
        made: dict[int, torch.Tensor] = {}

        def stand_in(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in made:
                made[id(tensor)] = self._stand_in(tensor)
            return made[id(tensor)]

        return tree_map_only(torch.Tensor, stand_in, values)

    def _stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout != torch.strided:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        known = self._memory.get(storage.cdata)
        if known is None or known[0].expired() or known[1].dtype != tensor.dtype:  # type: ignore[no-untyped-call]
            entries = tensor.untyped_storage().nbytes() // tensor.element_size()
            known = self._memory[storage.cdata] = storage, torch.empty(entries, dtype=tensor.dtype, device="meta")
        return known[1].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
