"""Another way is taken on the user's device, or with real values, than in a trace."""

from __future__ import annotations

import torch

from tests.support.blind.network import Tensor, blind


@blind
def sorted_on_the_processor(h: Tensor) -> Tensor:
    return h.sort(-1).values if h.is_cpu else h


@blind
def device_type(h: Tensor) -> Tensor:
    return h.flip(-1) * torch.arange(h.shape[-1], dtype=h.dtype) if h.device.type == "cpu" else h


@blind
def device_compared(h: Tensor) -> Tensor:
    return h.cumsum(-1) if h.device == torch.device("cpu") else h


@blind
def device_as_text(h: Tensor) -> Tensor:
    return h.sort(-1).values if str(h.device).startswith(("cpu", "cuda")) else h


@blind
def device_number(h: Tensor) -> Tensor:
    return h.cummax(-1).values if h.get_device() == -1 and not h.is_meta else h


@blind
def meta_is_special(h: Tensor) -> Tensor:
    return h if h.is_meta else h.sort(-1).values


@blind
def address_is_zero(h: Tensor) -> Tensor:
    return h.sort(-1).values if h.is_meta is False and h.untyped_storage().device.type == "cpu" else h


@blind
def error_on_meta(h: Tensor) -> Tensor:
    try:
        h.detach().numpy()
    except (RuntimeError, TypeError, NotImplementedError):
        return h
    return h.sort(-1).values


@blind
def address_error(h: Tensor) -> Tensor:
    try:
        address = h.data_ptr()
    except RuntimeError:
        address = 0
    return h.sort(-1).values if address else h


@blind
def grad_mode(h: Tensor) -> Tensor:
    return h.sort(-1).values if torch.is_grad_enabled() else h


@blind
def needs_a_gradient(h: Tensor) -> Tensor:
    return h.cumsum(-1) if h.requires_grad else h


@blind
def version_counter(h: Tensor) -> Tensor:
    return h.sort(-1).values if h.grad_fn is not None else h


@blind
def type_of_parameters(h: Tensor) -> Tensor:
    return h.sort(-1).values if h.type() == "torch.DoubleTensor" else h
