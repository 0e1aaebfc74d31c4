"""Optimizers whose state goes along with a cut."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune import ModelError, OptionError
from tests.support.small import IMAGE, TinyResNet, chain

Z = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def trained_steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, 1e-2),
    "radam": lambda p: torch.optim.RAdam(p, 1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, 1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "asgd": lambda p: torch.optim.ASGD(p, 1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_goes_with_its_slices(name: str) -> None:
    torch.manual_seed(0)
    model = TinyResNet()
    optimizer = OPTIMIZERS[name](model.parameters())
    trained_steps(model, optimizer, Z, 2)
    parameters = dict(model.named_parameters())
    before = {n: {k: copy.deepcopy(v) for k, v in optimizer.state[p].items()} for n, p in parameters.items()}
    structprune.prune_model(model, 0.5, "channel", example_inputs=IMAGE, inplace=True, optimizer=optimizer, round_to=1)
    plan = structprune.plan_of(model)
    compared = 0
    for parameter_name, parameter in model.named_parameters():
        assert parameter is parameters[parameter_name]
        for key, value in optimizer.state[parameter].items():
            wanted = before[parameter_name][key]
            if isinstance(value, torch.Tensor) and wanted.ndim:
                assert value.shape == parameter.shape
                for dim, kept in plan.kept.get(parameter_name, {}).items():
                    wanted = wanted.index_select(dim, torch.tensor(kept))
                compared += 1
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(wanted))
    assert compared
    trained_steps(model, optimizer, Z, 2)


def test_training_goes_on_as_if_the_rest_had_never_been() -> None:
    """Where the removed filters do nothing, cutting them between two steps changes no step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        model[0].weight[6:] = 0
        model[0].bias[6:] = 0
        model[2].weight[:, 6:] = 0  # type: ignore[index, operator]
    twin, x = copy.deepcopy(model), torch.randn(16, 6)
    left, right = (torch.optim.Adam(m.parameters(), 1e-2) for m in (model, twin))
    trained_steps(model, left, x, 3)
    trained_steps(twin, right, x, 3)
    structprune.prune_model(
        model, {"0": 0.5}, example_inputs=x, inplace=True, optimizer=left, round_to=1, keep_representation=False
    )
    trained_steps(model, left, x, 3)
    trained_steps(twin, right, x, 3)
    assert model[0].out_features == 6 and torch.allclose(model(x), twin(x), atol=1e-6)


def test_iterative_pruning_while_training() -> None:
    torch.manual_seed(0)
    model = TinyResNet()
    dense = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for _ in range(3):
        trained_steps(model, optimizer, Z, 2)
        structprune.prune_model(model, 0.2, example_inputs=IMAGE, inplace=True, optimizer=optimizer, round_to=1)
    plan = structprune.plan_of(model)
    assert len(plan.settings["steps"]) == 3 and plan.fits(dense)
    assert [p.shape for p in plan.apply(dense).parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda model: torch.optim.Adafactor(model.parameters(), 1e-2), ModelError, "keeps 'row_var' .* make a new"),
        (lambda model: torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1), OptionError, "holds no parameter of this"),
        (lambda model: torch.optim.LBFGS(model.parameters(), max_iter=2), ModelError, "keeps '.*' .* make a new"),
        (lambda model: "adam", OptionError, r"optimizer is a str; expected a torch\.optim\.Optimizer"),
    ],
)
def test_an_optimizer_that_cannot_go_along(make: Any, kind: Any, message: str) -> None:
    model = TinyResNet()
    optimizer = make(model)
    if kind is ModelError:
        trained_steps(model, optimizer, Z, 1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=message):
        structprune.prune_model(model, 0.5, example_inputs=IMAGE, inplace=True, optimizer=optimizer)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_optimizer_needs_the_model_itself() -> None:
    model = chain(8, 8)
    with pytest.raises(OptionError, match="optimizer goes with inplace=True"):
        structprune.prune_model(
            model, 0.5, example_inputs=IMAGE, optimizer=torch.optim.SGD(model.parameters(), 0.1), round_to=1
        )
