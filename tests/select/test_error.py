"""``importance="error"``: the error that a channel's removal makes, predicted without data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import structprune
from structprune.ir.slices import Vector
from structprune.select.error import PredictedError
from structprune.select.scores import Norms
from structprune.tracing.groups import DependencyGraph

IMAGE = torch.zeros(1, 8, 6, 6)


def trained(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A batch norm with statistics as training leaves them."""
    with torch.no_grad():
        for tensor in (norm.weight, norm.running_var):
            tensor.uniform_(0.2, 2.0)
        norm.bias.uniform_(-1, 1)
        norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    return norm


class Block(nn.Module):
    """Two convolutions with batch norms, alone or beside a stream."""

    def __init__(self, groups: int = 1, residual: bool = False, kernel: int = 1) -> None:
        super().__init__()
        torch.manual_seed(groups)
        self.residual = residual
        self.first, self.norm1 = nn.Conv2d(8, 12, 1), trained(nn.BatchNorm2d(12))
        self.second = nn.Conv2d(12, 8, kernel, padding=kernel // 2, groups=groups)
        self.norm2 = trained(nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.second(self.norm1(self.first(x))))
        return self.head(x + h if self.residual else h)


def scored(model: nn.Module, inputs: Any, name: str) -> Vector:
    """The scores of the channels that a weight produces."""
    found: list[Vector] = []
    graph = structprune.trace(model, inputs)
    assert isinstance(graph, DependencyGraph)
    plan = structprune.plan_pruning(model, 0.5, "channel", example_inputs=inputs, keep_representation=False)
    named = {n: t for n, t in model.named_parameters()} | dict(model.named_buffers())
    ranking = PredictedError(model.eval(), lambda: list(plan.examples), None, Norms(named))
    group = next(g for g in graph.groups if g.name == name)
    found.append(ranking.scores(graph, [group])[group.channels])
    assert ranking.notes == []
    return found[0]


def by_formula(model: Block) -> Vector:
    """The power of what reads a channel makes of it, half of what varies being the same at all taps."""
    scale = model.norm2.weight**2 / (model.norm2.running_var + model.norm2.eps)  # type: ignore[operator]
    each, errors = 12 // model.second.groups, np.zeros(12)
    for out in range(8):
        group = out // (8 // model.second.groups)
        for entry in range(each):
            channel = group * each + entry
            taps = model.second.weight[out, entry].flatten().tolist()
            deviation, mean = model.norm1.weight[channel].item(), model.norm1.bias[channel].item()
            power = mean**2 * sum(taps) ** 2
            power += deviation**2 * (sum(taps) ** 2 + sum(tap**2 for tap in taps)) / 2
            errors[channel] += scale[out].item() * power
    return errors / model.norm2.weight.square().sum().item()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_error_is_the_one_of_the_formula(groups: int, kernel: int) -> None:
    model = Block(groups, kernel=kernel).eval()
    errors, expected = scored(model, IMAGE, "first.weight"), by_formula(model)
    # In a grouped convolution every group loses the same positions: they are one channel.
    folded = expected.reshape(groups, -1).sum(0) if groups > 1 else expected
    np.testing.assert_allclose(errors, folded, rtol=1e-4)


def test_beside_a_stream_it_weighs_less() -> None:
    alone, beside = Block().eval(), Block(residual=True).eval()
    beside.load_state_dict(alone.state_dict())
    ratio = scored(beside, IMAGE, "first.weight") / scored(alone, IMAGE, "first.weight")
    # By as much as the sum has more power than the branch; the stream is random numbers of power 1 in 8 channels.
    power = float(alone.norm2.weight.detach().square().sum())
    np.testing.assert_allclose(ratio, np.full(12, power / (power + 8)), rtol=0.25)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_it_predicts_what_removing_a_channel_does() -> None:
    """Held against the outputs themselves, of channels that go alone."""
    model = Block().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        hidden = model.norm1.bias[:, None] + model.norm1.weight[:, None] * torch.randn(12, 20_000)
        whole = _behind(model, hidden)
        errors = []
        for channel in range(12):
            without = hidden.clone()
            without[channel] = 0
            errors.append(float((_behind(model, without) - whole).square().sum() / whole.var(1).sum() / whole.shape[1]))
    predicted = scored(model, IMAGE, "first.weight")
    # The formula takes the running variance for that of these numbers, which is the same in all channels here.
    assert np.corrcoef(np.log(predicted), np.log(errors))[0, 1] > 0.9


def _behind(model: Block, hidden: Tensor) -> Tensor:
    out = model.second(hidden.t()[:, :, None, None])
    scale = model.norm2.weight / (model.norm2.running_var + model.norm2.eps).sqrt()  # type: ignore[operator]
    return (out[:, :, 0, 0] * scale).t()


class Attention(nn.Module):
    """No batch norm anywhere: heads, a gate, and a table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.qkv, self.out = nn.Embedding(50, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm, self.up, self.down, self.head = (
            nn.LayerNorm(32),
            nn.Linear(32, 64),
            nn.Linear(64, 32),
            nn.Linear(32, 5),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        b, n, _ = h.shape
        q, k, v = self.qkv(h).view(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 32)
        h = h + self.out(attended)
        return self.head(h + self.down(F.gelu(self.up(self.norm(h)))))


def test_networks_without_batch_norms_are_ranked_too() -> None:
    torch.manual_seed(0)
    model, tokens = Attention().eval(), torch.randint(50, (1, 12))
    with torch.no_grad():
        model.down.weight[:, :20] *= 1e-3
        model.up.weight[20:30] *= 1e-3
        model.up.bias[20:30] = 0
    plan = structprune.plan_pruning(
        model, {"up": 30 / 64}, example_inputs=tokens, importance="error", round_to=1, keep_representation=False
    )
    # Read with next to no weight, or hardly varying at all: norms of filters see the second kind only.
    assert plan.kept["up.weight"][0] == tuple(range(30, 64))
    whole = structprune.plan_pruning(
        model, 0.5, "channel", example_inputs=tokens, importance="error", scope="global", keep_representation=False
    )
    small = whole.apply(model)
    assert structprune.prove(model, small, tokens)
    assert whole.settings["importance"] == "error"


def test_scores_of_layers_are_held_against_each_other() -> None:
    """With one ratio for all, a layer whose channels make no error loses them before another loses any."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 1), trained(nn.BatchNorm2d(16)), nn.Conv2d(16, 16, 1), trained(nn.BatchNorm2d(16)),
        nn.Conv2d(16, 8, 1), trained(nn.BatchNorm2d(8)),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[1].weight *= 1e-3  # next to nothing
        model[1].bias *= 1e-3
    options: Any = {"example_inputs": IMAGE, "scope": "global", "round_to": 1, "keep_representation": False}
    removed = [g.removed for g in structprune.plan_pruning(model, 0.4, importance="error", **options).groups]
    assert removed[0] == 12 and removed[1] == 0
    by_norm = [g.removed for g in structprune.plan_pruning(model, 0.4, **options).groups]
    assert by_norm[0] < 12


def test_what_tells_no_error_is_cut_last() -> None:
    class Summed(nn.Module):
        """One layer's channels are only summed up."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x).relu() * self.b(x).square().mean(-1, keepdim=True))

    plan = structprune.plan_pruning(
        Summed(), 0.4, example_inputs=torch.zeros(2, 8), importance="error", scope="global", keep_representation=False,
        round_to=1,
    )  # fmt: skip
    assert "b.weight: what reads it tells no error, ranked by norm and cut last" in plan.notes
    assert {g.name: g.removed for g in plan.groups}["a.weight"] > {g.name: g.removed for g in plan.groups}["b.weight"]


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = Block()
    with pytest.raises(structprune.ModelError, match="is on the meta device and has no values to rank"):
        structprune.plan_pruning(model, 0.5, example_inputs=IMAGE, importance="error")


def test_nothing_of_the_model_changes() -> None:
    model = Block(residual=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    structprune.plan_pruning(model, 0.5, example_inputs=IMAGE, importance="error")
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Logarithm(nn.Module):
    """Takes positive numbers only, or says so."""

    def __init__(self, refuses: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 4)
        self.refuses = refuses

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.refuses and x.min() < 0:
            raise ValueError("negative")
        return self.second(self.first(x.log()).relu())


@pytest.mark.parametrize("refuses", [False, True])
def test_where_random_inputs_say_nothing_norms_do(refuses: bool) -> None:
    torch.manual_seed(0)
    model, x = Logarithm(refuses).eval(), torch.rand(4, 6) + 0.1
    options: dict[str, Any] = {"example_inputs": x, "round_to": 1, "keep_representation": False}
    plan = structprune.plan_pruning(model, params=0.5, **options)
    if not refuses:
        assert any("tells no error, ranked by norm" in note for note in plan.notes)
        assert plan.kept == structprune.plan_pruning(model, params=0.5, importance="l2", **options).kept
    plan.apply(model, verify=True)


def test_the_memory_format_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 12), nn.ReLU(),
        nn.Linear(12, 4),
    ).eval()  # fmt: skip
    image = torch.zeros(1, 3, 16, 16)
    options: dict[str, Any] = {"example_inputs": image, "round_to": 1, "keep_representation": False}
    plan = structprune.plan_pruning(model, params=0.6, **options)
    other = structprune.plan_pruning(model.to(memory_format=torch.channels_last), params=0.6, **options)
    assert not any("tells no error" in note for note in plan.notes + other.notes) and plan.kept == other.kept
