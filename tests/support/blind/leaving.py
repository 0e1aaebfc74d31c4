"""Tensors leave PyTorch, and come back in another order or with other values."""

from __future__ import annotations

import ctypes
import io
import pickle
from array import array

import numpy as np
import torch

from tests.support.blind.network import Tensor, blind

_TABLE = np.random.default_rng(3).normal(size=64)


@blind
def numpy_sorts_into_empty_memory(h: Tensor) -> Tensor:
    out = torch.empty_like(h)
    out.detach().numpy()[:] = np.sort(h.detach().numpy(), -1)
    return out


@blind
def numpy_writes_into_the_activation(h: Tensor) -> Tensor:
    h.detach().numpy()[:, ::2] *= 2
    return h


@blind
def numpy_writes_one_channel(h: Tensor) -> Tensor:
    h = h.clone()
    h.detach().numpy()[:, 0] = 0.5
    return h


@blind
def numpy_out_argument(h: Tensor) -> Tensor:
    out = torch.zeros(h.shape, dtype=h.dtype)
    np.cumsum(h.detach().numpy(), axis=-1, out=out.numpy())
    return out


@blind
def array_interface(h: Tensor) -> Tensor:
    out = torch.empty_like(h).detach()
    np.copyto(np.asarray(out), np.flip(np.asarray(h.detach()), -1) * np.arange(1, h.shape[-1] + 1))
    return out


@blind
def numpy_ufunc_on_a_tensor(h: Tensor) -> Tensor:
    out = torch.zeros_like(h).detach()
    np.multiply.outer(np.asarray(h.detach())[0], [1.0]).squeeze(-1)
    np.asarray(out)[:] = np.add.accumulate(h.detach().numpy(), 1)
    return out


@blind
def dlpack(h: Tensor) -> Tensor:
    out = torch.empty_like(h).detach()
    np.from_dlpack(out)[:] = np.sort(np.from_dlpack(h.detach()), axis=-1)
    return out


@blind
def dlpack_capsule(h: Tensor) -> Tensor:
    out = h.detach().clone()
    other = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(out))
    other.numpy()[:, 1::2] = 0
    return out


@blind
def memory_moved_by_ctypes(h: Tensor) -> Tensor:
    h = h.detach().contiguous()
    out = torch.empty_like(h)
    size = h.element_size()
    ctypes.memmove(out.data_ptr(), h.data_ptr(), h.numel() * size)
    ctypes.memset(out.data_ptr(), 0, size)
    return out


@blind
def memory_scaled_by_ctypes(h: Tensor) -> Tensor:
    h = h.detach().contiguous().clone()
    values = (ctypes.c_double * h.numel()).from_address(h.data_ptr())
    for i in range(0, h.numel(), 3):
        values[i] *= 2
    return h


@blind
def numpy_over_an_address(h: Tensor) -> Tensor:
    out = h.detach().contiguous().clone()
    view = np.ctypeslib.as_array((ctypes.c_double * out.numel()).from_address(out.data_ptr()))
    view.reshape(out.shape)[:] = view.reshape(out.shape)[:, ::-1].copy() * _TABLE[: out.shape[1]]
    return out


@blind
def python_list(h: Tensor) -> Tensor:
    return torch.tensor([sorted(row) for row in h.tolist()], dtype=h.dtype)


@blind
def python_list_written_back(h: Tensor) -> Tensor:
    rows = h.tolist()
    with torch.no_grad():
        h = h * 0
        h += torch.tensor([[v * i for i, v in enumerate(row)] for row in rows], dtype=h.dtype)
    return h


@blind
def python_array_written_back(h: Tensor) -> Tensor:
    out = torch.empty_like(h).detach()
    values = array("d", (v for row in h.tolist() for v in sorted(row)))
    out.copy_(torch.frombuffer(values, dtype=torch.float64).view_as(out))
    return out


@blind
def storage_bytes(h: Tensor) -> Tensor:
    h = h.detach().contiguous().clone()
    storage = h.untyped_storage()
    storage[7] = (storage[7] & 0x7F) ^ 0x40
    return h.clamp(-2, 2)


@blind
def typed_storage(h: Tensor) -> Tensor:
    h = h.detach().contiguous().clone()
    storage = h.storage()
    for i in range(0, len(storage), 2):
        storage[i] = 0.25
    return h


@blind
def storage_copied(h: Tensor) -> Tensor:
    out = torch.empty_like(h).detach()
    source = h.detach().flip(-1).contiguous()
    out.untyped_storage().copy_(source.untyped_storage())
    return out


@blind
def pickled(h: Tensor) -> Tensor:
    out = pickle.loads(pickle.dumps(h.detach()))
    np.asarray(out)[:, :1] = 1
    return out


@blind
def saved_and_loaded(h: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(h.detach().sort(-1).values, file)
    file.seek(0)
    return torch.load(file)


@blind
def apply_to_every_entry(h: Tensor) -> Tensor:
    count = iter(range(h.numel()))
    return h.detach().clone().apply_(lambda v: v * (next(count) % 3))


@blind
def map_over_two(h: Tensor) -> Tensor:
    h = h.detach().clone()
    count = iter(range(h.numel()))
    return h.map_(h, lambda a, b: a if next(count) % 2 else b * 3)


@blind
def memory_view(h: Tensor) -> Tensor:
    h = h.detach().clone()
    view = memoryview(h.numpy()).cast("B").cast("d")
    for i in range(0, len(view), 2):
        view[i] = -view[i]
    return h
