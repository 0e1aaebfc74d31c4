"""Copies of a model that share nothing with it: on the meta device, or with tensors of one's choice."""

from __future__ import annotations

import copy
import copyreg
import functools
from collections import OrderedDict
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from structprune.errors import ModelError

TensorMap = Callable[[str, torch.Tensor], torch.Tensor]
# A copy is of the class of its original.
Model = TypeVar("Model", bound=nn.Module)
# What ``copy.deepcopy`` returns as it is.
_ATOMIC = frozenset((type(None), bool, int, float, complex, str, bytes, type, FunctionType, torch.dtype))
# What ``Module.compile`` leaves in a module runs that very module, never a copy: ``deepcopy`` drops it too.
_COMPILED = "_compiled_call_impl"
# The methods by which a class says how it is copied.
_COPYING = (
    "__deepcopy__ __reduce__ __reduce_ex__ __getstate__ __setstate__ __new__ __getnewargs__ __getnewargs_ex__"
).split()
_PLAIN: dict[type[nn.Module], bool] = {}


def walk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """``named_modules`` as a list: the generators of deep networks cost more than what they yield."""
    found: list[tuple[str, nn.Module]] = []
    _visit("", model, found, set())
    return found


def _visit(path: str, module: nn.Module, found: list[tuple[str, nn.Module]], seen: set[int]) -> None:
    if id(module) not in seen:
        seen.add(id(module))
        found.append((path, module))
        if not module._modules:
            return  # nearly all of them
        prefix = f"{path}." if path else ""
        for name, child in module._modules.items():
            if child is not None:
                _visit(prefix + name, child, found, seen)


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by name; a tied one under its first name only, a sparse buffer not at all."""
    return _registered(walk(model))


def held_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """``named_tensors``, and the tensors that modules hold as plain attributes: tables of positions, mostly."""
    return _held(walk(model))


def _registered(modules: list[tuple[str, nn.Module]]) -> dict[str, torch.Tensor]:
    found: set[int] = set()
    named: dict[str, torch.Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        for path, module in modules:
            held = getattr(module, kind)
            if not held:
                continue  # nearly all of them have one kind at most
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in found:
                    if kind == "_buffers" and is_sparse_buffer(tensor):
                        continue
                    found.add(id(tensor))
                    named[f"{path}.{name}" if path else name] = tensor
    return named


def _held(modules: list[tuple[str, nn.Module]]) -> dict[str, torch.Tensor]:
    named = _registered(modules)
    found = {id(tensor) for tensor in named.values()}
    for path, module in modules:
        if is_of_torch(type(module)):
            continue  # holds nothing that is not registered, and there are hundreds
        for name, tensor in vars(module).items():
            if type(tensor) is torch.Tensor and id(tensor) not in found and _is_table(tensor):
                found.add(id(tensor))
                named[f"{path}.{name}" if path else name] = tensor
    return named


_OF_TORCH: dict[type, bool] = {}


def is_of_torch(kind: type) -> bool:
    """Whether a class is one of torch.nn's own layers."""
    known = _OF_TORCH.get(kind)
    if known is None:
        known = _OF_TORCH[kind] = kind.__module__.startswith("torch.nn.")
    return known


