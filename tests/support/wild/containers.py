"""What a network returns: every container that people put outputs in."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor
Two = namedtuple("Two", "logits extra")


class Typed(NamedTuple):
    logits: Tensor
    loss: Tensor | None
    extra: Tensor


@dataclass
class Result:
    logits: Tensor
    extra: Tensor | None = None
    loss: Tensor | None = None


class ModelOutput(OrderedDict):
    """A dict whose entries are attributes too, as transformers returns it."""

    def __init__(self, **entries: Any) -> None:
        super().__init__((k, v) for k, v in entries.items() if v is not None)
        for name, value in entries.items():
            object.__setattr__(self, name, value)


CONTAINERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda a, b: a + 0 * b.sum(),
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"logits": a, "extra": b},
    "ordered dict": lambda a, b: OrderedDict(logits=a, extra=b),
    "named tuple": Two,
    "typed named tuple": lambda a, b: Typed(a, None, b),
    "dataclass": Result,
    "dataclass with none": lambda a, b: Result(a),
    "model output": lambda a, b: ModelOutput(logits=a, extra=b, loss=None),
    "namespace": lambda a, b: SimpleNamespace(logits=a, extra=b),
    "nested": lambda a, b: {"heads": [(a,), {"extra": b, "nothing": None}], "count": 3},
    "with none": lambda a, b: (a, None, [b, None]),
    "detached": lambda a, b: (a, b.detach()),
    "loss": lambda a, b: (a.logsumexp(-1).mean(), b),
}


def tensors(output: Any) -> Iterator[Tensor]:
    """All tensors of an output, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors(value)
    elif is_dataclass(output):
        for f in fields(output):
            yield from tensors(getattr(output, f.name))
    elif isinstance(output, SimpleNamespace):
        yield from tensors(vars(output))
