"""Cutting in place while outputs and losses of earlier forwards are still in scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import checkpoint

import structprune
from structprune import ModelError
from tests.support.small import IMAGE, TinyResNet

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ALIVE = r"graph of an earlier forward is still alive .*run its backward \(without retain_graph\) or delete"
OPTIONS: dict[str, Any] = {"round_to": 1, "keep_representation": False}
STALE = "This graph is of a forward before the model was pruned in place"


class Scaled(nn.Module):
    """Channels times a vector, which would broadcast when one of them is left, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(8, 2), nn.Parameter(torch.ones(2)), nn.Linear(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x) * self.scale)


def cut(model: nn.Module, x: torch.Tensor = IMAGE, ratio: float = 0.25) -> None:
    structprune.prune_model(model, ratio, example_inputs=x, inplace=True, **OPTIONS)


def out_and_loss(model: nn.Module) -> Any:
    out = model(X)
    loss = out.square().mean()
    loss.backward()
    return out, loss


def accumulated(model: nn.Module) -> Any:
    losses = [model(part).square().mean() for part in X.split(2)]
    for loss in losses:
        loss.backward()
    return losses


def retained(model: nn.Module) -> Any:
    loss = model(X).square().mean()
    loss.backward(retain_graph=True)
    return loss


def retained_then_run(model: nn.Module) -> Any:
    loss = retained(model)
    loss.backward()
    return loss


def of_gradients(model: nn.Module) -> Any:
    loss = model(X).square().mean()
    loss.backward(create_graph=True)
    return loss


def hooked(model: Any) -> Any:
    accumulator = get_gradient_edge(model.block1.conv1.weight).node
    accumulator.register_prehook(lambda gradients: None)
    return accumulator


def frozen(model: nn.Module) -> Any:
    model.requires_grad_(False)
    return model(X.clone().requires_grad_())


def frozen_after(model: nn.Module) -> Any:
    out = model(X)
    model.requires_grad_(False)
    return out


def with_another(model: nn.Module) -> Any:
    loss = (model(X) - TinyResNet()(X)).square().mean()
    loss.backward()
    return loss


HELD: list[tuple[str, Callable[[nn.Module], Any], bool]] = [
    ("out and loss after backward", out_and_loss, True),
    ("losses of accumulated gradients", accumulated, True),
    ("a loss of two models", with_another, True),
    ("a graph that was retained, then run", retained_then_run, True),
    ("no graph", lambda model: model(X).detach(), True),
    ("no backward yet", lambda model: model(X), False),
    ("retain_graph", retained, False),
    ("create_graph", of_gradients, False),
    ("the accumulator itself", hooked, False),
    ("through frozen weights to the input", frozen, False),
    ("frozen after the forward", frozen_after, False),
    ("another model's graph", lambda model: TinyResNet()(X), True),
]  # fmt: skip


@pytest.mark.parametrize(("holds", "allowed"), [case[1:] for case in HELD], ids=[case[0] for case in HELD])
def test_what_is_held_while_a_model_is_cut(holds: Callable[[nn.Module], Any], allowed: bool) -> None:
    torch.manual_seed(0)
    model: Any = TinyResNet()
    held = holds(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if allowed:
        cut(model)
        assert model.block1.conv1.weight.shape[0] == 12
    else:
        with pytest.raises(ModelError, match=ALIVE):
            cut(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        del held
        model.zero_grad()
        cut(model)
    if not any(p.requires_grad for p in model.parameters()):
        return
    model.zero_grad()
    model(X).square().mean().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


def test_training_goes_on_as_that_of_a_copy() -> None:
    """Cut in every third step with losses and outputs kept: the numbers are those of a model that was copied."""
    torch.manual_seed(0)
    ours, kept = TinyResNet(), []
    other: Any = TinyResNet()
    other.load_state_dict(ours.state_dict())
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.01)
    for step in range(9):
        optimizer.zero_grad()
        out = ours(X)
        loss = out.square().mean()
        loss.backward()
        optimizer.step()
        kept.append((out, loss))
        reference = torch.optim.SGD(other.parameters(), lr=0.01)
        reference.zero_grad()
        other(X).square().mean().backward()
        reference.step()
        if step % 3 == 2:
            cut(ours)
            other = structprune.prune_model(other, 0.25, example_inputs=IMAGE, **OPTIONS)
    assert ours.block1.conv1.out_channels == 7  # of 16, 12 and 9
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=0)


def test_hooks_of_parameters_stay() -> None:
    model, calls = TinyResNet(), []
    weight = model.block1.conv1.weight
    weight.register_hook(lambda gradient: calls.append(("hook", *gradient.shape[:1])))
    weight.register_post_accumulate_grad_hook(lambda tensor: calls.append(("after", *tensor.shape[:1])))
    kept = out_and_loss(model)
    cut(model)
    model(X).sum().backward()
    assert calls == [("hook", 16), ("after", 16), ("hook", 12), ("after", 12)] and kept


def doubled(model: Any) -> torch.Tensor:
    """Weights are computed from, and none is saved."""
    return (model.first.weight * 2).sum() + (model.scale * 2).sum() + (model.last.weight * 2).sum()


def recomputed(model: Any) -> torch.Tensor:
    out = checkpoint(model, X[:, :, 0, :8].mean(1), use_reentrant=False)
    return out.sum()  # type: ignore[no-any-return]


def saved_elsewhere(model: Any) -> torch.Tensor:
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
        return model(X[:, :, 0, :8].mean(1)).sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("old", [doubled, recomputed, saved_elsewhere])
def test_a_graph_that_needs_no_weight_is_refused_when_it_runs(old: Callable[[Any], torch.Tensor]) -> None:
    model = Scaled()
    loss = old(model)
    cut(model, torch.randn(2, 8), 0.5)
    assert model.first.out_features == 1
    with pytest.raises(Exception, match=f"{STALE}|different metadata"):
        loss.backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    model.zero_grad()
    model(torch.randn(2, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_a_vector_that_would_broadcast() -> None:
    model = Scaled()
    x = torch.randn(2, 8, requires_grad=True)
    out = model(x)
    with pytest.raises(ModelError, match=ALIVE):
        cut(model, torch.randn(2, 8), 0.5)
    (gradient,) = torch.autograd.grad(out.sum(), [x])
    expected = (model.last.weight.sum(0) * model.scale) @ model.first.weight
    torch.testing.assert_close(gradient, expected.expand(2, 8))


def test_a_cut_that_fails_leaves_the_graphs_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    from structprune.surgery import slicing

    torch.manual_seed(0)
    model = Scaled()
    loss = doubled(model)

    def fails(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(slicing, "cut_values", fails)
        with pytest.raises(MemoryError):
            cut(model, torch.randn(2, 8), 0.5)
    loss.backward()
    assert model.first.weight.grad is not None and model.first.weight.grad.shape == (2, 8)
    cut(model, torch.randn(2, 8), 0.5)
    assert model.first.weight.grad.shape == (1, 8)
