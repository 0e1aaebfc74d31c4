"""What channels are ranked by: norms, chance, functions, and the criteria of torch-pruning as it uses them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

import structprune
from structprune import ModelError, OptionError
from tests.support import vision
from tests.support.attention import INPUTS, TOKENS, Net, Separate
from tests.support.small import IMAGE, TinyResNet, chain

X = torch.zeros(1, 3, 64, 64)
importance = tp.importance
CRITERIA: dict[str, Any] = {
    "l1": lambda: importance.MagnitudeImportance(p=1),
    "l2": lambda: importance.MagnitudeImportance(p=2),
    "fpgm": importance.FPGMImportance,
    "lamp": importance.LAMPImportance,
    "taylor": importance.TaylorImportance,
    "bn scale": importance.BNScaleImportance,
    "hessian": importance.HessianImportance,
}
NETWORKS = ["resnet18", "resnet50", "mobilenet_v2", "vgg11"]
PAIRS = [(n, c) for n in NETWORKS for c in CRITERIA if (n, c) != ("vgg11", "bn scale")]


def network(name: str) -> nn.Module:
    """A network of torchvision with random weights, statistics and gradients: no two channels score alike."""
    torch.manual_seed(0)
    model: Any = getattr(vision.torchvision().models, name)(num_classes=10).eval()
    if name == "vgg11":  # its hidden layers of 4096 would take minutes, with FPGM
        model.avgpool = nn.AdaptiveAvgPool2d(2)
        model.classifier = nn.Sequential(nn.Linear(512 * 4, 128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 10))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model  # type: ignore[no-any-return]


def removed_by_torch_pruning(model: nn.Module, criterion: Any) -> dict[str, list[int]]:
    """The filters that its own pruner takes out of every convolution and linear layer."""
    names = {module: name for name, module in model.named_modules()}
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(model, X, importance=criterion, pruning_ratio=0.5, ignored_layers=[last])
        found = {}
        for group in pruner.step(interactive=True):
            for dependency, indices in group:
                if dependency.handler in (tp.prune_conv_out_channels, tp.prune_linear_out_channels):
                    found[f"{names[dependency.target.module]}.weight"] = sorted(set(indices))
            group.prune()
    return found


@pytest.mark.parametrize(("name", "criterion"), PAIRS)
def test_the_same_channels_as_torch_pruning(name: str, criterion: str) -> None:
    model = network(name)
    theirs = copy.deepcopy(model)
    for parameter, twin in zip(model.parameters(), theirs.parameters(), strict=True):
        assert parameter.grad is not None
        twin.grad = parameter.grad.clone()
    ours, yours = CRITERIA[criterion](), CRITERIA[criterion]()
    if criterion == "hessian":
        for each, of in ((ours, model), (yours, theirs)):
            each.accumulate_grad(of)
    plan = structprune.plan_pruning(
        model, 0.5, "channel", importance=ours, example_inputs=X, keep_representation=False, round_to=1
    )
    wanted = removed_by_torch_pruning(theirs, yours)
    widths = {n: p.shape[0] for n, p in model.named_parameters()}
    got = {n: sorted(set(range(widths[n])) - set(plan.kept[n][0])) for n in wanted}
    assert len(wanted) >= 10 and got == wanted


def test_activations_as_a_criterion() -> None:
    model = TinyResNet().eval()
    criterion = importance.ActivationImportance()
    with criterion.compute_importance(model):
        model(torch.randn(2, 3, 16, 16))
    plan = structprune.plan_pruning(model, 0.5, importance=criterion, example_inputs=IMAGE, round_to=1)
    scores = model.block1.conv2._importance
    assert plan.kept["block1.conv1.weight"][0] == tuple(sorted(scores.argsort(descending=True)[:8].tolist()))


def test_obdc_as_a_criterion() -> None:
    """It gathers what it needs with hooks on the modules: they are the user's own."""
    model = chain(8, 8).eval()
    criterion = importance.OBDCImportance(num_classes=10)
    criterion.modules = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for module in criterion.modules:
        weight: Any = module.weight
        weight.grad = torch.zeros_like(weight)
        criterion.Fisher[module] = torch.arange(1, len(weight) + 1).float()[:, None].expand(-1, weight[0].numel())
    criterion.steps = 1
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    plan = structprune.plan_pruning(model, 0.5, importance=criterion, example_inputs=IMAGE, round_to=1)
    assert plan.kept["0.weight"][0] == (4, 5, 6, 7) and plan.settings["importance"] == "OBDCImportance"


def test_the_first_layer_of_a_group_is_the_one_that_produces_its_channels() -> None:
    model = TinyResNet()
    first = importance.MagnitudeImportance(p=1, group_reduction="first", normalizer=None)
    options: dict[str, Any] = {"example_inputs": IMAGE, "round_to": 1}
    kept = structprune.plan_pruning(model, 0.5, importance=first, **options).kept
    assert kept == structprune.plan_pruning(model, 0.5, importance="l1", **options).kept


