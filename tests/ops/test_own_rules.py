"""What users add: rules for their operators, surrogates, modules that are left alone, criteria over a graph."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import structprune
from structprune.rules import Call, Labels, OperatorSpec, Registry, RuleError, Surrogate, over_graph
from tests.support import oracle

X = torch.randn(3, 8)
LIBRARY: list[Any] = []


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    """Operators that no rule is known of: of every entry, of halves, some that write, and one that mixes."""
    library = torch.library.Library("ownrules", "DEF")  # type: ignore[no-untyped-call]
    made: dict[str, tuple[str, Callable[..., Any]]] = {
        "twice": ("(Tensor x) -> Tensor", lambda x: 2 * x),
        "late": ("(Tensor x) -> Tensor", lambda x: 2 * x),
        "halves": ("(Tensor x) -> Tensor", lambda x: x[..., : x.shape[-1] // 2] * x[..., x.shape[-1] // 2 :]),
        "accumulate": ("(Tensor(a!) total, Tensor x) -> ()", _accumulate),
        "center": ("(Tensor x) -> Tensor", lambda x: x - x.mean(-1, keepdim=True)),
        "flipped": ("(Tensor(a!) total, Tensor x) -> ()", _add_flipped),
        "double_": ("(Tensor(a!) x) -> ()", _double),
    }
    for name, (schema, function) in made.items():
        library.define(f"{name}{schema}")  # type: ignore[no-untyped-call]
        library.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    LIBRARY.append(library)
    yield
    LIBRARY.clear()


def _accumulate(total: Tensor, x: Tensor) -> None:
    total.add_(x)


def _add_flipped(total: Tensor, x: Tensor) -> None:
    total.add_(x.flip(-1))


def _double(x: Tensor) -> None:
    x.mul_(2)


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
    assert "goes into solver or belongs to it, which the rules leave alone" in graph.explain("second.weight")
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


class Made(nn.Module):
    """Writes into a tensor of the default dtype, whatever its own is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.beside = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        total = torch.zeros(h.shape)
        torch.ops.ownrules.flipped(total, h)
        return self.last(h) + self.beside(total)


def test_what_is_written_into_a_new_tensor_is_not_lost_in_float64() -> None:
    """A wrong rule: the operator turns the channels round, and the rule says that they keep their places."""
    model, rules = Made(), of("flipped", accumulate)
    with pytest.raises(structprune.VerificationError):
        pruned(model, rules)
    small = structprune.plan_pruning(
        model, 0.5, "channel", example_inputs=X, keep_representation=False, round_to=1, rules=rules
    ).apply(model, verify=False)
    assert not structprune.prove(model, small, X, rules=rules)


class WritesItsWeight(nn.Module):
    """Writes into its parameter whenever it runs: by an operator of its own, or inside an opaque module."""

    def __init__(self, by_operator: bool) -> None:
        super().__init__()
        self.weight, self.by_operator = nn.Parameter(torch.ones(3, 16)), by_operator

    def forward(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            if self.by_operator:
                torch.ops.ownrules.accumulate(self.weight, h)
            else:
                self.weight.mul_(1.5)
        return h * self.weight


@pytest.mark.parametrize("by_operator", [True, False])
def test_verification_leaves_weights_that_are_written_as_they_are(by_operator: bool) -> None:
    model: Any = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), WritesItsWeight(by_operator))
    model.extend([nn.Linear(16, 32), nn.Linear(32, 4)])
    rules = of("accumulate", accumulate)
    if not by_operator:
        rules.opaque(WritesItsWeight)
    small: Any = structprune.prune_model(model, 0.5, example_inputs=X, keep_representation=False, rules=rules)
    assert torch.equal(model[3].weight, torch.ones(3, 16)) and bool((small[3].weight == 1).all())


class ByMethod(nn.Module):
    """Holds a weight that is used without its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))

    def encode(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight)


class Handed(NamedTuple):
    """What a module is handed within an object."""

    tensor: Tensor


class Box:
    """Pytree knows nothing of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Averages(nn.Module):
    def forward(self, given: Any) -> Tensor:
        return given.tensor.mean(-1, keepdim=True)


class Around(nn.Module):
    def __init__(self, inner: nn.Module, wrap: Any = None) -> None:
        super().__init__()
        self.first, self.second, self.inner, self.last = nn.Linear(8, 32), nn.Linear(32, 16), inner, nn.Linear(16, 4)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x))
        if self.wrap is None:
            return self.last(self.inner.encode(h))  # type: ignore[operator]
        return self.last(h) + self.inner(self.wrap(h))


