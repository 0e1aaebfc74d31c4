"""Numbers and tables that are computed from a width."""

from __future__ import annotations

import contextvars
import copy
import os

import numpy as np
import torch

from tests.support.blind.network import WIDTH, Tensor, blind

_BY_ID: dict[int, Tensor] = {}
_WIDTH: contextvars.ContextVar[str] = contextvars.ContextVar("width")
_TABLE = np.random.default_rng(3).normal(size=64)


@blind
def seeded_noise(h: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return h + torch.randn(h.shape[-1], generator=generator, dtype=h.dtype)


@blind
def seeded_noise_of_the_whole_batch(h: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return h * torch.rand_like(h)


@blind
def seeded_signs(h: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return h * (torch.randint(0, 2, (h.shape[-1],), generator=generator) * 2 - 1)


@blind
def seeded_order(h: Tensor) -> Tensor:
    return h[:, torch.randperm(h.shape[-1], generator=torch.Generator().manual_seed(4))]


@blind
def seeded_by_the_width(h: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(h.shape[-1])
    return h * torch.rand((), generator=generator, dtype=h.dtype)


@blind
def width_through_a_tensor_beside_a_value(h: Tensor) -> Tensor:
    h = h * torch.tensor(float(h.shape[-1]), dtype=h.dtype) ** -0.5
    return -h if h.abs().max() > 1e9 else h


@blind
def width_through_a_new_tensor_beside_a_value(h: Tensor) -> Tensor:
    h = h / h.new_tensor([h.size(1)])
    return -h if float(h.sum()) > 1e9 else h


@blind
def width_through_ones_beside_a_value(h: Tensor) -> Tensor:
    h = h / torch.ones(h.shape[-1], dtype=h.dtype).sum()
    return -h if h[0, 0].item() > 1e9 else h


@blind
def width_through_numpy_beside_a_value(h: Tensor) -> Tensor:
    h = h * torch.from_numpy(np.array(1 / np.sqrt(h.shape[-1])))
    return -h if bool(h.isnan().any()) else h


@blind
def width_through_a_full_tensor_beside_a_value(h: Tensor) -> Tensor:
    h = h * torch.full((1,), 1 / h.shape[-1], dtype=h.dtype)
    return -h if bool(h.isnan().any()) else h


@blind
def width_through_a_range_beside_a_value(h: Tensor) -> Tensor:
    h = h / (torch.arange(h.shape[-1]).max() + 1)
    return -h if bool(h.isnan().any()) else h


@blind
def width_through_a_shape_beside_a_value(h: Tensor) -> Tensor:
    h = h / torch.tensor(h.shape)[-1]
    return -h if bool(h.isnan().any()) else h


@blind
def sine_table_beside_a_value(h: Tensor) -> Tensor:
    h = h + torch.linspace(0, 3, h.shape[-1], dtype=h.dtype).sin()
    return -h if bool(h.isnan().any()) else h


@blind
def range_table_beside_a_value(h: Tensor) -> Tensor:
    h = h * torch.arange(h.shape[-1], dtype=h.dtype)
    return -h if bool(h.isnan().any()) else h


@blind
def numpy_table_beside_a_value(h: Tensor) -> Tensor:
    h = h + torch.from_numpy(_TABLE[: h.shape[-1]])
    return -h if bool(h.isnan().any()) else h


@blind
def list_table_beside_a_value(h: Tensor) -> Tensor:
    h = h + torch.tensor(_TABLE.tolist()[: h.shape[-1]], dtype=h.dtype)
    return -h if bool(h.isnan().any()) else h


@blind
def numpy_table(h: Tensor) -> Tensor:
    return h + torch.from_numpy(_TABLE[: h.shape[-1]])


@blind
def empty_memory_filled_by_numpy(h: Tensor) -> Tensor:
    table = torch.empty(h.shape[-1], dtype=h.dtype)
    table.numpy()[:] = np.arange(len(table))
    return h * table


@blind
def zeros_filled_by_numpy(h: Tensor) -> Tensor:
    table = torch.zeros(h.shape[-1], dtype=h.dtype)
    table.numpy()[:] = _TABLE[: len(table)]
    return h + table


@blind
def integers_filled_by_numpy(h: Tensor) -> Tensor:
    order = torch.zeros(h.shape[-1], dtype=torch.long)
    order.numpy()[:] = np.argsort(_TABLE[: len(order)])
    return h[:, order]


@blind
def width_in_a_context_variable(h: Tensor) -> Tensor:
    _WIDTH.set(str(h.shape[-1]))
    h = h * torch.tensor([1 / int(_WIDTH.get())], dtype=h.dtype)
    return -h if bool(h.isnan().any()) else h


@blind
def width_in_the_environment(h: Tensor) -> Tensor:
    os.environ["BLIND_WIDTH"] = str(h.shape[-1])
    h = h / torch.tensor(float(os.environ["BLIND_WIDTH"]), dtype=h.dtype)
    return -h if bool(h.isnan().any()) else h


@blind
def width_of_the_memory(h: Tensor) -> Tensor:
    size = h.untyped_storage().nbytes() / h.element_size() / h.shape[0]
    h = h * torch.tensor(1 / size, dtype=h.dtype)
    return -h if bool(h.isnan().any()) else h


@blind
def table_by_identity(h: Tensor) -> Tensor:
    _BY_ID.clear()
    table = _BY_ID.setdefault(id(h), torch.arange(h.shape[-1], dtype=torch.float64))
    return -h if bool(h.isnan().any()) else h + table


@blind
def copied_table(h: Tensor) -> Tensor:
    table = copy.deepcopy(torch.arange(h.shape[-1], dtype=h.dtype))
    h = copy.copy(h) * table.cos()
    return -h if bool(h.isnan().any()) else h


@blind
def branch_by_a_hidden_count(h: Tensor) -> Tensor:
    wide = len(h.detach().numpy().tobytes()) >= h.shape[0] * WIDTH * h.element_size()
    return h if wide else h.sigmoid()


@blind
def branch_by_the_number_of_values(h: Tensor) -> Tensor:
    return h if sum(len(row) for row in h.tolist()) >= WIDTH * h.shape[0] else h.sigmoid()


@blind
def branch_by_text(h: Tensor) -> Tensor:
    return h if f"{WIDTH}]" in str(list(h.shape)) else h.sigmoid()
