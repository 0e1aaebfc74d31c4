"""What removed channels gave goes into the layers that read them; batch norms are estimated again."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import structprune
from structprune import InputError, ModelError, OptionError, Plan
from tests.support.small import IMAGE, TinyResNet, chain

Tensor = torch.Tensor
FIRST = {"0": 0.5}
FREE: dict[str, Any] = {"round_to": 1, "keep_representation": False}


def statistics_set(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as training leaves them, away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
                module.running_mean.copy_(torch.randn(module.bias.shape, generator=generator))  # type: ignore[union-attr]
                module.running_var.copy_(torch.rand(module.bias.shape, generator=generator) + 0.5)  # type: ignore[union-attr]
    return model.eval()


def mean_of_relu(mean: Tensor, deviation: Tensor) -> Tensor:
    """``E[max(0, N(mean, deviation^2))]``: mean of the rectified normal distribution."""
    z = mean / deviation
    return mean * torch.special.ndtr(z) + deviation * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


def test_means_from_batch_norms_are_those_of_the_rectified_gaussian() -> None:
    torch.manual_seed(1)
    model: Any = statistics_set(
        nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1),
        )
    )  # fmt: skip
    plan = structprune.plan_pruning(model, FIRST, compensate=True, **FREE, example_inputs=IMAGE)
    gone = sorted(set(range(16)) - set(plan.kept["0.weight"][0]))
    given = mean_of_relu(model[1].bias, model[1].weight)[gone]
    lost = (model[3].weight[:, gone, 0, 0] * given).sum(1)
    assert torch.allclose(torch.tensor(plan.shifts["4.running_mean"]), -lost.detach(), atol=0.02)
    small: Any = plan.apply(model)
    assert torch.allclose(small[4].running_mean, model[4].running_mean - lost, atol=0.02)
    # The share of the variance that is left, of independent channels: their variances add up.
    draws = (torch.randn(200_000, 16) * model[1].weight + model[1].bias).relu()
    parts = model[3].weight[:, :, 0, 0].square() * draws.var(0)
    share = 1 - parts[:, gone].sum(1) / parts.sum(1)
    # 16 quantiles in every channel: chance correlation between them leaves a scatter.
    assert float((torch.tensor(plan.scales["4.running_var"]) - share.detach()).abs().mean()) < 0.2


# Networks whose output is linear in what the cut layer gives: with the batch itself, means come out exactly.
LINEAR: dict[str, tuple[Any, Tensor]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(32, 6)),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4)), torch.randn(4, 9, 6)),
    "padded": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)),
        torch.randn(8, 3, 9, 9),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), nn.ConvTranspose2d(16, 4, 2, 2)),
        torch.randn(8, 3, 9, 9),
    ),
    "grouped": (
        lambda: nn.Sequential(nn.Conv1d(3, 16, 3), nn.Tanh(), nn.Conv1d(16, 4, 3, groups=2)),
        torch.randn(8, 3, 12),
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3, bias=False), nn.BatchNorm2d(4)),
        torch.randn(8, 3, 9, 9),
    ),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_means_from_a_batch_are_exact(name: str, inplace: bool) -> None:
    torch.manual_seed(0)
    make, x = LINEAR[name]
    model = make().eval()
    if name == "batch norm":
        structprune.recalibrate(model, [x])  # as trained: it holds what it sees
    dense = copy.deepcopy(model)
    options: dict[str, Any] = {**FREE, "example_inputs": x, "inplace": inplace}
    with torch.no_grad():
        plain = structprune.prune_model(copy.deepcopy(dense), FIRST, **options)(x)
        small = structprune.prune_model(model, FIRST, compensate=[x], **options)
        wanted, got = dense(x), small(x)
    channels = x.ndim - 1 if "Linear" in repr(dense) else 1
    others = [dim for dim in range(x.ndim) if dim != channels]
    assert torch.allclose(got.mean(others), wanted.mean(others), atol=1e-5)
    assert not torch.allclose(plain.mean(others), wanted.mean(others), atol=1e-2)
    if name == "batch norm":
        assert torch.allclose(got.var(others), wanted.var(others), rtol=1e-3)
    assert structprune.prove(dense, small, x)


def test_a_batch_that_is_more_than_one() -> None:
    make, x = LINEAR["linear"]
    model = make()
    both = structprune.plan_pruning(model, FIRST, compensate=[x[:16], x[16:]], **FREE, example_inputs=x)
    one = structprune.plan_pruning(model, FIRST, compensate=[x], **FREE, example_inputs=x)
    assert both.shifts["2.bias"] == pytest.approx(one.shifts["2.bias"], abs=1e-6)


def test_the_plan_survives_json_and_says_what_it_did() -> None:
    model = statistics_set(chain(16, 16, 8))
    plan = structprune.plan_pruning(model, 0.5, compensate=True, example_inputs=IMAGE)
    again = Plan.from_json(plan.to_json())
    assert again == plan and plan.settings["compensate"] is True
    assert "compensate: made up for the removed channels' means in 2 of 2 contractions" in plan.notes
    left, right = again.apply(model).state_dict(), plan.apply(model).state_dict()
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_every_place_of_a_residual_network() -> None:
    model = statistics_set(TinyResNet())
    small = structprune.prune_model(
        model, 0.5, "channel", compensate=True, keep_representation=False, round_to=1, example_inputs=IMAGE
    )
    plan = structprune.plan_of(small)
    # The stem has no batch norm: what reads it alone is not made up for, and is named.
    assert any("without a batch norm before them" in note for note in plan.notes)
    assert plan.shifts.keys() >= {"fc.bias", "block2.bn1.running_mean"} and structprune.prove(model, small, IMAGE)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"4.running_mean": [0.0]}, "shifts of 4.running_mean have 1 entries, not a number for each of 8"),
        ({"4.running_mean": [float("nan")] * 8}, "not a number for each"),
        ({"nowhere": [0.0]}, "KeyError"),
        ({"0.weight": [0.0]}, "which is no vector"),
    ],
)
def test_a_plan_with_wrong_vectors(vectors: dict[str, Any], message: str) -> None:
    plan = structprune.plan_pruning(statistics_set(chain(16, 16, 8)), 0.5, compensate=True, example_inputs=IMAGE)
    text = plan.to_json()
    document = json.loads(text)
    document["shifts"] = vectors
    with pytest.raises(structprune.PlanError, match=message):
        Plan.from_json(json.dumps(document))


def test_batches_from_any_iterable() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(2, *IMAGE.shape[1:]) for _ in range(3)]
    model = chain(8, 8)
    listed, loaded = (
        structprune.plan_pruning(model, 0.5, compensate=given, example_inputs=IMAGE)
        for given in (batches, torch.utils.data.DataLoader(batches, batch_size=None))
    )
    assert listed.shifts and listed.to_json() == loaded.to_json()


def test_what_cannot_be_compensated() -> None:
    with pytest.raises(OptionError, match="compensate is an empty list; expected True"):
        structprune.plan_pruning(chain(8, 8), 0.5, compensate=[], example_inputs=IMAGE)
    for wrong in ("yes", b"yes", IMAGE, np.array(3), {"x": IMAGE}, chain(8), 3):
        with pytest.raises(OptionError, match=f"compensate is {type(wrong).__name__!r}"):
            structprune.plan_pruning(chain(8, 8), 0.5, compensate=wrong, example_inputs=IMAGE)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="needs the values of the weights"):
        structprune.plan_pruning(
            chain(8, 8).to("meta"), 0.5, importance="random", compensate=True, example_inputs=IMAGE
        )
    with pytest.raises(InputError, match=r"compensate: Sequential does not run with \(float32\[1, 5, 4, 4\]\)"):
        structprune.plan_pruning(chain(8, 8), 0.5, compensate=[torch.zeros(1, 5, 4, 4)], example_inputs=IMAGE)


class Shared(nn.Module):
    """Two branches, of which one is cut, that share a vector."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.whole, self.cut, self.reads = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1)
        self.bn, self.kind = nn.BatchNorm2d(8), kind
        if kind == "bias":
            self.reads.bias = self.whole.bias
        if kind == "scaled":
            self.reads = nn.Conv2d(16, 8, 1, bias=False)
            self.vector = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Any:
        one, two = self.whole(x), self.reads(self.cut(x).relu())
        if self.kind == "batch norm":
            return self.bn(one), self.bn(two)
        return one, torch.add(two, self.vector, alpha=0.1) if self.kind == "scaled" else two


