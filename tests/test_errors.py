"""Bad input: one tree of errors that say what was wrong and what to do, and nothing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_pruning
from torch import nn

import structprune
from structprune import (
    InputError,
    ModelError,
    NothingToPruneError,
    OptionError,
    PlanError,
    StructPruneError,
    TraceError,
)
from tests.support.small import IMAGE, TinyResNet, chain

BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"ratio": -0.1}, r"ratio is -0.1; expected a share in \[0, 1\)"),
    ({"ratio": 1}, r"ratio is 1.0; expected a share in \[0, 1\)"),
    ({"ratio": float("nan")}, r"ratio is nan; expected a share"),
    ({"ratio": "half"}, r"ratio is 'half'; expected a number in \[0, 1\)"),
    ({"ratio": True}, "ratio is True; expected a number"),
    ({"ratio": None}, "Give one of ratio, macs, params, latency, speedup: .* Got none"),
    ({"macs": 0.5}, "Give one of ratio, .* Got ratio=0.5, macs=0.5"),
    ({"ratio": None, "macs": 0.5, "params": 0.5}, "Got macs=0.5, params=0.5"),
    ({"ratio": None, "macs": 0.0}, r"macs is 0.0; expected a share in \(0, 1\)"),
    ({"ratio": None, "params": 1}, r"params is 1; expected a share in \(0, 1\)"),
    ({"ratio": None, "speedup": 1}, "speedup is 1; expected a number above 1"),
    ({"ratio": None, "latency": True}, r"latency is True; expected a share in \(0, 1\)"),
    ({"measure": {}}, "measure says how latency"),
    ({"ratio": None, "macs": 0.5, "measure": {}}, "measure says how latency"),
    ({"ratio": None, "speedup": 2, "measure": None}, "measure is None: expected a dict of options"),
    ({"ratio": None, "macs": 0.01}, "macs=0.01 cannot be reached: .* are left. Options that allow more: granularity"),
    ({"ratio": {}}, "ratio is an empty dict"),
    ({"ratio": {"block1": 2}}, "ratio for 'block1' is 2.0; expected a share"),
    ({"ratio": {"blok1": 0.5}}, "ratio='blok1' matches no module and no parameter, did you mean 'block1"),
    ({"granularity": "filters"}, "granularity is 'filters', did you mean 'filter'"),
    ({"granularity": 3}, "granularity is 3. Expected 'filter' or 'channel'"),
    ({"importance": "l3"}, "importance is 'l3', did you mean 'l2'"),
    ({"importance": torch_pruning.importance.RandomImportance}, "the class RandomImportance; expected an object of it"),
    ({"importance": 3}, "importance is 3. Expected 'l2', 'l1', 'random', an object of torch_pruning.importance"),
    ({"importance": lambda group: None}, "importance=<lambda> returned None for the group"),
    (
        {"importance": lambda group: [1.0]},
        r"returned the shape \[1\] for the group .* expected a score for each",
    ),
    ({"importance": lambda group: [float("nan")] * group.width}, "returned nan for the group"),
    ({"scope": "everywhere"}, "scope is 'everywhere'"),
    ({"max_ratio": 0}, r"max_ratio is 0; expected a share in \(0, 1\], the most that any layer may lose"),
    ({"max_ratio": 1.5}, "max_ratio is 1.5; expected a share"),
    ({"max_ratio": None}, "max_ratio is None; expected a share"),
    ({"ratio": None, "macs": 0.3, "max_ratio": 0.2}, "macs=0.3 cannot be reached: .* a larger max_ratio"),
    ({"ignore": ["block9"]}, "ignore='block9' matches no module and no parameter, did you mean 'block"),
    ({"ignore": [3]}, "ignore holds 3; expected patterns"),
    ({"round_to": 0}, "round_to is 0; expected 'auto' or an integer"),
    ({"round_to": "8"}, "round_to is '8'"),
    ({"rond_to": 8}, "no option 'rond_to', did you mean 'round_to'"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    options = {"ratio": 0.5, "granularity": "filter", **options}
    with pytest.raises(OptionError, match=message):
        structprune.prune_model(TinyResNet(), example_inputs=IMAGE, **options)


class Hidden:
    """An output that nobody can look into."""


class Hides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        self.layer(x)
        return {"a": [Hidden()]}


class Overlapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(8, 4))
        self.b = nn.Parameter(self.a.data[:4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.a.t()


class Branchy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum().item() > 0 else x


BAD_MODELS: list[tuple[Any, Any, type[StructPruneError], str]] = [
    (3, None, ModelError, "Expected an nn.Module, got a int"),
    (nn.ReLU(), None, ModelError, "ReLU has no parameter"),
    (nn.LazyLinear(4), torch.zeros(1, 4), ModelError, "weight is lazy: run the model once"),
    (torch.jit.trace(nn.Linear(4, 4), torch.zeros(1, 4)), None, ModelError, "A TorchScript module cannot be cut"),
    (Overlapping(), torch.zeros(1, 4), ModelError, "(a and b|b and a) share memory without being the same parameter"),
    (Hides(), torch.zeros(1, 4), TraceError, r"returns a tests.test_errors.Hidden at output\['a'\]\[0\]"),
    (TinyResNet(), torch.zeros(1, 4, 16, 16), InputError, r"does not run with the example inputs \(float32\[1, 4, 16"),
    (TinyResNet(), "image", InputError, "example_inputs is a str; expected a tensor, a tuple"),
    (TinyResNet(), [], InputError, "example_inputs is an empty list"),
    (nn.Bilinear(4, 4, 4), None, InputError, "could not be inferred"),
    (nn.Linear(4, 4), None, NothingToPruneError, "Not one channel of this Linear can be removed"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "inputs", "kind", "message"), BAD_MODELS)
@pytest.mark.filterwarnings("ignore")
def test_bad_models(model: Any, inputs: Any, kind: type[StructPruneError], message: str) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()} if kind is not ModelError else None
    with pytest.raises(kind, match=message):
        structprune.prune_model(model, 0.5, example_inputs=inputs, inplace=True)
    if before is not None:
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_quantised() -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)))
    with pytest.raises(ModelError, match="0 is a quantised Linear: prune first"):
        structprune.prune_model(model, 0.5)


def test_what_cannot_be_copied() -> None:
    model = TinyResNet()
    model.stream = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"TinyResNet cannot be copied \(TypeError: cannot pickle 'generator' object"):
        structprune.prune_model(model, 0.5, example_inputs=IMAGE)


def test_nothing_to_prune_says_why_and_what_to_do() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(NothingToPruneError, match=r"(?s)representation that the head reads.*keep_representation=False"):
        structprune.prune_model(model, 0.5, example_inputs=IMAGE)


def test_meta_weights_have_no_values() -> None:
    with pytest.raises(ModelError, match=r"stem.weight is on the meta device and has no values to rank"):
        structprune.plan_pruning(TinyResNet().to("meta"), 0.5, example_inputs=IMAGE.to("meta"))


def test_a_ratio_that_would_empty_a_layer_keeps_a_channel_and_says_so() -> None:
    model = chain(4, 8)
    plan = structprune.plan_pruning(model, 0.99, example_inputs=IMAGE, round_to=4, keep_representation=False)
    small: Any = plan.apply(model)
    assert small[0].out_channels == 4 and small[3].out_channels == 4
    assert any("would empty" in note for note in plan.notes)
    plan = structprune.plan_pruning(model, 0.99, example_inputs=IMAGE, round_to=1, keep_representation=False)
    assert plan.apply(model)[0].out_channels == 1  # type: ignore[index]


@pytest.mark.parametrize("ratio", [0, 0.0, {"stem": 0}])
def test_ratio_zero_returns_an_equal_copy(ratio: Any) -> None:
    model = TinyResNet()
    small = structprune.prune_model(model, ratio, example_inputs=IMAGE)
    assert small is not model
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in model.state_dict().items())


class Untouched(nn.Module):
    """A head that the examples do not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.body = chain(16, 16)
        self.other = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, other: bool = False) -> torch.Tensor:
        features = self.body[:-1](x)
        return self.other(features) if other else self.body[-1](features)


