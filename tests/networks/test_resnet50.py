"""The built-in ResNet-50, and the figures that the method gives on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune.demo import Bottleneck
from tests.support import vision


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return structprune.demo.resnet50().eval()


def test_size(dense: nn.Module) -> None:
    plan = structprune.plan_pruning(dense, 0)
    assert plan.params == (25_557_032, 25_557_032)
    assert plan.macs[0] == 4_089_184_256


def test_torchvisions_checkpoint_loads(dense: nn.Module) -> None:
    theirs = vision.torchvision().models.resnet50(weights=None).eval()
    dense_state = {k: tuple(v.shape) for k, v in dense.state_dict().items()}
    assert dense_state == {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    ours = structprune.demo.resnet50().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_filter_halves_the_inner_convolutions_and_the_stem(dense: nn.Module) -> None:
    small: Any = structprune.prune_model(dense, 0.5, round_to=1)
    plan = structprune.plan_of(small)
    assert sum(p.numel() for p in small.parameters()) == plan.params[1] == 12_367_880
    assert plan.macs[1] == 1_734_123_520
    assert small.conv1.out_channels == 32 and small.fc.in_features == 2048
    blocks = [m for m in small.modules() if isinstance(m, Bottleneck)]
    assert len(blocks) == 16
    big = [m for m in dense.modules() if isinstance(m, Bottleneck)]
    for cut, whole in zip(blocks, big, strict=True):
        assert cut.conv1.weight.shape[0] == whole.conv1.weight.shape[0] // 2
        assert cut.conv2.weight.shape[0] == whole.conv2.weight.shape[0] // 2
        assert cut.conv3.weight.shape[0] == whole.conv3.weight.shape[0]
    with torch.no_grad():
        assert small(torch.randn(1, 3, 224, 224)).shape == (1, 1000)


def test_every_attribute_follows(dense: nn.Module) -> None:
    small = structprune.prune_model(dense, 0.5, "channel", keep_representation=False)
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            expected = (module.out_channels, module.in_channels // module.groups)
            assert module.weight.shape[:2] == expected
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_mean)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_proved(dense: nn.Module, granularity: Any) -> None:
    small = structprune.prune_model(dense, 0.5, granularity)
    proof = structprune.prove(dense, small, torch.zeros(1, 3, 64, 64))
    assert proof and proof.max_error <= 1e-10 and proof.power > 1e-3
    assert str(proof).startswith("proved")


def test_roles(dense: nn.Module) -> None:
    roles = {g.name: g.role for g in structprune.trace(dense).groups}
    assert roles["conv1.weight"] == "inside a block"
    assert roles["layer2.1.conv2.weight"] == "inside a block"
    assert roles["layer3.0.downsample.0.weight"] == "residual stream"
    assert roles["layer4.0.downsample.0.weight"] == "representation"
    assert roles["fc.weight"] == "frozen"


def test_explain(dense: nn.Module) -> None:
    text = structprune.trace(dense).explain("layer1.0.conv1.weight")
    assert "leaves together with layer1.0.bn1.weight[dim 0]" in text and "layer1.0.conv2.weight[dim 1]" in text
    with pytest.raises(structprune.OptionError, match=r"no parameter, buffer or module 'layer1.0.conv9', did you mean"):
        structprune.trace(dense).explain("layer1.0.conv9")
