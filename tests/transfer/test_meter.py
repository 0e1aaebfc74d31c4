"""The meter of compute, against torch's counter and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from structprune.transfer import ComputeMeter
from tests.support.halves import BATCH, network


def frozen(model: nn.Sequential, upto: int) -> nn.Sequential:
    for module in list(model)[:upto]:
        module.requires_grad_(False)
    return model


@pytest.mark.parametrize("upto", [0, 4, 8], ids=["full", "partly frozen", "head only"])
def test_the_meter_against_torch_and_the_closed_form(upto: int) -> None:
    model, x = frozen(network(), upto), torch.randn(BATCH, 1, 8, 8)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    meter = ComputeMeter(model)
    meter.step(x)
    # Forward of all; a weight gradient of what is trained; a gradient of what lies behind the first of them.
    first, second, head = 2 * BATCH * 64 * 16 * 9, 2 * BATCH * 64 * 16 * 16 * 9, 2 * BATCH * 16 * 5
    closed = first + second + head + {0: first + second * 2 + head * 2, 4: head * 2, 8: head}[upto]
    assert meter.training_flops == pytest.approx(closed, rel=0.01)
    assert meter.training_flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert meter.steps == 1 and meter.evaluation_flops == 0
    meter.evaluate(x)
    assert meter.evaluation_flops == first + second + head


@pytest.mark.parametrize(
    ("make", "each"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), 2),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 2 + 2),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2, nesterov=True), 2 + 2 + 2 + 2),
        (lambda p: torch.optim.Adam(p, 0.1), 3 + 1 + 3 + 1 + 1 + 1 + 3),
        (lambda p: torch.optim.Adam(p, 0.1, foreach=True), 3 + 1 + 3 + 1 + 1 + 1 + 3),
    ],
)
def test_updates(make: Any, each: int) -> None:
    model = nn.Linear(50, 40, bias=False)
    optimizer, meter = make(model.parameters()), ComputeMeter(model)
    for _ in range(3):
        model(torch.randn(2, 50)).sum().backward()
        meter.update(optimizer.step)
    assert meter.update_flops == pytest.approx(each * 2000, abs=20)
