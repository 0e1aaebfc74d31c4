"""The names that a file may use: what ``torch.save`` writes for modules and tensors, each by its exact name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from structprune.compat import IMPORT_MAPPING, NAME_MAPPING
from structprune.report.libraries import imported

# nn.Module subclasses are let through by exact name if they are defined in one of these.
_MODULE_HOMES = (
    "torch.nn.modules",
    "torch.ao.nn",
    "torch.ao.quantization.stubs",
    "torch.ao.quantization.observer",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "timm.models",
    "timm.layers",
    "transformers.activations",
    "transformers.pytorch_utils",
    "structprune.demo",
)
# Their forwards take the name of a kernel from a configuration, and may load it, with its code, from the Hub: whoever
# allows one of transformers' configurations allows the modules that it is for.
_CONFIGURED_HOME = "transformers.models"
_ACTIVATIONS = (
    "celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid mish prelu relu "
    "relu6 rrelu selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink threshold"
)
# Helpers that the modules of these libraries keep in attributes: pure functions of tensors, plain data.
_HELPERS = frozenset(
    (
        "torch.nn.utils.parametrize.ParametrizationList",
        "torchvision.models.detection._utils.BalancedPositiveNegativeSampler",
        "torchvision.models.detection._utils.BoxCoder",
        "torchvision.models.detection._utils.BoxLinearCoder",
        "torchvision.models.detection._utils.Matcher",
        "torchvision.models.detection._utils.SSDMatcher",
        "torchvision.models.optical_flow.raft._pass_through_h",
        "torchvision.ops.boxes.box_iou",
        *(f"torch.nn.functional.{name}" for name in _ACTIVATIONS.split()),
        *(f"torch._C._nn.{name}" for name in _ACTIVATIONS.split()),
    )
)
# Called to build something again, each with arguments that are checked: see ``rebuild``.
CALLED = frozenset(
    (
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.frozenset",
        "builtins.range",
        "builtins.set",
        "builtins.slice",
        "collections.Counter",
        "collections.OrderedDict",
        "functools.partial",
        "timm.layers.format.Format",
        "torch.Size",
        "torch.device",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch.serialization._get_layout",
    )
)


@dataclass(frozen=True)
class StorageKind:
    """What ``torch.FloatStorage`` stands for in a file: values of one dtype."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Rebuilt:
    """A name that is called with checked arguments, and nothing else."""

    name: str


_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
}  # fmt: skip
_PLAIN: dict[str, Any] = {
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    **{f"torch.{name}Storage": StorageKind(dtype) for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": StorageKind(torch.uint8),
    "torch.Tensor": torch.Tensor,
    "torch.nn.parameter.Parameter": nn.Parameter,
    **{name: Rebuilt(name) for name in CALLED},
}


def full_name(argument: str) -> str:
    """The full name of a pickle's GLOBAL, which may carry Python 2's name of its module."""
    module, _, name = argument.partition(" ")
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def found(name: str, extra: frozenset[str]) -> Any:
    """What a name in a file stands for, ``None`` where it may not be used.

    Args:
        name: The full name.
        extra: Full names that the user lets through as well.
    """
    if name in extra:
        look_here()
        return _resolve(name)
    if name in _PLAIN:
        return _PLAIN[name]
    with _not_beside():
        return _resolve(name) if name in _HELPERS else _module_class(name) if is_known_home(name, extra) else None


def is_known_home(name: str, extra: frozenset[str]) -> bool:
    """Whether a class of that name is looked for in a library that is known."""
    if name.startswith(_CONFIGURED_HOME + "."):
        # Scripts that convert weights run when they are imported.
        script = not name.rpartition(".")[0].rpartition(".")[2].startswith("modeling_")
        return not script and any(other.startswith(_CONFIGURED_HOME + ".") for other in extra)
    return any(name.startswith(home + ".") for home in _MODULE_HOMES)


def is_layer(value: Any) -> bool:
    """Whether it is a class or function of those that modules keep to make or activate layers with."""
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    return callable(value) and not isinstance(value, (partial, nn.Module))


def _module_class(name: str) -> Any:
    """The ``nn.Module`` subclass of exactly this name, if it is defined where the name says; else ``None``."""
    module = name.rpartition(".")[0]
    # ``__main__`` files run when they are imported.
    if "__" in name or not all(part.isidentifier() for part in name.split(".")):
        return None
    target = _resolve(name)
    is_module = isinstance(target, type) and issubclass(target, nn.Module) and target.__module__ == module
    # These compile code that they carry along.
    return target if is_module and not issubclass(target, (torch.fx.GraphModule, torch.jit.ScriptModule)) else None


def look_here() -> None:
    """Find the user's own modules in the directory that they are in, behind everything that is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


@contextmanager
def _not_beside() -> Iterator[None]:
    """Libraries are imported from where they are installed, not from beside the file: it may have brought them."""
    before = list(sys.path)
    here = os.path.realpath(os.getcwd())
    sys.path[:] = [entry for entry in before if entry and os.path.realpath(entry) != here]
    try:
        yield
    finally:
        sys.path[:] = before


def _resolve(name: str) -> Any:
    """The object of that name, ``None`` where there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(imported(module), attribute, None)
    except ImportError:
        return None
