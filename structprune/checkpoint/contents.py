"""What a file of ours says beside its tensors: the plan, memory layouts, extra state, and a digest of it all."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from structprune.errors import CheckpointError
from structprune.plan.plan import Plan

PLAN = "structprune.plan"
LAYOUTS = "structprune.layouts"
EXTRA_STATE = "structprune.extra_state"
DIGEST = "structprune.digest"
KEYS = (PLAN, LAYOUTS, EXTRA_STATE, DIGEST)
# The plan stays readable where it is less than this share of the weights, and is compressed beside smaller ones.
_SMALL = 1 / 400
# As much as safetensors allows for a header.
_LARGEST_PLAN = 100_000_000


def packed_plan(text: str, weight_bytes: int) -> str:
    """A plan's JSON as metadata: as it is, or compressed (base 85 of zlib) where it would show in the file's size."""
    if len(text) <= weight_bytes * _SMALL:
        return text
    return base64.b85encode(zlib.compress(text.encode(), 9)).decode()


def unpacked_plan(text: str) -> Plan:
    """The plan in a file's metadata.

    Raises:
        CheckpointError: It cannot be unpacked, or unpacks to more than a plan can be.
        PlanError: It is no plan.
    """
    if not text.lstrip().startswith("{"):
        text = _inflated(text)
    return Plan.from_json(text)


def _inflated(text: str) -> str:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(base64.b85decode(text), _LARGEST_PLAN).decode()
    except (ValueError, zlib.error) as error:
        raise CheckpointError(f"{PLAN} is neither JSON nor compressed JSON ({error})") from error
    if not stream.eof:
        raise CheckpointError(f"{PLAN} unpacks to more than {_LARGEST_PLAN:,} bytes, or breaks off")
    return plain


def dim_order(tensor: torch.Tensor) -> list[int] | None:
    """The dimensions from the widest stride to the narrowest, where a tensor does not lie in memory as shapes say."""
    strides = list(tensor.stride())
    order = sorted(range(tensor.ndim), key=lambda d: (-strides[d], d))
    if order == list(range(tensor.ndim)):
        return None
    lying = torch.empty_permuted(tensor.shape, order, device="meta")
    return order if lying.stride() == tensor.stride() else None


def laid_out(tensor: torch.Tensor, order: list[int] | None) -> torch.Tensor:
    """The values in the given order of dimensions."""
    if order is None:
        return tensor
    return torch.empty_permuted(tensor.shape, order, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def read_layouts(text: str, ranks: Mapping[str, int]) -> dict[str, list[int]]:
    """The orders of dimensions in a file's metadata, by tensor.

    Raises:
        CheckpointError: One is not an order of a tensor's dimensions.
    """
    layouts = read_json(text, LAYOUTS)
    for name, order in layouts.items():
        if not isinstance(order, list) or sorted(map(repr, order)) != sorted(map(repr, range(ranks.get(name, -1)))):
            raise CheckpointError(f"{LAYOUTS} has no order of dimensions for {name!r:.100}")
    return layouts


def read_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object that a file holds.

    Raises:
        CheckpointError: It is none.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is no JSON ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{what} is a {type(found).__name__}, expected a JSON object")
    return found


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a tensor on the CPU, row by row."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")


class Digest:
    """SHA-256 over a file's tensors and metadata, whatever the order in which they pass by."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, list[int], str]] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take note of a tensor."""
        values = hashlib.sha256(raw_bytes(tensor)).hexdigest()
        self._seen[name] = str(tensor.dtype), list(tensor.shape), values

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that did not pass by yet."""
        return [name for name in names if name not in self._seen]

    def result(self, metadata: Mapping[str, str]) -> str:
        """The digest of all that passed by, with the rest of the metadata."""
        rest = {key: value for key, value in metadata.items() if key != DIGEST}
        return hashlib.sha256(json.dumps([rest, self._seen], sort_keys=True).encode()).hexdigest()