def test_heads_and_grouped_convolutions_are_scored() -> None:
    model, x = Net(Separate()), torch.randn(1, TOKENS, INPUTS)
    with torch.no_grad():
        for layer in (model.block.q, model.block.k, model.block.v):
            layer.weight[:16].mul_(10)
    options: dict[str, Any] = {"keep_representation": False, "round_to": 1, "example_inputs": x}
    small: Any = structprune.prune_model(model, 0.5, "channel", importance=CRITERIA["l2"](), **options)
    assert small.block.heads == 2 and bool((small.block.q.weight.abs().amax(1) > 1).all())
    grouped = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1))
    small = structprune.prune_model(
        grouped, 0.5, "channel", importance=CRITERIA["l1"](), example_inputs=IMAGE, round_to=1
    )
    assert structprune.prove(grouped, small, IMAGE)


class Raw(nn.Module):
    """A layer whose weight is a parameter of the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(8, 5) * torch.arange(1, 9)[:, None])
        self.last = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.inner.T).relu() @ self.last.T


def test_raw_parameters_fall_back_to_magnitude() -> None:
    model, x = Raw(), torch.randn(2, 5)
    options: dict[str, Any] = {"example_inputs": x, "round_to": 1, "keep_representation": False}
    plan = structprune.plan_pruning(model, 0.5, importance=CRITERIA["taylor"](), **options)
    assert plan.kept == structprune.plan_pruning(model, 0.5, **options).kept


def test_what_has_no_score_is_noted() -> None:
    plan = structprune.plan_pruning(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), 0.5, importance=CRITERIA["bn scale"](),
        example_inputs=IMAGE, round_to=1, keep_representation=False,
    )  # fmt: skip
    assert "0.weight: BNScaleImportance has no score for it, ranked by the L2 norm" in plan.notes


# Our own.


def test_l1_is_not_l2() -> None:
    model = chain(2, 8)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0].fill_(1.0)  # 27 in L1, 5.2 in L2
        model[0].weight[1, 0, 0, 0] = 9.0
    kept = {
        name: structprune.plan_pruning(model, 0.5, importance=name, example_inputs=IMAGE).kept["0.weight"][0]
        for name in ("l1", "l2")
    }
    assert kept == {"l1": (0,), "l2": (1,)}


def test_chance_follows_the_seed() -> None:
    model = chain(16, 16)

    def drawn(seed: int) -> Any:
        torch.manual_seed(seed)
        return structprune.plan_pruning(model, 0.5, importance="random", example_inputs=IMAGE).kept

    assert drawn(0) == drawn(0) != drawn(1)


def test_chance_needs_no_weights() -> None:
    assert structprune.plan_pruning(chain(16, 16).to("meta"), 0.5, importance="random", example_inputs=IMAGE).kept


def test_a_function_of_a_group() -> None:
    model = TinyResNet()
    seen = []

    def last_first(group: structprune.Group) -> Any:
        seen.append(group.name)
        return torch.arange(group.width)

    plan = structprune.plan_pruning(model, 0.5, importance=last_first, example_inputs=IMAGE, round_to=1)
    assert plan.kept["block1.conv1.weight"][0] == tuple(range(8, 16)) and "block1.conv1.weight" in seen
    assert plan.settings["importance"] == "last_first" and structprune.Plan.from_json(plan.to_json()) == plan


def test_slices_of_a_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4, 5))
    graph = structprune.trace(model, torch.zeros(1, 3, 4, 4))
    group = graph.groups[0]
    found = group.slices()
    assert found["0.weight"][0].tolist() == found["0.bias"][0].tolist() == [0, 1, 2, 3]
    assert found["2.weight"][1].tolist() == [c for c in range(4) for _ in range(4)] and set(found["2.weight"]) == {1}


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: importance.TaylorImportance(), OptionError, r"TaylorImportance failed .* has it what it needs"),
        (lambda: lambda group: "abc", OptionError, r"returned a str that is no row of numbers"),
        (lambda: lambda group: torch.ones(group.width) * 1j, OptionError, "that is no row of numbers"),
        (lambda: importance.MagnitudeImportance(group_reduction=None), OptionError, "its group_reduction must not be"),
        (lambda: importance.MagnitudeImportance(normalizer=lambda s: s * float("nan")), OptionError, "has it seen"),
    ],
)
def test_criteria_that_give_nothing_to_rank_by(make: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        structprune.plan_pruning(chain(8, 8), 0.5, importance=make(), example_inputs=IMAGE)


def test_no_values_to_rank() -> None:
    with pytest.raises(ModelError, match=r"0\.weight is on the meta device and has no values to rank"):
        structprune.plan_pruning(chain(8, 8).to("meta"), 0.5, importance="l1", example_inputs=IMAGE)