@pytest.mark.parametrize("kind", ["batch norm", "bias", "scaled"])
def test_what_others_read_stays(kind: str) -> None:
    torch.manual_seed(0)
    model, x = Shared(kind).eval(), torch.randn(8, 3, 6, 6)
    small = structprune.prune_model(model, {"cut": 0.5}, compensate=[x], example_inputs=x, **FREE)
    assert torch.equal(model(x)[0], small(x)[0])
    plan = structprune.plan_of(small)
    assert plan.shifts.keys() <= {"reads.bias"}
    assert (kind == "batch norm") == bool(plan.shifts)  # there the convolution has a bias of its own


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_without_running_statistics_has_nothing_to_change(affine: bool) -> None:
    norm = nn.BatchNorm2d(8, affine=affine, track_running_stats=False)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3, bias=False), norm, nn.ReLU(), nn.Conv2d(8, 4, 3)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(4, 3, 9, 9)
    plan = structprune.plan_pruning(model, {"0": 0.5}, compensate=[x], example_inputs=x, round_to=1)
    assert not plan.shifts and not plan.scales


class Routed(nn.Module):
    """Each sample goes through the expert of its sign: a batch may leave one without any."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for positive, expert in enumerate(self.experts):
            chosen = ((x[:, 0] > 0).long() == positive).nonzero()[:, 0]
            out = out.index_add(0, chosen, expert(x[chosen]))
        return self.head(out)


def test_batches_that_take_different_ways() -> None:
    torch.manual_seed(0)
    model, x = Routed(), torch.randn(32, 4)
    batches = [x[x[:, 0] > 0], x[x[:, 0] <= 0]]
    plan = structprune.plan_pruning(model, 0.5, compensate=batches, example_inputs=x, round_to=1)
    assert {"experts.0.2.bias", "experts.1.2.bias"} <= plan.shifts.keys()
    assert structprune.Plan.from_json(plan.to_json()) == plan
    with pytest.raises(InputError, match="is not finite with these batches"):
        structprune.plan_pruning(model, 0.5, compensate=[x / 0], example_inputs=x, round_to=1)


# Recalibration.


def test_recalibrated_statistics_are_those_of_the_batches() -> None:
    torch.manual_seed(0)
    model: Any = chain(8, 8).train()
    batches = [torch.randn(16, 3, 8, 8) * 3 + 1 for _ in range(3)]
    assert structprune.recalibrate(model, batches) is model and model.training
    first = torch.stack([model[0](b).mean((0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(model[1].running_mean, first, atol=1e-5) and model[1].momentum == 0.1


def test_recalibration_that_fails_changes_nothing() -> None:
    model = statistics_set(chain(8, 8))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="does not run with batch 2"):
        structprune.recalibrate(model, [IMAGE.repeat(2, 1, 1, 1), torch.zeros(1, 5, 4, 4)])
    with pytest.raises(OptionError, match="batches is empty"):
        structprune.recalibrate(model, [])
    with pytest.raises(OptionError, match="batches is one tensor; expected a list"):
        structprune.recalibrate(model, IMAGE)
    with pytest.raises(ModelError, match="has no batch norm"):
        structprune.recalibrate(nn.Linear(2, 2), [torch.zeros(1, 2)])
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and not model.training


def test_compensation_helps_a_trained_network() -> None:
    from tests.bench.compensation import accuracy, digits, trained

    images, labels, test_images, test_labels = digits()
    dense = trained(0, images, labels, epochs=6)
    plain, better = (
        structprune.prune_model(dense, 0.25, example_inputs=images[:1], round_to=1, compensate=compensate)
        for compensate in (False, True)
    )
    assert accuracy(dense, test_images, test_labels) > 0.95
    assert accuracy(better, test_images, test_labels) > accuracy(plain, test_images, test_labels) + 0.1
