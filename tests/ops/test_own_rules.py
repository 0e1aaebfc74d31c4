"""What users add: rules for their operators, surrogates, modules that are left alone, criteria over a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import structprune
from structprune.rules import Call, Labels, OperatorSpec, Registry, RuleError, Surrogate, over_graph
from tests.support import oracle

X = torch.randn(3, 8)
LIBRARY: list[Any] = []


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    """Four operators: of every entry, of an entry and the next, one that writes, and one that mixes."""
    library = torch.library.Library("ownrules", "DEF")  # type: ignore[no-untyped-call]
    made: dict[str, tuple[str, Callable[..., Any]]] = {
        "twice": ("(Tensor x) -> Tensor", lambda x: 2 * x),
        "late": ("(Tensor x) -> Tensor", lambda x: 2 * x),
        "halves": ("(Tensor x) -> Tensor", lambda x: x[..., : x.shape[-1] // 2] * x[..., x.shape[-1] // 2 :]),
        "accumulate": ("(Tensor(a!) total, Tensor x) -> ()", lambda total, x: total.add_(x) and None),
        "center": ("(Tensor x) -> Tensor", lambda x: x - x.mean(-1, keepdim=True)),
    }
    for name, (schema, function) in made.items():
        library.define(f"{name}{schema}")  # type: ignore[no-untyped-call]
        own = _accumulate if name == "accumulate" else function
        library.impl(name, own, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    LIBRARY.append(library)
    yield
    LIBRARY.clear()


def _accumulate(total: Tensor, x: Tensor) -> None:
    total.add_(x)


class Between(nn.Module):
    """An operator between two layers."""

    def __init__(self, name: str, width: int = 16) -> None:
        super().__init__()
        self.name = name
        self.first, self.last = nn.Linear(8, 16), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(getattr(torch.ops.ownrules, self.name)(self.first(x)))


class Summing(nn.Module):
    """Two layers whose outputs are added up in one tensor, or in a part of a larger one."""

    def __init__(self, within: bool = False) -> None:
        super().__init__()
        self.within = within
        self.first, self.branch, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        total = torch.zeros_like(h)
        into = total[:2] if self.within else total
        torch.ops.ownrules.accumulate(into, h[: len(into)])
        torch.ops.ownrules.accumulate(into, self.branch(h)[: len(into)])
        return self.last(total)


def passing(call: Call) -> Labels:
    return call.labels(call["x"])


def halves(call: Call) -> Labels:
    *lead, ids = call.labels(call["x"])
    if ids is None:
        return (*lead, None)
    half = len(ids) // 2
    call.couple(ids[:half], ids[half:], "")
    return (*lead, call.piece(ids[:half]))


def accumulate(call: Call) -> list[Labels]:
    total = call.labels(call["total"])
    for ids, others in zip(total, call.labels(call["x"]), strict=True):
        call.couple(ids, others, "is added to a tensor of fixed size")
    return [total]


def mixing(call: Call) -> Labels:
    h = call["x"]
    call.mix(h, len(call.shape(h)) - 1)
    return call.labels(h)


def of(name: str, rule: Callable[[Call], Any], **facts: Any) -> Registry:
    return Registry([OperatorSpec(f"ownrules::{name}", rule, **facts)])


def pruned(model: nn.Module, rules: Registry, granularity: Any = "channel") -> nn.Module:
    torch.manual_seed(0)
    return structprune.prune_model(
        model, 0.5, granularity, example_inputs=X, keep_representation=False, round_to=1, rules=rules, verify=True
    )


RIGHT: list[tuple[Callable[[], nn.Module], Registry, str]] = [
    (lambda: Between("twice"), of("twice", passing), "first"),
    (lambda: Between("halves", 8), of("halves", halves), "first"),
    (Summing, of("accumulate", accumulate), "branch"),
    (lambda: Summing(within=True), of("accumulate", accumulate), "branch"),
]


@pytest.mark.parametrize(("build", "rules", "layer"), RIGHT, ids=["pure", "pieces", "writes", "writes a part"])
def test_an_operator_with_a_rule_is_crossed(build: Callable[[], nn.Module], rules: Registry, layer: str) -> None:
    model = build()
    assert structprune.trace(model, X).unknown_operators
    small = pruned(model, rules)
    assert small.get_submodule(layer).out_features == 8
    assert structprune.prove(model, small, X, rules=rules)
    dense = oracle.randomise(model)
    assert oracle.check(dense, structprune.plan_of(small).apply(dense, verify=False), X) > 0.01


def test_a_wrong_rule_is_found_out() -> None:
    """It lets half of the entries go that the operator multiplies with the others."""

    def wrong(call: Call) -> Labels:
        *lead, ids = call.labels(call["x"])
        return (*lead, None if ids is None else ids[: len(ids) // 2])

    model, rules = Between("halves", 8), of("halves", wrong)
    with pytest.raises((structprune.VerificationError, structprune.NothingToPruneError)):
        small = pruned(model, rules)
        assert not structprune.prove(model, small, X, rules=rules)


def test_a_rule_may_come_after_its_operator_was_seen() -> None:
    model, rules = Between("late"), Registry()
    assert "ownrules::late" in structprune.trace(model, X, rules=rules).unknown_operators
    rules.operator("ownrules::late")(passing)
    assert not structprune.trace(model, X, rules=rules).unknown_operators
    # And in one that another extends.
    base = Registry()
    above = Registry(extends=base)
    assert structprune.trace(model, X, rules=above).unknown_operators
    base.operator("ownrules::late")(passing)
    assert not structprune.trace(model, X, rules=above).unknown_operators


def test_a_surrogate_makes_a_mixing_operator_provable() -> None:
    model, without = Between("center"), of("center", mixing)
    small = structprune.prune_model(model, 0.5, example_inputs=X, keep_representation=False, rules=without)
    assert "has no surrogate" in structprune.prove(model, small, X, rules=without).reason
    rules = of("center", mixing, surrogate=Surrogate(function=lambda a: a["x"]))
    assert structprune.prove(model, pruned(model, rules), X, rules=rules)


FAULTY: list[tuple[Callable[[Call], Any], str]] = [
    (lambda call: call.labels(call["y"]), "failed: KeyError: 'y'"),
    (lambda call: call.labels(call["x"])[:1], r"output 0 has 2 dimensions; expected a tuple of as many labels, got"),
    (lambda call: [passing(call), passing(call)], r"returned labels for 2 tensors, and there are 1: \[\[3, 16\]\]"),
    (lambda call: (None, np.arange(3)), "dim 1 of output 0 has 16 entries, and 3 labels"),
    (lambda call: None, "expected a tuple of as many labels, got None"),
]


@pytest.mark.parametrize(("rule", "said"), FAULTY, ids=[said[:20] for _, said in FAULTY])
def test_a_faulty_rule_is_named(rule: Callable[[Call], Any], said: str) -> None:
    model = Between("twice")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        RuleError, match=r"ownrules::twice in the model's own forward: the rule .*test_own_rules"
    ) as error:
        pruned(model, of("twice", rule))
    assert error.match(said)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_registry_refuses_what_it_cannot_hold() -> None:
    rules = of("twice", passing)
    with pytest.raises(RuleError, match=r"ownrules::twice is in this registry already, with the rule .*passing"):
        rules.operator("ownrules::twice")(passing)
    with pytest.raises(RuleError, match="A registry holds OperatorSpecs, got 3"):
        rules.add(3)  # type: ignore[arg-type]
    with pytest.raises(RuleError, match=r"opaque takes classes of modules, got a Linear \(a module\)"):
        rules.opaque(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(structprune.OptionError, match=r"rules is 3; expected a structprune.rules.Registry"):
        structprune.plan_pruning(Between("twice"), 0.5, rules=3)  # type: ignore[call-arg]


def test_a_plan_says_what_rules_it_needs() -> None:
    model, rules = Between("twice"), of("twice", passing)
    rules.opaque(nn.Tanh)
    small = pruned(model, rules)
    plan = structprune.plan_of(small)
    assert plan.settings["rules"] == ["ownrules::twice", "Tanh"]
    with pytest.raises(structprune.OptionError, match="with rules for ownrules::twice, Tanh: give the registry"):
        structprune.prove(model, small, X)
    # What was read from JSON is verified with rules that are given again.
    assert plan.apply(model, verify=True, example_inputs=X, rules=rules) is not model


class Solver(nn.Module):
    """Does what has no rule, to what it is given and in a tensor that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(16) + 0.1 * torch.randn(16, 16))

    def forward(self, h: Tensor, *, scale: float = 1.0) -> dict[str, Any]:
        return {"solved": torch.linalg.solve(self.weight, h.T).T * scale, "as given": h, "scale": scale}


