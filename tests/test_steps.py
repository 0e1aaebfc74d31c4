"""Pruning in steps: plans that are composed, and optimizers whose state goes along."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune import ModelError, OptionError, Plan, PlanError
from tests.support.attention import INPUTS, TOKENS, Net, Separate
from tests.support.small import IMAGE, TinyResNet, chain

X = torch.randn(1, TOKENS, INPUTS, generator=torch.Generator().manual_seed(0))
Z = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NETWORKS: dict[str, tuple[Any, torch.Tensor, dict[str, Any]]] = {
    "chain": (lambda: chain(16, 24, 8), IMAGE, {}),
    "residual": (TinyResNet, IMAGE, {"granularity": "channel"}),
    "attention": (lambda: Net(Separate()), X, {"granularity": "channel", "keep_representation": False}),
}


def trained_steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


@pytest.mark.parametrize("name", NETWORKS)
def test_two_cuts_are_one_plan(name: str) -> None:
    make, x, options = NETWORKS[name]
    model = make().eval()
    options = {"example_inputs": x, "round_to": 1, **options}
    once = structprune.prune_model(model, 0.3, **options)
    twice = structprune.prune_model(once, 0.4, **options)
    whole = structprune.plan_of(twice)
    assert whole.fits(model) and whole.params[0] == structprune.plan_of(once).params[0]
    assert Plan.from_json(whole.to_json()) == whole
    at_once = whole.apply(model)
    states = (at_once.state_dict(), twice.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.equal(at_once(x), twice(x)) and str(whole).count("ratio 0.") == 2
    # Against the dense model, and against the one in between.
    assert structprune.prove(model, twice, x) and structprune.prove(once, twice, x)
    assert structprune.prove(model, once, x)
    removed = {g.name: g.removed for g in whole.groups}
    for step in (structprune.plan_of(once), structprune.plan_pruning(once, 0.4, **options)):
        for group in step.groups:
            removed[group.name] -= group.removed
    assert not any(removed.values())


def test_the_second_part_of_a_plan() -> None:
    model = chain(16, 24, 8)
    first = structprune.plan_pruning(model, 0.25, example_inputs=IMAGE, round_to=1)
    once = first.apply(model)
    second = structprune.plan_pruning(once, 0.5, example_inputs=IMAGE, round_to=1)
    again = first.then(second).after(first)
    assert (again.kept, again.attributes, again.shapes) == (second.kept, second.attributes, second.shapes)
    assert (again.params, again.macs, again.settings) == (second.params, second.macs, dict(second.settings))
    for mine, theirs in zip(again.groups, second.groups, strict=True):
        assert (mine.width, mine.removed) == (theirs.width, theirs.removed)
        assert abs(mine.score_removed - theirs.score_removed) < 1e-9 and mine.removed <= mine.width
    others = structprune.plan_pruning(model, {"3": 0.5}, example_inputs=IMAGE, round_to=1)
    with pytest.raises(PlanError, match=r"which cuts 0\.weight where it does not"):
        others.after(structprune.plan_pruning(model, {"0": 0.5}, example_inputs=IMAGE, round_to=1))
    with pytest.raises(PlanError, match=r"The second plan does not follow this one: 0\.weight is \[12"):
        first.then(first)
    with pytest.raises(PlanError, match=r"does not begin with that one, which removes slices of .* that it keeps"):
        structprune.plan_pruning(model, 0.3, example_inputs=IMAGE, importance="random").after(first)
    with pytest.raises(PlanError, match="does not begin with that one"):
        second.after(first)


def test_compensation_in_steps() -> None:
    torch.manual_seed(0)
    model = chain(16, 24, 8).eval()
    structprune.recalibrate(model, [Z])
    options: dict[str, Any] = {"example_inputs": IMAGE, "round_to": 1, "compensate": [Z]}
    once = structprune.prune_model(model, 0.3, **options)
    second = structprune.plan_pruning(once, 0.4, **options)
    twice = second.apply(once)
    whole = structprune.plan_of(twice)
    for name, value in whole.apply(model).state_dict().items():
        assert torch.allclose(value, twice.state_dict()[name], atol=1e-6)
    rest = whole.after(structprune.plan_of(once))
    assert rest.shifts.keys() >= second.shifts.keys()
    for name, shift in second.shifts.items():
        assert rest.shifts[name] == pytest.approx(shift, abs=1e-9)
        if name in second.scales:
            assert rest.scales[name] == pytest.approx(second.scales[name])


def test_compensated_steps_are_proved() -> None:
    torch.manual_seed(0)
    model = chain(16, 24, 8).eval()
    structprune.recalibrate(model, [Z])
    options: dict[str, Any] = {"example_inputs": IMAGE, "round_to": 1, "compensate": True}
    once = structprune.prune_model(model, 0.25, **options)
    twice = structprune.prune_model(once, 0.25, **options)
    assert structprune.prove(model, twice, IMAGE) and structprune.prove(once, twice, IMAGE)


def test_a_model_that_was_changed_between_two_cuts() -> None:
    once: Any = structprune.prune_model(chain(16, 24, 8), 0.5, example_inputs=IMAGE, keep_representation=False)
    once[11] = nn.Linear(4, 5)
    twice = structprune.prune_model(once, 0.5, example_inputs=IMAGE, round_to=1)
    plan = structprune.plan_of(twice)
    assert "this plan begins after that" in plan.notes[-1] and plan.fits(once)
    assert structprune.prove(once, twice, IMAGE)


def test_a_plan_for_the_dense_model_meets_a_pruned_one() -> None:
    model = chain(16, 24, 8)
    plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE)
    with pytest.raises(PlanError, match="applied to this model already"):
        plan.apply(plan.apply(model))


# Optimizers.

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
