"""Random networks of the code that people write: none wrong, none crashing, nine of ten cut."""

from __future__ import annotations

import os

import pytest

from tests.support.wild.judge import judge, judge_all
from tests.support.wild.network import alone, recipe
from tests.support.wild.registry import KINDS, kinds

# ``python -m tests.wild`` runs a thousand.
NETWORKS = int(os.environ.get("STRUCTPRUNE_WILD_NETWORKS", "40"))
HERE = [*kinds("tokens"), *kinds("images")]
# What stands around these blocks goes, and nothing of their own: their code needs the width that it has.
WHOLE = {"lambda over self"}


@pytest.mark.parametrize("kind", HERE)
def test_every_kind(kind: str) -> None:
    verdict = judge(alone(kind))
    assert verdict.outcome == "right", verdict.said
    assert kind in WHOLE or verdict.cut == [True]


def test_random_networks() -> None:
    # Each prime step draws other kinds together; the whole run takes all seeds.
    verdicts = list(judge_all(recipe(17 * i) for i in range(NETWORKS)))
    bad = [f"seed {v.recipe.seed}: {v.said}" for v in verdicts if v.outcome in ("wrong", "foreign")]
    assert not bad, "\n".join(bad)
    assert sum(v.removed > 0 for v in verdicts) >= 0.9 * len(verdicts)
    assert sum(v.outcome == "no verdict" for v in verdicts) <= 0.05 * len(verdicts)


def test_there_are_many_kinds() -> None:
    assert len(KINDS) >= 100
