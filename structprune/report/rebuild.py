"""Makes what a pickle asks for, from arguments that are checked first.

A saved module holds tensors, containers and a few plain objects; each has one function here. None
calls what it is given.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from types import FunctionType
from typing import Any

import torch
from torch import nn

from structprune.report.allowed import CALLED, Rebuilt, is_layer
from structprune.report.libraries import imported
from structprune.report.limits import Budget, Refused
from structprune.report.storages import Storage

_ATOMS = (str, bytes, int, float, bool, type(None), complex)
# What may be a key, or in a tuple that is one: the rest hashes all that is in it.
_KEYS = (*_ATOMS, torch.dtype, torch.device, torch.Tensor, nn.Module, type, FunctionType)
_LONGEST_KEY = 16
_LONGEST_RANGE = 1_000_000
# The product of the numbers that a partial keeps: a layer that it makes cannot be large.
_LARGEST_PARTIAL = 1 << 20


class Rebuild:
    """One function for each name in ``allowed.CALLED``, within a budget.

    Args:
        budget: What all of the file may take.
        values_known: Whether storages have their values when tensors are made of them.
    """

    def __init__(self, budget: Budget, *, values_known: bool) -> None:
        self._budget = budget
        self._values_known = values_known
        made = {name: getattr(self, "_" + name.rpartition(".")[2].lstrip("_").lower()) for name in CALLED}
        self._functions: Mapping[str, Callable[..., Any]] = made

    def __call__(self, name: str, arguments: Any) -> Any:
        """What the function of that name gives."""
        try:
            if type(arguments) is tuple:
                return self._functions[name](*arguments)
        except (TypeError, AttributeError, KeyError) as error:
            raise Refused(f"it calls {name} in a way that torch.save does not use") from error
        raise Refused(f"it calls {name} in a way that torch.save does not use")

    # Containers and plain objects.

    def check_key(self, key: Any) -> Any:
        """A key whose hash takes a moment, and which few others share."""
        if type(key) is not str:
            self._budget.spend_keys(1)
            parts = key if isinstance(key, tuple) else (key,)
            if len(parts) > _LONGEST_KEY or not all(isinstance(part, _KEYS) for part in parts):
                raise Refused(f"it has a {type(key).__name__} for a key, which torch.save does not write")
        return key

    def _keys(self, items: Any) -> list[Any]:
        _expect(type(items) is list)
        self._budget.spend(len(items))
        return [self.check_key(item) for item in items]

    def _set(self, items: Any) -> set[Any]:
        return set(self._keys(items))

    def _frozenset(self, items: Any) -> frozenset[Any]:
        return frozenset(self._keys(items))

    def _ordereddict(self, pairs: Any = None) -> OrderedDict[Any, Any]:
        made: OrderedDict[Any, Any] = OrderedDict()
        for pair in [] if pairs is None else pairs:
            _expect(type(pairs) is list and type(pair) in (list, tuple) and len(pair) == 2)
            self._budget.spend(1)
            made[self.check_key(pair[0])] = pair[1]
        return made

    def _counter(self, counts: Any = None) -> Counter[Any]:
        _expect(counts is None or type(counts) is dict)
        self._budget.spend(len(counts or ()))
        return Counter(counts)

    def _encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        _expect(type(text) is str and encoding in ("latin1", "latin-1"))
        self._budget.spend(len(text) // 16)
        return text.encode("latin1")  # type: ignore[no-any-return]

    def _bytearray(self, data: Any = b"") -> bytearray:
        _expect(type(data) is bytes)
        self._budget.spend(len(data) // 16)
        return bytearray(data)

    def _complex(self, real: Any, imaginary: Any) -> complex:
        _expect(type(real) is float and type(imaginary) is float)
        return complex(real, imaginary)

    def _slice(self, *bounds: Any) -> slice:
        _expect(all(type(bound) in (int, type(None)) for bound in bounds))
        return slice(*bounds)

    def _range(self, *bounds: Any) -> range:
        _expect(all(type(bound) is int for bound in bounds))
        made = range(*bounds)
        if made and (made[-1] - made[0]) // made.step >= _LONGEST_RANGE:
            raise Refused(f"it makes a range of more than {_LONGEST_RANGE:,} numbers")
        return made

    def _size(self, sizes: Any = ()) -> torch.Size:
        self._budget.spend(len(_ints(sizes)))
        return torch.Size(sizes)

    def _device(self, *name: Any) -> torch.device:
        _expect(type(name[0]) is str and all(type(index) is int for index in name[1:]))
        return torch.device(*name)

    def _get_layout(self, name: Any) -> torch.layout:
        _expect(type(name) is str)
        layout = getattr(torch, name.rpartition(".")[2])
        _expect(isinstance(layout, torch.layout))
        return layout  # type: ignore[no-any-return]

    def _format(self, name: Any) -> Any:
        _expect(type(name) is str)
        return imported("timm.layers.format").Format(name)

    def _partial(self, function: Any) -> Any:
        if not is_layer(function) or isinstance(function, Rebuilt):
            raise Refused("it wraps something else than a layer in a functools.partial")
        return partial(function)

    def set_partial(self, made: partial[Any], state: Any) -> None:
        """A partial is given its function and what it keeps: a call for later, of a layer and with small numbers."""
        _expect(type(state) is tuple and len(state) == 4)
        function, arguments, keywords, more = state
        _expect(type(arguments) is tuple and type(keywords) is dict and type(more) in (dict, type(None)) and not more)
        self._partial(function)
        numbers: list[int] = []
        for value in (*arguments, *keywords.values()):
            for part in value if isinstance(value, (tuple, list)) else (value,):
                _expect(isinstance(part, (*_ATOMS, torch.dtype)) or is_layer(part) or _is_simple_partial(part))
                numbers += [max(abs(part), 1)] if type(part) is int else []
        self._budget.spend(len(numbers))
        if len(numbers) > 64 or prod(numbers) > _LARGEST_PARTIAL:
            raise Refused(f"it keeps a functools.partial of {function.__name__} with large numbers")
        made.__setstate__((function, arguments, keywords, None))  # type: ignore[attr-defined]

    # Tensors.

    def _rebuild_tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> torch.Tensor:
        _expect(isinstance(storage, Storage))
        return self._view(storage, storage.dtype, offset, size, stride)

    def _rebuild_tensor_v2(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None
    ) -> torch.Tensor:
        _expect(isinstance(storage, Storage) and type(grad) is bool and not hooks and not metadata)
        return self._view(storage, storage.dtype, offset, size, stride).requires_grad_(grad)

    def _rebuild_tensor_v3(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        grad: Any,
        hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> torch.Tensor:
        _expect(isinstance(dtype, torch.dtype) and isinstance(storage, Storage) and type(grad) is bool)
        _expect(not hooks and not metadata)
        return self._view(storage, dtype, offset, size, stride).requires_grad_(grad)

    def _view(self, storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> torch.Tensor:
        _expect(type(offset) is int and offset >= 0 and len(_ints(size)) == len(_ints(stride)))
        stored = storage.values.nbytes() // dtype.itemsize
        last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
        if prod(size) and last >= stored:
            raise Refused("a tensor reaches behind the values that are stored for it")
        self._budget.spend(8 + len(size))
        self._budget.view(size, dtype.itemsize, stored)
        return torch.empty(0, dtype=dtype).set_(storage.values, offset, tuple(size), tuple(stride))

    def _rebuild_parameter(self, data: Any, grad: Any, hooks: Any) -> nn.Parameter:
        _expect(isinstance(data, torch.Tensor) and type(grad) is bool and not hooks)
        self._budget.spend(8)
        return nn.Parameter(data, grad)

    def _rebuild_parameter_with_state(self, data: Any, grad: Any, hooks: Any, state: Any) -> torch.Tensor:
        return _with_attributes(self._rebuild_parameter(data, grad, hooks), state)

    def _rebuild_from_type_v2(self, function: Any, kind: Any, arguments: Any, state: Any) -> torch.Tensor:
        _expect(isinstance(function, Rebuilt) and function.name.startswith("torch._utils._rebuild_"))
        made = self(function.name, arguments)
        _expect(isinstance(made, torch.Tensor) and type(made) is kind)
        return _with_attributes(made, state)

    def _rebuild_sparse_tensor(self, layout: Any, data: Any) -> torch.Tensor:
        _expect(layout is torch.sparse_coo and type(data) is tuple and 3 <= len(data) <= 4)
        indices, values, size = data[:3]
        _expect(isinstance(indices, torch.Tensor) and isinstance(values, torch.Tensor))
        if not self._values_known:
            raise Refused("it holds a sparse tensor in the format from before PyTorch 1.6")
        self._budget.view(_ints(size), values.dtype.itemsize, values.numel())
        return torch.sparse_coo_tensor(indices, values, tuple(size), check_invariants=True)

    def _rebuild_meta_tensor_no_storage(self, dtype: Any, size: Any, stride: Any, grad: Any) -> torch.Tensor:
        _expect(isinstance(dtype, torch.dtype) and type(grad) is bool and len(_ints(size)) == len(_ints(stride)))
        self._budget.spend(8 + len(size))
        if max(size, default=0) > 1 << 20:
            raise Refused("it holds a tensor without values, of a size that no network has")
        return torch.empty_strided(size, stride, dtype=dtype, device="meta", requires_grad=grad)


def _expect(condition: bool) -> None:
    if not condition:
        raise TypeError


def _is_simple_partial(value: Any) -> bool:
    """A partial without another one inside: these are not taken apart safely however deep they are."""
    return isinstance(value, partial) and not any(
        isinstance(kept, partial) for kept in (*value.args, *value.keywords.values())
    )


def _ints(sizes: Any) -> tuple[int, ...]:
    _expect(isinstance(sizes, (tuple, list)) and all(type(s) is int and s >= 0 for s in sizes) and len(sizes) <= 64)
    return tuple(sizes)


def _with_attributes(tensor: torch.Tensor, state: Any) -> torch.Tensor:
    """Attributes that somebody hung on a tensor, none in the place of what a tensor has."""
    parts = state if type(state) is tuple else (state, None)
    _expect(len(parts) == 2 and not parts[1])
    for name, value in (parts[0] or {}).items():
        _expect(type(name) is str and not hasattr(type(tensor), name) and isinstance(value, _ATOMS))
        setattr(tensor, name, value)
    return tensor
