"""Copies and pickles of a pruned model are what it is, also where structprune is not installed."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from tests.tools.networks import CASES, Case

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# An import hook that knows structprune is stricter than a path without it: the tests' folder has both.
ALONE = """
import pickle, sys
sys.modules["structprune"] = None
import torch
x, *models, out = sys.argv[1:]
loaded = [pickle.load(open(models[0], "rb")), torch.load(models[1], weights_only=False)]
torch.save([model(torch.load(x)) for model in loaded], out)
assert not any(name.startswith("structprune.") for name in sys.modules)
"""


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@EACH
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch_save])
def test_copies(case: Case, copied: Callable[[Any], Any]) -> None:
    small = case.pruned()
    twin = copied(small)
    assert torch.equal(twin(case.batch()), small(case.batch()))
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in small.parameters())
    assert structprune.plan_of(twin) == structprune.plan_of(small)
    assert structprune.prove(case.dense(), twin, case.batch(1))
    twin.train()(case.batch(4)).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())


@pytest.mark.slow
@EACH
def test_without_structprune(case: Case, tmp_path: Path) -> None:
    small, (x, pickled, saved, out) = case.pruned(), (tmp_path / name for name in ("x", "pickled", "saved", "out"))
    pickled.write_bytes(pickle.dumps(small))
    torch.save(small, saved)
    torch.save(case.batch(), x)
    command = [sys.executable, "-c", ALONE, x, pickled, saved, out]
    subprocess.run(command, check=True, timeout=1800, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert all(torch.equal(y, small(case.batch())) for y in torch.load(out))


@EACH
def test_weights_alone_go_into_a_network_cut_by_the_plan(case: Case) -> None:
    small = case.pruned()
    fresh = structprune.plan_of(small).apply(case.kind()).eval()
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(case.batch()), small(case.batch()))