class WithSolver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 16)
        self.solver = Solver()
        self.third, self.last = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.solver(self.second(self.first(x).relu()), scale=2.0)
        return self.last(self.third(out["solved"] + out["as given"]).relu()) * out["scale"]


def test_an_opaque_module_is_left_alone() -> None:
    model, rules = WithSolver(), Registry()
    assert "aten::_linalg_solve_ex" in structprune.trace(model, X).unknown_operators
    rules.opaque(Solver)
    graph = structprune.trace(model, X, rules=rules)
    assert graph.unknown_operators == {}
    assert "is part of solver, or goes in there, which the rules leave alone" in graph.explain("second.weight")
    small = pruned(model, rules)
    assert (small.first.out_features, small.second.out_features, small.third.out_features) == (16, 16, 16)
    assert small.solver.weight.shape == (16, 16)
    assert structprune.prove(model, small, X, rules=rules)
    assert "forward" not in vars(model.solver) and "forward" not in vars(small.solver)


def test_a_criterion_may_look_at_the_whole_graph() -> None:
    model, graphs = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), []

    @over_graph
    def last_first(graph: structprune.DependencyGraph) -> list[Any]:
        graphs.append(graph)
        return [-torch.arange(group.width, dtype=torch.float32) for group in graph.groups]

    options: Any = {"example_inputs": X, "keep_representation": False, "round_to": 1}
    plan = structprune.plan_pruning(model, 0.5, importance=last_first, **options)
    assert plan.kept["0.weight"][0] == tuple(range(8)) and plan.kept["2.weight"][0] == tuple(range(4))
    assert plan.settings["importance"] == "last_first" and graphs
    with pytest.raises(
        structprune.OptionError, match="returned 3; expected a list with the scores of each of the 3 gro"
    ):
        structprune.plan_pruning(model, 0.5, importance=over_graph(lambda graph: 3), **options)  # type: ignore[arg-type]
