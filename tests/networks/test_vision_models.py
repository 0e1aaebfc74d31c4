"""A fast choice of torchvision's networks; ``make zoo`` runs all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import structprune
from tests.support import oracle, vision

FAST = [
    "alexnet", "squeezenet1_1", "resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5",
    "efficientnet_b0", "regnet_y_400mf", "densenet121", "googlenet", "resnext50_32x4d", "convnext_tiny",
]  # fmt: skip


def network(name: str) -> nn.Module:
    """The network; of AlexNet's hidden layers, which are most of the time of all networks here, an eighth is enough."""
    model: Any = vision.build(name)
    if name == "alexnet":
        model.classifier[1], model.classifier[4] = nn.Linear(256 * 36, 512), nn.Linear(512, 512)
        model.classifier[6] = nn.Linear(512, 1000)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("granularity", ["filter", "channel"])
@pytest.mark.parametrize("name", FAST)
def test_pruned_right_proved_and_trainable(name: str, granularity: Any) -> None:
    torch.manual_seed(0)
    model = oracle.randomise(network(name))
    size = vision.image_size(name)
    example = torch.zeros(1, 3, size, size, dtype=torch.float64)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    small = structprune.prune_model(model, 0.5, granularity, example_inputs=example)
    assert oracle.check(model, small, images) > 1e-3
    proof = structprune.prove(model, small, example)
    assert proof.proved and proof.max_error <= 1e-10, str(proof)
    with torch.no_grad():
        assert small.eval()(images).shape == (2, 1000)
        trained = small.train()(images)
    outputs = trained if isinstance(trained, tuple) else (trained,)
    assert all(o.shape == (2, 1000) for o in outputs) and len(outputs) == (3 if name == "googlenet" else 1)


def test_the_zoo_has_68_models() -> None:
    pytest.importorskip("torchvision")
    assert len(vision.classification_models()) == 68
