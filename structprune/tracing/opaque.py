"""Modules that a registry leaves alone run as one operator each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from structprune.compat import dispatch_state, dispatched_as, tree_flatten, tree_unflatten
from structprune.ir.tensors import memory_of
from structprune.meta.replica import walk
from structprune.ops.boundary import run_opaque
from structprune.tracing.outputs import tensors_within

# Where a module keeps what it registers.
_REGISTERED = frozenset(("_parameters", "_buffers", "_modules", "forward"))


@contextmanager
def opaque_modules(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[None]:
    """Let the modules of these classes run as one operator each; the model is a copy, and as it was at the end."""
    found = [(path, module) for path, module in walk(model) if isinstance(module, kinds)] if kinds else []
    before = [vars(module).get("forward") for _, module in found]
    try:
        for path, module in found:
            module.forward = partial(_as_operator, path, module, module.forward)
        yield
    finally:
        for (_, module), own in zip(found, before, strict=True):
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own


def _as_operator(path: str, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given, structure = tree_flatten((args, kwargs))
    at = [i for i, value in enumerate(given) if isinstance(value, torch.Tensor)]
    returned: list[Any] = []
    state = dispatch_state()

    def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        values = list(given)
        for i, tensor in zip(at, tensors, strict=False):
            values[i] = tensor
        own_args, own_kwargs = tree_unflatten(values, structure)
        with dispatched_as(state), torch.no_grad():
            returned[:] = tree_flatten(forward(*own_args, **own_kwargs))
        # An operator may not return what it was given.
        memory = {memory_of(tensor) for tensor in tensors if tensor.numel()}
        outputs = [value for value in returned[0] if isinstance(value, torch.Tensor)]
        return [t.clone() if memory_of(t) in memory else t for t in outputs]

    held = {name: value for name, value in vars(module).items() if name not in _REGISTERED}
    own = [*module.parameters(), *module.buffers(), *tensors_within(held)]
    own += tensors_within([value for value in given if not isinstance(value, torch.Tensor)])
    outputs = iter(run_opaque([*(given[i] for i in at), *own], path, run))
    values, structure = returned
    return tree_unflatten([next(outputs) if isinstance(v, torch.Tensor) else v for v in values], structure)
