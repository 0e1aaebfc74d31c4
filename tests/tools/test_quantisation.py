"""Quantised after pruning: the smaller network in int8. Pruning what is quantised already is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune import ModelError
from tests.tools.networks import CASES, Case

EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
pytestmark = pytest.mark.filterwarnings("ignore")


def quantised(model: nn.Module) -> nn.Module:
    """Every linear layer's weight in int8, a scale for each row."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model


def rounded(model: nn.Module) -> nn.Module:
    """The same in plain floats: symmetric, the largest of a row is 127."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            scale = module.weight.detach().abs().amax(1, keepdim=True) / 127
            module.weight = nn.Parameter((module.weight.detach() / scale).round().clamp(-128, 127) * scale)
    return model


@EACH
def test_quantised_afterwards(case: Case) -> None:
    small: Any = quantised(case.pruned())
    assert type(small.head.weight).__name__ != "Parameter"
    with torch.no_grad():
        # torchao rounds the scales its own way: a step of one weight in 127 at most.
        torch.testing.assert_close(small(case.batch()), rounded(case.pruned())(case.batch()), rtol=0.02, atol=0.01)
        assert not torch.equal(small(case.batch()), case.pruned()(case.batch()))
    assert small.head.weight.shape == case.pruned().head.weight.shape


@EACH
def test_pruning_a_quantised_model_says_what_to_do(case: Case) -> None:
    model = quantised(case.dense())
    expected = model(case.batch())
    for inplace in (False, True):
        with pytest.raises(ModelError, match=r"weight is a Int8Tensor.*prune the model first, then quantise"):
            structprune.prune_model(model, 0.5, example_inputs=case.batch(1), inplace=inplace)
    assert torch.equal(model(case.batch()), expected)


def test_quantised_layers_of_torch_say_it_too() -> None:
    model = torch.ao.quantization.quantize_dynamic(CASES["attention"].dense())
    with pytest.raises(ModelError, match="embed is a quantised Linear: prune first, then quantise"):
        structprune.prune_model(model, 0.5, example_inputs=CASES["attention"].batch(1))
    small = torch.ao.quantization.quantize_dynamic(CASES["attention"].pruned())
    assert small(CASES["attention"].batch()).shape == (2, 5)
