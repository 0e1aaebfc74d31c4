"""Operators run where no mode sees them."""

from __future__ import annotations

import ctypes
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from tests.support.blind.network import Tensor, blind


@blind
def another_thread(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    thread = threading.Thread(target=lambda: out.detach().copy_(h.detach().sort(-1).values))
    thread.start()
    thread.join()
    return out


@blind
def pool_of_threads(h: Tensor) -> Tensor:
    out = h.detach().clone()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: out[:, : out.shape[1] // 3].mul_(5)).result()
    return out


@blind
def worker_with_a_queue(h: Tensor) -> Tensor:
    todo: queue.Queue[Tensor] = queue.Queue()
    out = torch.empty_like(h).detach()

    def work() -> None:
        source = todo.get()
        out.copy_(source.cumsum(-1))

    thread = threading.Thread(target=work)
    thread.start()
    todo.put(h.detach())
    thread.join()
    return out


@blind
def modes_switched_off(h: Tensor) -> Tensor:
    h = h.detach().clone()
    with _disable_current_modes():
        h[:, ::2].mul_(3)
    return h


@blind
def dispatch_switched_off(h: Tensor) -> Tensor:
    h = h.detach().clone()
    with torch._C._DisableTorchDispatch():
        h.copy_(h.flip(-1))
    return h


@torch.library.custom_op("blind::halve_some", mutates_args=("out",))
def halve_some(h: Tensor, out: Tensor) -> None:
    out.copy_(h)
    out[:, ::2] *= 0.5


@halve_some.register_fake
def _(h: Tensor, out: Tensor) -> None:
    return None


@blind
def operator_that_writes(h: Tensor) -> Tensor:
    out = torch.empty_like(h).detach()
    halve_some(h.detach(), out)
    return out


@torch.library.custom_op("blind::doubled", mutates_args=())
def doubled(h: Tensor) -> Tensor:
    return h.sort(-1).values


@doubled.register_fake
def _(h: Tensor) -> Tensor:
    return h * 2


@blind
def operator_with_a_wrong_fake(h: Tensor) -> Tensor:
    return doubled(h.detach())


@torch.library.custom_op("blind::peek", mutates_args=())
def peek(h: Tensor, address: int) -> int:
    values = (ctypes.c_double * h.numel()).from_address(address)
    for i in range(0, h.numel(), 2):
        values[i] = 0.0
    return 0


@peek.register_fake
def _(h: Tensor, address: int) -> int:
    return 0


@blind
def operator_that_writes_secretly(h: Tensor) -> Tensor:
    out = h.detach().clone()
    peek(h.detach(), out.data_ptr())
    return out


class Numpys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        out = torch.empty_like(h)
        out.numpy()[:] = np.sort(h.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@blind
def autograd_function_with_numpy(h: Tensor) -> Tensor:
    return Numpys.apply(h)


class Secret(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.mul:
            with _disable_current_modes(), torch._C.DisableTorchFunctionSubclass():
                args[0].detach().copy_(args[0].detach().flip(-1))
        return super().__torch_function__(func, types, args, kwargs)


@blind
def tensor_subclass(h: Tensor) -> Tensor:
    return h.detach().clone().as_subclass(Secret).mul(2.0).as_subclass(torch.Tensor)
