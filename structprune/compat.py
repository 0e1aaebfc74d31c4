"""The names of PyTorch that are private, or that not every supported version has: nothing else uses them.

Supported is PyTorch 2.6 and newer. Whether a version has something is asked of it, never read from its number. What is
private and has no public counterpart stands here with the reason why it is needed; when a version moves it, this is the
file to mend. Used where they are needed are the tables that every ``nn.Module`` has (``_modules``, ``_parameters``,
``_buffers``), which all that copies modules goes by, and the names of operators.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

# Operators that run functions of the model's (flex_attention, cond): they are refused by name.
from torch._ops import HigherOrderOperator, OpOverload

# How files of Python 2 name what Python 3 has elsewhere, as ``torch.load`` translates it.
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

# A storage that is known again and not kept alive: a freed one's address is given to the next.
from torch.multiprocessing.reductions import StorageWeakRef

# The one way to see every operator that runs. Documented in "Extending PyTorch", private by its path.
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

# Nested arguments and results as PyTorch itself walks them. ``torch.utils.pytree`` is not in every version.
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

__all__ = [
    "FLOAT8_E8M0",
    "IMPORT_MAPPING",
    "NAME_MAPPING",
    "BatchNorm",
    "Convolution",
    "DisableTorchFunction",
    "HigherOrderOperator",
    "NormWithStatistics",
    "OpOverload",
    "StorageWeakRef",
    "TorchDispatchMode",
    "accelerator",
    "autograd_node",
    "dispatch_state",
    "dispatched_as",
    "dynamo",
    "fake_tensors",
    "gradient_hooks",
    "is_traceable_wrapper_subclass",
    "is_view",
    "overloads_of",
    "schema_of",
    "storage_key",
    "tree_flatten",
    "tree_leaves",
    "tree_map_only",
    "tree_unflatten",
]

# Base classes that ``isinstance`` is asked with: those of every dimension, and lazy and synchronised ones.
Convolution = nn.modules.conv._ConvNd
BatchNorm = nn.modules.batchnorm._BatchNorm
NormWithStatistics = nn.modules.batchnorm._NormBase

# Within a mode for operators, our own calls are no calls of the model's. ``torch.overrides`` has no such context.
DisableTorchFunction = torch._C.DisableTorchFunction

# Scales of the microscaling formats, from 2.7 on.
FLOAT8_E8M0: torch.dtype | None = getattr(torch, "float8_e8m0fnu", None)


def accelerator() -> torch.device | None:
    """The accelerator of this machine, if one can be used.

    ``current_accelerator(check_available=True)`` says so from 2.7 on; before it answers for the build.
    """
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


@contextmanager
def dispatched_as(state: Any) -> Iterator[None]:
    """Run operators as where ``dispatch_state`` was asked: with autograd, autocast and function transforms in force.

    Within an operator they are off, and nothing public turns them on again.
    """
    included, excluded = state
    with torch._C._ForceDispatchKeyGuard(included, excluded):
        yield


def dispatch_state() -> Any:
    """What of the dispatcher is in force here, but for Python modes: they see the operator, not what it is made of."""
    keys = torch._C.DispatchKey
    included = torch._C._dispatch_tls_local_include_set().remove(keys.Python).remove(keys.PythonTLSSnapshot)
    return included, torch._C._dispatch_tls_local_exclude_set()


def storage_key(tensor: torch.Tensor) -> int:
    """A number for the memory that a strided tensor lies in, of views alike, for as long as it lives.

    ``data_ptr`` is 0 for all tensors without values.
    """
    key: int = tensor.untyped_storage()._cdata
    return key


def autograd_node() -> Any:
    """The step of the backward that runs, or ``None``; the only way to know where an operator of it belongs."""
    return torch._C._current_autograd_node()


def dynamo() -> ModuleType | None:
    """The compiler's front, if it was imported: nobody has a compiled module otherwise, and importing takes seconds."""
    return sys.modules.get("torch._dynamo.eval_frame")


def fake_tensors() -> ModuleType | None:
    """The module of FakeTensor, if it was imported: nobody holds one otherwise, and importing takes a while."""
    return sys.modules.get("torch._subclasses.fake_tensor")


def schema_of(operator: Any) -> Any:
    """An operator's schema: its full name, its arguments, and which of them it writes. There is no public way."""
    return operator._schema


def overloads_of(operator: Any) -> Any:
    """The operator that an overload is one of, as torch's table of FLOPs knows it."""
    return operator._overloadpacket


def is_view(tensor: torch.Tensor) -> bool:
    """Whether a tensor shows the memory of another one."""
    return tensor._is_view()


def gradient_hooks(tensor: torch.Tensor) -> list[Any]:
    """What ``Tensor.register_hook`` was given."""
    return list((tensor._backward_hooks or {}).values())