def test_a_forward_that_reads_values_needs_them() -> None:
    with pytest.raises(InputError, match="reads the values of floating-point tensors"):
        structprune.trace(Branchy().to("meta"), torch.zeros(1, 4))


def test_untraced_parameters() -> None:
    model = Untouched()
    with pytest.raises(structprune.UntracedParameterError, match=r"No traced forward read other.weight.*allow_unt"):
        structprune.prune_model(model, 0.5, example_inputs=IMAGE)
    structprune.prune_model(model, 0.5, example_inputs=IMAGE, allow_untraced=True)
    both = [IMAGE, {"x": IMAGE, "other": True}]
    small: Any = structprune.prune_model(model, 0.5, example_inputs=both, keep_representation=False)
    assert small(torch.randn(2, 3, 16, 16), other=True).shape == (2, 4)
    assert small.other.in_features == 8


def test_a_plan_for_another_model() -> None:
    plan = structprune.plan_pruning(TinyResNet(), 0.5, example_inputs=IMAGE)
    with pytest.raises(PlanError, match=r"it has no stem.weight"):
        plan.apply(chain(16))
    other = TinyResNet()
    other.fc = nn.Linear(64, 7)
    with pytest.raises(PlanError, match=r"fc.weight is \[7, 64\], the plan was made for \[10, 64\]"):
        plan.apply(other)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_plan_applied_twice(inplace: bool) -> None:
    plan = structprune.plan_pruning(TinyResNet(), 0.5, example_inputs=IMAGE)
    small = plan.apply(TinyResNet(), inplace=True)
    before = {k: v.clone() for k, v in small.state_dict().items()}
    with pytest.raises(PlanError, match="applied to this model already"):
        plan.apply(small, inplace=inplace)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_an_error_in_the_middle_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from structprune.surgery import slicing

    model = TinyResNet()
    plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    original, calls = slicing._set_attribute, [0]

    def failing(module: nn.Module, change: Any) -> None:
        calls[0] += 1
        if calls[0] == 5:
            raise MemoryError("no more")
        original(module, change)

    monkeypatch.setattr(slicing, "_set_attribute", failing)
    with pytest.raises(MemoryError):
        plan.apply(model, inplace=True)
    assert calls[0] == 5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.block1.conv1.out_channels == 16 and model.stem.out_channels == 16
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_prove_refuses_strangers() -> None:
    model = TinyResNet()
    small = structprune.prune_model(model, 0.5, example_inputs=IMAGE)
    with pytest.raises(PlanError, match="carries no plan"):
        structprune.prove(model, TinyResNet(), IMAGE)
    with pytest.raises(PlanError, match="was not made for this Sequential"):
        structprune.prove(chain(8), small, IMAGE)
