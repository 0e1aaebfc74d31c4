"""A pruned model in a training loop: torch.optim, autocast, accelerate, Lightning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import structprune
from tests.tools.networks import CASES, Case, lightning_module

EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
STEPS = 3


def samples(case: Case) -> TensorDataset:
    """Inputs, and classes that depend on them."""
    x = case.batch(4 * STEPS)
    return TensorDataset(x, x.flatten(1).sum(1).relu().long() % 5)


def train(model: nn.Module, case: Case, make: Callable[..., torch.optim.Optimizer]) -> list[float]:
    """The plain loop: what others are compared with."""
    optimizer, losses = make(model.parameters()), []
    model.train()
    for x, y in DataLoader(samples(case), batch_size=4):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    for ours, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


OPTIMIZERS: list[Any] = [
    sgd,
    lambda p: torch.optim.AdamW(p, lr=1e-2),
    lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    lambda p: torch.optim.Adafactor(p, lr=1e-2),
    lambda p: torch.optim.RMSprop(p, lr=1e-3, foreach=True),
]


@EACH
@pytest.mark.parametrize("make", OPTIMIZERS, ids=["SGD", "AdamW", "fused AdamW", "Adafactor", "RMSprop"])
def test_optimizers(case: Case, make: Any) -> None:
    """A network built small from the start learns the same, number by number."""
    small = case.pruned()
    # New parameters, which know nothing of a cut.
    built_small = copy.deepcopy(small)
    for name, parameter in small.named_parameters():
        owner, _, last = name.rpartition(".")
        setattr(built_small.get_submodule(owner), last, nn.Parameter(parameter.detach().clone().contiguous()))
    losses = train(small, case, make)
    assert losses == train(built_small, case, make)
    assert len(set(losses)) == STEPS
    assert_same_weights(small, built_small)


@EACH
def test_an_optimizer_from_before_the_cut_has_to_be_made_anew(case: Case) -> None:
    """In place, the parameters stay the same objects: the optimizer steps still, unless it has state of old shapes."""
    model = case.dense().train()
    optimizer = sgd(model.parameters())
    structprune.prune_model(model, 0.5, example_inputs=case.batch(1), round_to=1, inplace=True)
    model(case.batch()).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    model = case.dense().train()
    optimizer = sgd(model.parameters())
    model(case.batch()).sum().backward()
    optimizer.step()  # now there is momentum
    optimizer.zero_grad()
    structprune.prune_model(model, 0.5, example_inputs=case.batch(1), round_to=1, inplace=True)
    model(case.batch()).sum().backward()
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step()


@EACH
def test_autocast(case: Case) -> None:
    """In bfloat16 the outputs are those of float32 to three digits, and the weights stay float32."""
    small = case.pruned()
    with torch.autocast("cpu", torch.bfloat16):
        out = small(case.batch())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), small(case.batch()), rtol=0.03, atol=0.03)
    out.float().square().sum().backward()
    assert {p.grad.dtype for p in small.parameters() if p.grad is not None} == {torch.float32}
    assert all(p.grad is not None for p in small.parameters())


@EACH
def test_pruning_under_autocast_cuts_the_same(case: Case) -> None:
    dense = case.dense()
    with torch.autocast("cpu", torch.bfloat16):
        small = structprune.prune_model(dense, 0.5, example_inputs=case.batch(1), round_to=1)
    assert_same_weights(small, case.pruned())


@EACH
def test_accelerate(case: Case) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    small, plain = case.pruned().train(), case.pruned()
    loader = DataLoader(samples(case), batch_size=4)
    model, optimizer, loader = accelerator.prepare(small, sgd(small.parameters()), loader)
    losses = []
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses == train(plain, case, sgd)
    assert_same_weights(accelerator.unwrap_model(model), plain)


@pytest.mark.slow
@EACH
@pytest.mark.filterwarnings("ignore")
def test_lightning(case: Case, tmp_path: Path) -> None:
    lit = lightning_module(case.pruned(), sgd).train()
    import lightning

    plain = case.pruned()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(lit, DataLoader(samples(case), batch_size=4))
    train(plain, case, sgd)
    assert_same_weights(lit.network, plain)
    # A checkpoint has weights alone: the network that takes them is cut by the plan.
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fresh = structprune.plan_of(lit.network).apply(case.kind())
    loaded = type(lit).load_from_checkpoint(tmp_path / "last.ckpt", network=fresh)
    assert_same_weights(loaded, lit)
    # After training it is cut further, the trainer still attached.
    smaller = structprune.prune_model(lit.eval(), 0.5, example_inputs=case.batch(1), round_to=1)
    expected = structprune.prune_model(plain.eval(), 0.5, example_inputs=case.batch(1), round_to=1)
    assert_same_weights(smaller, expected)
