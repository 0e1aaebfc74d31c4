"""The oracle and the proof catch cuts that are wrong."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune.verify import proof, runs
from tests.support import oracle
from tests.support.small import TinyResNet

EXAMPLE = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
IMAGES = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pair() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    dense = oracle.randomise(TinyResNet())
    return dense, structprune.prune_model(dense, 0.5, "channel", example_inputs=EXAMPLE, round_to=1)


def roll(tensor: torch.Tensor, dim: int = 0) -> None:
    tensor.data = tensor.data.roll(1, dim)


def other_filters(model: Any, dense: Any) -> None:
    """Keep other filters of one layer than the next layer's inputs say."""
    kept = structprune.plan_of(model).kept["block1.conv1.weight"]
    inputs = torch.tensor(kept[1])
    others = torch.tensor([i for i in range(16) if i not in kept[0]])
    model.block1.conv1.weight.data = dense.block1.conv1.weight.data[others][:, inputs]


SABOTAGE: list[tuple[str, Callable[[Any, Any], None], str]] = [
    ("rolled running mean", lambda m, d: roll(m.block1.bn1.running_mean), "out of order"),
    ("rolled filters", lambda m, d: roll(m.block1.conv2.weight), "out of order"),
    ("rolled inputs", lambda m, d: roll(m.block2.conv3.weight, 1), "out of order"),
    ("misaligned cut", other_filters, "outputs differ"),
    ("re-scaled weight", lambda m, d: m.fc.weight.data.mul_(2), "other values|does not have"),
    ("slightly changed bias", lambda m, d: m.fc.bias.data.add_(1e-9), "other values"),
    ("zeroed weight", lambda m, d: m.block1.conv3.weight.data.zero_(), "does not have"),
    ("another activation", lambda m, d: setattr(m.block2, "relu", nn.ReLU6()), "outputs differ"),
    ("dropped shortcut", lambda m, d: setattr(m.block1, "downsample", nn.Conv2d(8, 32, 1).double()), "other tensors"),
]


def test_right_cut(pair: tuple[nn.Module, Any]) -> None:
    dense, pruned = pair
    assert oracle.check(dense, pruned, IMAGES) > 1e-3
    assert oracle.check(dense, pruned, IMAGES, training=True) > 1e-3
    assert structprune.prove(dense, pruned, EXAMPLE)


@pytest.mark.parametrize(("name", "break_it", "message"), SABOTAGE, ids=[s[0] for s in SABOTAGE])
def test_oracle_catches(pair: tuple[nn.Module, Any], name: str, break_it: Any, message: str) -> None:
    dense, pruned = pair
    break_it(pruned, dense)
    with pytest.raises(oracle.WrongCut, match=message):
        oracle.check(dense, pruned, IMAGES)


@pytest.mark.parametrize(("name", "break_it", "message"), SABOTAGE[:-1], ids=[s[0] for s in SABOTAGE[:-1]])
def test_proof_catches(pair: tuple[nn.Module, Any], name: str, break_it: Any, message: str) -> None:
    dense, pruned = pair
    break_it(pruned, dense)
    proof = structprune.prove(dense, pruned, EXAMPLE)
    assert not proof and proof.reason and str(proof).startswith("not proved")


def test_proof_sees_a_wrong_size_in_an_attribute(pair: tuple[nn.Module, Any]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 4)
            self.factor = 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x) * self.factor)

    dense = Scaled()
    pruned: Any = structprune.prune_model(dense, 0.5, example_inputs=torch.zeros(1, 4), keep_representation=False)
    assert structprune.prove(dense, pruned, torch.zeros(1, 4))
    pruned.factor = 2.0
    proof = structprune.prove(dense, pruned, torch.zeros(1, 4))
    assert not proof and "'other' becomes 2.0, was 1.0" in proof.reason


def test_a_proof_lets_the_dense_copy_go_before_the_pruned_one_runs(
    pair: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, alive = [], []
    randomised, replayed = proof._randomised, runs._replayed

    def watched(*args: Any) -> nn.Module:
        copy = randomised(*args)
        copies.append(weakref.ref(copy))
        return copy

    def replay(*args: Any) -> Any:
        alive.append([copy() is not None for copy in copies])
        return replayed(*args)

    monkeypatch.setattr(proof, "_randomised", watched)
    monkeypatch.setattr(runs, "_replayed", replay)
    assert structprune.prove(*pair, EXAMPLE)
    # Once in evaluation and once in training.
    assert alive == [[True], [False], [False, True], [False, False]]


def test_proof_without_power_proves_nothing() -> None:
    class Ignores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0 * self.b(self.a(x))

    dense = Ignores()
    pruned = structprune.prune_model(dense, 0.5, example_inputs=torch.zeros(1, 4), keep_representation=False)
    proof = structprune.prove(dense, pruned, torch.zeros(1, 4))
    assert not proof and "proves nothing" in proof.reason and proof.max_error == 0


def test_proof_after_training_says_so(pair: tuple[nn.Module, Any]) -> None:
    dense, pruned = copy.deepcopy(pair[0]), pair[1]
    pruned.train()(IMAGES).sum().backward()
    torch.optim.SGD(pruned.parameters(), lr=0.1).step()
    assert "trained since" in structprune.prove(dense, pruned, EXAMPLE).reason