def is_sparse_buffer(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a constant of another layout than rows and columns: it is followed, and never cut."""
    return tensor.layout != torch.strided and not isinstance(tensor, nn.Parameter)


def _is_table(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.ndim > 0 and not tensor.is_quantized


def device_of(model: nn.Module) -> torch.device | None:
    """Where a model is, if its weights are anywhere."""
    tensors = named_tensors(model).values()
    return next((t.device for t in tensors if t.is_floating_point() and not t.is_meta), None)


def duplicate(model: Model, tensor_map: TensorMap, loose: Callable[[torch.Tensor], torch.Tensor]) -> Model:
    """Deep-copy a model, ``held_tensors`` through ``tensor_map``, other tensors through ``loose``.

    No weight is copied on the way: the copy's tensors are made by the two functions alone. Tables of
    tensors by device, which a forward fills, are empty in the copy.

    Raises:
        ModelError: The model holds something that cannot be copied.
    """
    modules = walk(model)
    tensors = _held(modules)
    memo: dict[int, Any] = {id(t): tensor_map(name, t) for name, t in tensors.items()}
    # ``deepcopy`` keeps the originals alive in the memo for the time of the copy.
    try:
        with torch.no_grad(), _LooseTensors(loose):
            copied = _copied_tree(model, modules, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). Pruning works on a copy: "
            "remove what cannot be copied (open files, locks, generators) from the modules, or define __deepcopy__."
        ) from error
    _check_nothing_shared(modules, copied)
    return copied


def _copied_tree(model: Model, modules: list[tuple[str, nn.Module]], memo: dict[int, Any]) -> Model:
    """``copy.deepcopy`` of a model, without its detour through pickle's protocol for every module.

    Half of the time of a plan was spent there. Modules with a way of their own to be copied go
    that way still.
    """
    shells = []
    for _, module in modules:
        if _is_plain(type(module)):
            shell = memo[id(module)] = object.__new__(type(module))
            shells.append((module, shell))
    # Children first: a module with a way of its own may use the modules below it as soon as it is copied.
    for module, shell in reversed(shells):
        held = shell.__dict__
        for name, value in vars(module).items():
            # Most of what a module holds are flags, numbers and empty tables of hooks.
            kind = type(value)
            if kind in _ATOMIC:
                held[name] = value
            elif (kind is OrderedDict or kind is dict) and not value:
                held[name] = memo.setdefault(id(value), kind())
            else:
                held[name] = _copied(value, memo)
        held.pop(_COMPILED, None)
    return copy.deepcopy(model, memo)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMIC:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        if is_kept_by_device(value):
            return made
        for key, item in value.items():
            made[_copied(key, memo)] = _copied(item, memo)
        return made
    if kind is tuple and _ATOMIC.issuperset(map(type, value)):
        return value
    if kind is set and _ATOMIC.issuperset(map(type, value)):
        return memo.setdefault(id(value), set(value))
    return copy.deepcopy(value, memo)


def is_kept_by_device(value: Any) -> bool:
    """Whether a dict holds what a forward computes once for every device: tensors under names of devices.

    They have the sizes of the network that computed them, and a forward that finds none makes
    them again, as it does on another device.
    """
    return (
        type(value) in (dict, OrderedDict)
        and bool(value)
        and all(map(_is_device, value))
        and all(isinstance(item, torch.Tensor) and not isinstance(item, nn.Parameter) for item in value.values())
    )


def _is_device(key: Any) -> bool:
    return _names_device(key) if isinstance(key, str) else isinstance(key, torch.device)


@functools.cache
def _names_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether a class is copied by copying what its instances' ``__dict__`` holds."""
    known = _PLAIN.get(kind)
    if known is None:
        owners = {name: next((b for b in kind.__mro__ if name in vars(b)), None) for name in _COPYING}
        # torch.nn's own only fill in what files of older versions lack; a recurrent layer does more.
        restores = owners.pop("__setstate__")
        filled_in = restores is not None and restores.__module__.startswith("torch.nn.modules.")
        known = _PLAIN[kind] = (
            all(owner in (None, object, nn.Module) for owner in owners.values())
            and (filled_in and not issubclass(kind, nn.RNNBase))
            and kind not in copyreg.dispatch_table
            and not any(vars(base).get("__slots__") for base in kind.__mro__)
        )
    return known


def _check_nothing_shared(modules: list[tuple[str, nn.Module]], copied: nn.Module) -> None:
    """A module whose ``__deepcopy__`` returns itself would be cut with the copy."""
    if all(_is_plain(type(module)) for _, module in modules):
        return
    own = {id(module) for _, module in modules}
    for path, module in walk(copied):
        if id(module) in own:
            raise ModelError(f"{path or 'the model'} is not copied by copy.deepcopy: its __deepcopy__ returns itself.")


def meta_replica(model: Model) -> Model:
    """A copy of a model on the meta device; small integers and booleans are copied for real."""
    return duplicate(model, lambda _name, tensor: to_meta(tensor), to_meta)


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without storage, or a CPU copy of integers and booleans: code may read those."""
    if tensor.layout != torch.strided:
        return tensor.detach().cpu().clone()
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta:
        copied = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    else:
        copied = tensor.detach().cpu().clone()
    return like_parameter(tensor, copied)


def like_parameter(original: torch.Tensor, copied: torch.Tensor) -> torch.Tensor:
    """Make ``copied`` a parameter (of the same class, where that takes plain data) if the original is one."""
    if copied.is_inference() and not torch.is_inference_mode_enabled():
        copied = copied.clone()  # one that was made in inference mode never takes part in autograd
    if isinstance(original, nn.Parameter):
        return nn.Parameter(copied, requires_grad=original.requires_grad)
    return copied.requires_grad_(original.requires_grad) if original.is_leaf else copied


class _LooseTensors(TorchFunctionMode):
    """Sends the deep copy of every tensor that is no parameter or buffer through a function."""

    def __init__(self, convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._convert = convert

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._convert(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))
