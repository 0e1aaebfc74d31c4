"""Random networks: none wrong, none crashing, and nearly all that may be cut is cut."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import structprune
from tests.support import oracle, random_networks
from tests.support.random_networks import BLOCKS, RandomNetwork, Recipe, example, filters, raw_inputs

# A sample; ``make random`` runs 500.
EXAMPLES = int(os.environ.get("STRUCTPRUNE_RANDOM_NETWORKS", "75"))
CHUNKS = [(1, "channel"), (2, "channel"), (2, "filter"), (3, "channel"), (1, "filter")]


def recipes(rank: int, chunk: int) -> st.SearchStrategy[Recipe]:
    """Recipes of one rank; the blocks are turned, so that no two chunks draw the same networks."""
    turned = BLOCKS[5 * chunk :] + BLOCKS[: 5 * chunk]
    return st.builds(
        Recipe,
        rank=st.just(rank),
        width=st.sampled_from([16, 8, 24]),
        blocks=st.lists(st.sampled_from(turned), min_size=1, max_size=5).map(tuple),
        head=st.sampled_from(["pool", "flatten"]),
        ending=st.sampled_from(["plain", "plain", "plain", "logsumexp", "argmax"]),
    )


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


@pytest.mark.parametrize("chunk", range(len(CHUNKS)))
def test_random_networks(chunk: int) -> None:
    rank, granularity = CHUNKS[chunk]
    expected, left = [], []

    @settings(
        max_examples=EXAMPLES // len(CHUNKS), deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(recipe=recipes(rank, chunk))
    def each(recipe: Recipe) -> None:
        model, pruned = judge(recipe, granularity)
        expected.extend(filters(model))
        left.extend(uncut(model, pruned))

    each()
    # The filter granularity leaves residual streams alone, which the generator does not track.
    if granularity == "channel":
        assert len(left) <= 0.05 * len(expected)


def uncut(model: nn.Module, pruned: nn.Module) -> list[str]:
    """The layers that may lose filters and lost none."""
    big, small = model.state_dict(), pruned.state_dict()
    return [name for name, dim in filters(model).items() if small[name].shape[dim] == big[name].shape[dim]]
