"""Wherever a cut in place is interrupted, the model and its optimizer are as they were, or cut whole."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

import structprune
from structprune.surgery import slicing


class Net(nn.Module):
    """Parameters, buffers, a plain tensor, sizes of its own and a table for every device."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
        self.width, self.sizes, self.table = 16, [16, 2], torch.arange(16.0)
        self.kept: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.a(x)).view(-1, self.width, 1).view(-1, self.sizes[0]) + self.table
        if str(x.device) not in self.kept:
            self.kept[str(x.device)] = torch.ones(h.shape[1], device=x.device)
        out: torch.Tensor = self.b(h * self.kept[str(x.device)])
        return out


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def trained() -> tuple[Any, torch.optim.Optimizer]:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    return model, optimizer


def picture(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that a cut changes, as plain data."""
    found: dict[str, Any] = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    found |= {f"grad {n}": None if p.grad is None else p.grad.tolist() for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            found[f"{name} {key}"] = value.tolist()
    found["sizes"] = model.width, list(model.sizes), model.table.tolist(), model.a.out_features, model.b.in_features
    found["tables"] = {key: value.tolist() for key, value in model.kept.items()}
    found["plan"] = "_structprune_plan" in vars(model)
    return found


def interrupted(plan: structprune.Plan, model: Any, optimizer: torch.optim.Optimizer, line: int) -> bool:
    """Cut, and raise at the ``line``-th line that the surgery runs; whether it was reached."""
    reached = 0

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        nonlocal reached
        if frame.f_code.co_filename != slicing.__file__:
            return None
        if event == "line":
            reached += 1
            if reached == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        plan.apply(model, inplace=True, optimizer=optimizer, verify=False)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_every_line_of_a_cut_in_place_can_be_interrupted() -> None:
    model, optimizer = trained()
    plan = structprune.plan_pruning(model, 0.5, example_inputs=X, keep_representation=False, round_to=1)
    assert {change.name for change in plan.attributes} >= {"width", "sizes", "out_features"} and plan.plain == (
        "table",
    )
    before = picture(model, optimizer)
    whole, its = trained()
    plan.apply(whole, inplace=True, optimizer=its, verify=False)
    after = picture(whole, its)
    line = 0
    while True:
        line += 1
        if not interrupted(plan, model, optimizer, line):
            break
        now = picture(model, optimizer)
        assert now in (before, after), f"line {line}: {[k for k in before if now[k] != before[k]]}"
        if now == after:
            model, optimizer = trained()
    assert line > 100 and picture(model, optimizer) == after
