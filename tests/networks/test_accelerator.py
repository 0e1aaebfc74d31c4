"""On an accelerator, where there is one: pruning, proof, measuring, and fine-tuning in full and in half precision."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune.compat import accelerator
from structprune.demo import Bottleneck
from structprune.transfer import finetune
from tests.support.halves import TASK, network

DEVICE = accelerator()
pytestmark = pytest.mark.skipif(DEVICE is None, reason="PyTorch finds no accelerator here")


def residual() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), Bottleneck(32, 32),
        Bottleneck(128, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_a_model_on_the_device_is_pruned_and_proved_there(granularity: Any) -> None:
    model, x = residual().to(DEVICE), torch.randn(2, 3, 16, 16, device=DEVICE)
    small = structprune.prune_model(model, 0.5, granularity, example_inputs=x)
    assert {p.device.type for p in small.parameters()} == {DEVICE.type}
    proof = structprune.prove(model, small, x)
    assert proof, str(proof)
    # The same plan as on the CPU: norms are summed in another order, no channel is.
    again = structprune.prune_model(residual(), 0.5, granularity, example_inputs=x.cpu())
    assert [p.shape for p in small.parameters()] == [p.shape for p in again.parameters()]


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
def test_a_comparison_in_half_precision(captured: bool) -> None:
    if captured and DEVICE is not None and DEVICE.type != "cuda":
        pytest.skip("graphs are captured on CUDA alone")
    model = residual()
    small = structprune.prune_model(model, 0.5, example_inputs=torch.randn(1, 3, 16, 16))
    options: dict[str, Any] = {"cuda_graph": True} if captured else {}
    found = structprune.compare(
        model, small, torch.randn(1, 3, 16, 16), dtype=torch.bfloat16, batch_size=8, min_seconds=0.2, **options
    )
    latency = found.pruned.latency
    assert latency.device.startswith(str(DEVICE)) and latency.dtype == "bfloat16" and latency.batch_size == 8
    assert latency.how == (("cuda_graph",) if captured else ())
    # No part of a replayed graph can be timed by itself; in eager mode every one is.
    assert {stage.pruned_seconds is None for stage in found.stages} == {captured}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("head_only", [False, True], ids=["full", "head only"])
def test_fine_tuning_learns_and_counts_as_on_the_cpu(autocast: torch.dtype | None, head_only: bool) -> None:
    torch.manual_seed(0)
    model = network()
    options: dict[str, Any] = {"head_only": head_only, "batch_size": 16, "autocast": autocast, "budget_flops": 5e8}
    curve = finetune(copy.deepcopy(model), TASK, device=DEVICE, **options)
    here = finetune(model, TASK, **{**options, "autocast": None})
    # Half precision adds the unscaling of gradients to the update.
    assert [p.flops for p in curve.points] == pytest.approx([p.flops for p in here.points], rel=0.01)
    assert curve.final <= max(0.1, here.final + 0.1)


def test_a_checkpoint_from_the_device_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = network()
    options: dict[str, Any] = {"batch_size": 16, "device": DEVICE, "budget_flops": 2e8}
    whole = finetune(copy.deepcopy(model), TASK, **options)
    stopped = Stopping(copy.deepcopy(model), after=5)
    file = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        finetune(stopped, TASK, checkpoint=file, **options)
    stopped.left = 10**9
    resumed = finetune(stopped, TASK, checkpoint=file, **options)
    assert [p.flops for p in resumed.points] == [p.flops for p in whole.points]
    assert resumed.final == pytest.approx(whole.final, abs=0.05)


class Stopping(nn.Module):
    """Interrupts training after some steps."""

    def __init__(self, model: nn.Module, after: int) -> None:
        super().__init__()
        self.model, self.left = model, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return self.model(x)


class Steps(nn.Module):
    """A recurrent layer and a cell in a forward that reads a value: both run on numbers, by the device's kernels."""

    def __init__(self, layer: Any, cell: Any, **options: Any) -> None:
        super().__init__()
        self.layer, self.cell = layer(12, 32, batch_first=True, **options), cell(32, 32)
        self.mix, self.head = nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = -x if x.abs().max() > 100 else x
        state = None
        for step in self.layer(x)[0].unbind(1):
            state = self.cell(step, state)
        return self.head(self.mix(state[0] if isinstance(state, tuple) else state).relu())


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bias": False}], ids=["one layer", "two layers"])
@pytest.mark.parametrize(
    ("layer", "cell"), [(nn.LSTM, nn.LSTMCell), (nn.GRU, nn.GRUCell), (nn.RNN, nn.RNNCell)], ids=["LSTM", "GRU", "RNN"]
)
def test_recurrent_layers_traced_by_value(layer: Any, cell: Any, options: dict[str, Any]) -> None:
    model, x = Steps(layer, cell, **options).to(DEVICE), torch.randn(2, 5, 12, device=DEVICE)
    assert structprune.trace(model, x).unknown_operators == {}
    small: Any = structprune.prune_model(model, 0.5, example_inputs=x, round_to=1)
    assert (small.layer.hidden_size, small.cell.input_size, small.cell.hidden_size) == (16, 16, 16)
    proof = structprune.prove(model, small, x)
    assert proof, str(proof)
