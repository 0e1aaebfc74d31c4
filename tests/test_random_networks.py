"""Random networks: none wrong, none crashing, and nearly all that may be cut is cut."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import structprune
from tests.support import oracle, random_networks
from tests.support.random_networks import BLOCKS, RandomNetwork, Recipe, example, filters, raw_inputs

# 500 by default; a shorter run while one works on something.
EXAMPLES = int(os.environ.get("STRUCTPRUNE_RANDOM_NETWORKS", "500"))

recipes = st.builds(
    Recipe,
    rank=st.sampled_from([1, 2, 2, 3]),
    width=st.sampled_from([8, 16, 24]),
    blocks=st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5).map(tuple),
    head=st.sampled_from(["pool", "flatten"]),
    ending=st.sampled_from(["plain", "plain", "plain", "argmax", "logsumexp"]),
)
_CUT = {"expected": 0, "cut": 0, "networks": 0}


@pytest.fixture(autouse=True)
def exact_weights() -> Iterator[None]:
    random_networks.STANDARDISE[0] = True
    yield
    random_networks.STANDARDISE[0] = True


def judge(recipe: Recipe, granularity: str) -> tuple[nn.Module, nn.Module]:
    """Prune a network and have the oracle and the proof judge it."""
    torch.manual_seed(0)
    model = oracle.randomise(RandomNetwork(recipe))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = structprune.prune_model(
        model, 0.5, granularity, example_inputs=example(recipe), round_to=1, keep_representation=False
    )  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    random_networks.STANDARDISE[0] = False
    for training in (False, True):
        oracle.check(model, pruned, example(recipe), training=training, raw_inputs=raw_inputs(model))
    random_networks.STANDARDISE[0] = True
    proof = structprune.prove(model, pruned, example(recipe))
    # Class indices rarely change, so that there the proof has no power and says so.
    assert proof.proved or (recipe.ending == "argmax" and "proves nothing" in proof.reason), str(proof)
    return model, pruned


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block(block: str, rank: int) -> None:
    model, pruned = judge(Recipe(rank, 16, (block,), "pool", "plain"), "channel")
    assert uncut(model, pruned) == []


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(recipe=recipes, granularity=st.sampled_from(["channel", "channel", "filter"]))
def test_random_networks(recipe: Recipe, granularity: str) -> None:
    model, pruned = judge(recipe, granularity)
    if granularity == "channel":
        _CUT["networks"] += 1
        _CUT["expected"] += len(filters(model))
        _CUT["cut"] += len(filters(model)) - len(uncut(model, pruned))


def test_nearly_all_that_may_be_cut_is_cut() -> None:
    if not _CUT["networks"]:
        pytest.skip("runs after test_random_networks")
    assert _CUT["cut"] >= 0.95 * _CUT["expected"]


def uncut(model: nn.Module, pruned: nn.Module) -> list[str]:
    """The layers that may lose filters and lost none."""
    big, small = model.state_dict(), pruned.state_dict()
    return [name for name, dim in filters(model).items() if small[name].shape[dim] == big[name].shape[dim]]
