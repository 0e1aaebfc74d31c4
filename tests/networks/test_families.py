"""Small networks of timm and transformers, pruned in both granularities and proved: a fast choice of the zoo."""

from __future__ import annotations

from typing import Any

import pytest

import structprune
from tests.support import vision
from tests.zoo.families import Network, build, networks

if not vision.models():
    pytest.skip("needs torchvision", allow_module_level=True)
pytest.importorskip("timm")
pytest.importorskip("transformers")

TIMM = "test_vit test_vit_relpos test_coatnet test_efficientnet test_nfnet test_convnext test_resnet"
TRANSFORMERS = "bert gpt2 llama t5 swin segformer wav2vec2 whisper mamba beit detr mixtral"
CHOSEN = {*(f"timm:{n}" for n in TIMM.split()), *(f"transformers:{n}" for n in TRANSFORMERS.split())}
CHOSEN |= {"timm-other:test_mambaout", "timm-other:test_byobnet", "timm-other:test_vit"}


def chosen() -> list[Network]:
    return [network for network in networks() if network.key in CHOSEN]


@pytest.mark.parametrize("network", chosen(), ids=lambda n: n.key)
@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_a_family_is_pruned_and_proved(network: Network, granularity: Any) -> None:
    model, call = build(network)
    example = call.example_inputs
    options: Any = {"keep_representation": False} if granularity == "channel" else {}
    plan = structprune.plan_pruning(
        model, 0.5, granularity, example_inputs=example, round_to=1, allow_untraced=True, **options
    )
    pruned = plan.apply(model)
    assert plan.params[1] < plan.params[0] * (0.95 if granularity == "filter" else 0.8)
    assert not [g.reason for g in plan.groups if "has no rule" in g.reason]
    assert [t.shape for t in call(pruned)] == [t.shape for t in call(model)]
    proof = structprune.prove(model, pruned, example)
    assert proof, str(proof)