@pytest.mark.parametrize("wrap", [None, Handed, Box])
def test_what_an_opaque_module_holds_or_is_handed_stays(wrap: Any) -> None:
    model, rules = Around(ByMethod() if wrap is None else Averages(), wrap), Registry()
    rules.opaque(ByMethod, Averages)
    small = pruned(model, rules)
    assert small.second.out_features == 16 and small.first.out_features == 16
    if wrap is None:
        assert small.inner.weight.shape == (16, 16)
    assert structprune.prove(model, small, X, rules=rules)


class Factor(nn.Module):
    """Makes a factor of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 32))

    def forward(self) -> Tensor:
        return torch.sigmoid(self.weight)


class WithFactor(nn.Module):
    def __init__(self, written: bool) -> None:
        super().__init__()
        self.first, self.last, self.matrix = nn.Linear(8, 32), nn.Linear(40, 4), nn.Parameter(torch.randn(40, 32))
        self.factor = None if written else Factor()
        self.more = nn.Parameter(torch.ones(40, 32)) if written else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.matrix.clone()
        if self.factor is None:
            torch.ops.ownrules.accumulate(weight, self.more)
        else:
            weight = weight * self.factor()
        return self.last(F.linear(self.first(x), weight))


def test_weights_that_an_operator_writes_into_are_ranked() -> None:
    model, rules = WithFactor(written=True), of("accumulate", accumulate)
    assert structprune.prove(model, pruned(model, rules), X, rules=rules)


def test_what_is_multiplied_with_what_an_opaque_module_makes_stays() -> None:
    model, rules = WithFactor(written=False), Registry()
    rules.opaque(Factor)
    with pytest.raises(structprune.NothingToPruneError, match=r"first.weight: is multiplied with a tensor"):
        pruned(model, rules)


class Descends(nn.Module):
    """A solver that takes gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Linear(16, 1)

    def forward(self, h: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = h.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(inner).square().sum(), inner)
        return h - gradient


def test_an_opaque_module_may_take_gradients() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), Descends(), nn.Linear(16, 4))
    rules = Registry()
    rules.opaque(Descends)
    small: Any = pruned(model, rules)
    assert small[0].out_features == 16 and structprune.prove(model, small, X, rules=rules)


def test_an_operator_that_is_named_as_one_in_place_and_returns_nothing() -> None:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).clone()
            torch.ops.ownrules.double_(h)
            return self.last(h)

    model = Doubling()
    for name in ("ownrules::double_", "ownrules::double"):
        rules = Registry([OperatorSpec(name, lambda call: [call.labels(call["x"])])])
        assert structprune.prove(model, pruned(model, rules), X, rules=rules)


def test_plans_with_rules_can_be_pickled() -> None:
    rules = Registry([OperatorSpec("ownrules::twice", passing)], Registry())
    rules.opaque(Factor)
    plan = structprune.plan_pruning(Between("twice"), 0.5, example_inputs=X, keep_representation=False, rules=rules)
    again = pickle.loads(pickle.dumps(plan))
    assert again.rules.added == ["ownrules::twice", "Factor"] and again == plan
    assert again.rules.spec("aten::add") is Registry().spec("aten::add")


def test_a_plan_says_what_its_macs_leave_out_and_which_rules_did_not_run() -> None:
    rules = Registry([OperatorSpec("ownrules::twice", passing), OperatorSpec("ownrules::twise", passing)])
    plan = structprune.plan_pruning(Between("twice"), 0.5, example_inputs=X, keep_representation=False, rules=rules)
    assert "the MACs leave out what has no formula for them: ownrules::twice" in plan.notes
    assert "the rules know ownrules::twise, which the model does not run" in plan.notes
    counted = of("twice", passing, flops=lambda args, kwargs, out: 200 * out.numel())
    more = structprune.plan_pruning(Between("twice"), 0.5, example_inputs=X, keep_representation=False, rules=counted)
    assert more.macs[0] == plan.macs[0] + 100 * 3 * 16 and not any("leave out" in note for note in more.notes)
    assert structprune.count_flops(Between("twice"), X, rules=counted).macs == more.macs[0]
    assert "ownrules::twice" in structprune.count_flops(Between("twice"), X).uncounted
    with pytest.raises(RuleError, match="The FLOPs of ownrules::twice, as its spec has them: TypeError"):
        wrong = of("twice", passing, flops=lambda out: 1)
        structprune.plan_pruning(Between("twice"), 0.5, example_inputs=X, keep_representation=False, rules=wrong)


@pytest.mark.parametrize("name", ["ownrules::twice.default", "ownrules.twice", 3])
def test_names_of_operators_are_checked(name: Any) -> None:
    with pytest.raises(RuleError, match=r"An operator is named as 'mylibrary::swish'.* Got"):
        OperatorSpec(name)


def test_a_surrogate_is_one() -> None:
    with pytest.raises(RuleError, match=r"The surrogate of ownrules::center is .*; expected a Surrogate"):
        OperatorSpec("ownrules::center", mixing, surrogate=lambda a: a["x"])  # type: ignore[arg-type]
