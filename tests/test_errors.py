"""Bad input: one tree of errors that say what was wrong and what to do, and nothing changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    ({"ratio": None, "speedup": 1}, "speedup is 1; expected a factor above 1"),
    ({"ratio": None, "latency": True}, r"latency is True; expected a share in \(0, 1\)"),
    ({"ratio": None, "latency": 2}, r"latency is 2; expected a share in \(0, 1\) .* \(speedup=2 is latency=0.5\)"),
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
    ({"importance": 3}, "importance is 3. Expected 'l2', 'l1', 'group', 'error', 'random', an object of torch_pruning"),
    ({"importance": lambda group: None}, "importance=<lambda> returned None for the group"),
    (
        {"importance": lambda group: [1.0]},
        r"returned the shape \[1\] for the group .* expected a score for each",
    ),
    ({"importance": lambda group: [float("nan")] * group.width}, "returned nan for the group"),
    ({"scope": "everywhere"}, "scope is 'everywhere'"),
    ({"max_ratio": 0}, r"max_ratio is 0; expected a share in \(0, 1\], the most that any layer may lose"),
    ({"max_ratio": 1.5}, "max_ratio is 1.5; expected a share"),
    ({"max_ratio": {}}, "max_ratio is an empty dict"),
    (
        {"max_ratio": {"stem": 2}},
        r"max_ratio for 'stem' is 2; expected a share in \(0, 1\], the most that these layers may",
    ),
    ({"max_ratio": {"nowhere": 0.5}}, "max_ratio='nowhere' matches no module"),
    ({"max_ratio": None}, "max_ratio is None; expected a share"),
    ({"ratio": None, "macs": 0.3, "max_ratio": 0.2}, "macs=0.3 cannot be reached: .* a larger max_ratio"),
    ({"ignore": ["block9"]}, "ignore='block9' matches no module and no parameter, did you mean 'block"),
    ({"ignore": [3]}, "ignore holds 3; expected patterns"),
    ({"round_to": 0}, "round_to is 0; expected 'auto' or an integer"),
    ({"round_to": "8"}, "round_to is '8'"),
    ({"rond_to": 8}, "no option 'rond_to', did you mean 'round_to'"),
    ({"pruning_ratio": 0.5}, "no option 'pruning_ratio', did you mean ratio\\?"),
    ({"ignored_layers": []}, "no option 'ignored_layers', did you mean ignore\\?"),
    ({"global_pruning": True}, "no option 'global_pruning', did you mean scope=\"global\"\\?"),
    (
        {"importance": "taylor"},
        r"importance is 'taylor': it needs gradients. Run loss.backward\(\) .*TaylorImportance\(\)",
    ),
    ({"importance": "Magnitude"}, "importance is 'Magnitude', did you mean 'l2'"),
    ({"importance": "bn_scale"}, "importance is 'bn_scale'. Expected 'l2', 'l1'"),
    ({"ignore": None}, "ignore is None; expected a list of patterns .*, or of modules and parameters"),
    ({"ignore": 3}, "ignore is 3; expected a list of patterns"),
    ({"ignore": [TinyResNet().block1]}, r"ignore holds a Bottleneck \(a module\) that is no part of this TinyResNet"),
    (
        {"ignore": TinyResNet().fc.weight},
        r"ignore holds a tensor of float32\[10, 64\] that is no parameter of this Tiny",
    ),
    ({"ratio": {TinyResNet().fc: 0.5}}, r"ratio holds a Linear \(a module\) that is no part of this TinyResNet"),
    # The order of torch-pruning's arguments: the inputs second.
    ({"ratio": IMAGE}, r"ratio is a tensor of float32\[1, 3, 16, 16\]: the share .* second .*example_inputs=x"),
    ({"ratio": (IMAGE, IMAGE)}, r"ratio is \(a tensor of float32\[.*: the share of channels to remove is the second"),
    ({"ratio": {"x": IMAGE}}, r"ratio is \{'x': a tensor of float32\[1, 3, 16, 16\]\}: the share .* example_inputs=x"),
    ({"granularity": IMAGE}, r"granularity is a tensor of float32\[1, 3, 16, 16\]: inputs are given by name"),
    # No numbers of a tensor.
    ({"ratio": torch.tensor(0.25)}, r"ratio is a tensor of float32\[\]; expected a number"),
    ({"ratio": {"block1": torch.ones(2)}}, r"ratio is \{'block1': a tensor of float32\[2\]\}"),
    ({"ratio": None, "macs": torch.ones(3)}, r"macs is a tensor of float32\[3\]; expected a share"),
    ({"macs": torch.ones(3)}, r"Got ratio=0.5, macs=a tensor of float32\[3\]"),
    ({"round_to": torch.ones(3)}, r"round_to is a tensor of float32\[3\]; expected 'auto'"),
    ({"importance": torch.ones(3)}, r"importance is a tensor of float32\[3\]. Expected"),
    ({"importance": np.ones(3)}, r"importance is a NumPy array of float64\[3\]. Expected"),
    ({"scope": np.ones(3)}, r"scope is a NumPy array of float64\[3\]. Expected"),
    ({"max_ratio": torch.ones(3)}, r"max_ratio is a tensor of float32\[3\]; expected a share"),
    ({"ignore": [np.ones(3)]}, r"ignore holds a NumPy array of float64\[3\]; expected patterns"),
    (
        {"ratio": None, "speedup": 2, "measure": [torch.ones(3)]},
        r"measure is \[a tensor of float32\[3\]\]: expected a dict",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    options = {"ratio": 0.5, "granularity": "filter", **options}
    with pytest.raises(OptionError, match=message):
        structprune.prune_model(TinyResNet(), example_inputs=IMAGE, **options)


WRONG_BEFORE_TRACING = [(o, m) for o, m in BAD_OPTIONS if "returned" not in m and "cannot be reached" not in m]


@pytest.mark.parametrize(("options", "message"), WRONG_BEFORE_TRACING)
def test_bad_options_are_refused_before_the_model_runs(options: dict[str, Any], message: str) -> None:
    """Inputs that the model does not run with are found later."""
    options = {"ratio": 0.5, "granularity": "filter", **options}
    with pytest.raises(OptionError, match=message):
        structprune.plan_pruning(TinyResNet(), example_inputs=torch.zeros(1, 7), **options)


class Sums(nn.Module):
    """Takes a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, xs: list[torch.Tensor]) -> torch.Tensor:
        return self.layer(torch.cat(xs))


A, B = torch.zeros(1, 4), torch.ones(2, 4)


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
    ("model.pt", None, ModelError, r"got 'model.pt': build the model, load the weights .*structprune.load\(path"),
    (Path("model.pt"), None, ModelError, r"got .*Path\('model.pt'\): build the model"),
    (TinyResNet, None, ModelError, r"got the class TinyResNet: build one, TinyResNet\(...\), and give that"),
    (TinyResNet().state_dict(), None, ModelError, "got a OrderedDict: weights without the code that runs them. Build"),
    ({"epoch": 3, "model": TinyResNet()}, None, ModelError, "got a dict: there is a model at 'model', give that"),
    (IMAGE, None, ModelError, r"got a tensor of float32\[1, 3, 16, 16\]: the model comes first"),
    (TinyResNet(), (1, 3, 16, 16), InputError, r"looks like a shape: give torch.randn\(1, 3, 16, 16\), or"),
    (TinyResNet(), [1, 3, 16, 16], InputError, r"example_inputs is \[1, 3, 16, 16\]. That looks like a shape: give"),
    (TinyResNet(), IMAGE.shape, InputError, r"That looks like a shape: give torch.randn\(1, 3, 16, 16\)"),
    (Sums(), [A, B], InputError, r"A list is several calls, .* give \(\[a, b\],\) for one argument that is a list"),
    (Sums(), (A, B), InputError, r"A tuple holds the arguments of one call: give \(\[a, b\],\) for one argument"),
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
    calls: list[Callable[..., Any]] = [structprune.trace, structprune.count_flops, structprune.measure_latency]
    for call in calls if not isinstance(model, nn.Module) else ():
        with pytest.raises(kind, match=message):
            call(model, inputs)
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


def normalised(norm: Callable[[nn.Module], nn.Module], whole: bool) -> nn.Module:
    last = nn.Linear(16, 12)
    layers = [norm(nn.Linear(8, 16)), nn.ReLU(), norm(last) if whole else last, nn.ReLU(), nn.Linear(12, 4)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize("training", [False, True])
def test_a_spectral_norm_is_taken_over_the_channels_that_are_left(norm: Any, training: bool) -> None:
    model: Any = normalised(norm, True).train(training)
    x = torch.randn(2, 8)
    small: Any = structprune.prune_model(
        model, 0.5, example_inputs=x, keep_representation=False, round_to=1, verify=True
    )
    proof = structprune.prove(model, small, x)
    assert proof, str(proof)
    assert small.train()(x).shape == model(x).shape  # the power iteration goes on with what is left
    assert small[0].weight.shape == (8, 8) and small[2].weight.shape[1] == 8


class Runs(TinyResNet):
    """Must not run: what is wrong is known before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("it ran")


NEEDS_VALUES: list[tuple[dict[str, Any], str]] = [
    (
        {},
        r"stem.weight is on the meta device and has no values to rank: load the weights first, take importance=\"rand",
    ),
    ({"importance": "l1"}, "stem.weight is on the meta device"),
    ({"importance": torch_pruning.importance.TaylorImportance()}, "stem.weight is on the meta device"),
    ({"importance": "random", "compensate": True}, "compensate needs the values of the weights"),
    ({"importance": "random", "ratio": None, "latency": 0.5}, "latency=0.5 is measured, and the model is on the meta"),
]


@pytest.mark.parametrize(("options", "message"), NEEDS_VALUES)
def test_what_needs_values_is_refused_before_a_model_without_them_runs(options: dict[str, Any], message: str) -> None:
    model = Runs().to("meta")
    with pytest.raises(ModelError, match=message):
        structprune.plan_pruning(model, **{"ratio": 0.5, "example_inputs": IMAGE, **options})


@pytest.mark.parametrize(
    "importance", ["random", lambda group: list(range(group.width)), torch_pruning.importance.RandomImportance()]
)
def test_criteria_without_values_rank_a_model_without_them(importance: Any) -> None:
    plan = structprune.plan_pruning(TinyResNet().to("meta"), 0.5, example_inputs=IMAGE, importance=importance)
    assert plan.params[1] < plan.params[0]


# Modules and parameters in place of patterns.


def tied_ends() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))
    again = nn.Linear(16, 8, bias=False)
    again.weight = model[2].weight  # type: ignore[assignment]
    return nn.Sequential(OrderedDict({"body": model, "b[1]": nn.Linear(4, 16), "again": again}))


MEANT: list[tuple[Callable[[], nn.Module], Callable[[Any], Any], Callable[[Any], Any], tuple[str, ...]]] = [
    (TinyResNet, lambda m: [m.block1], lambda m: ["block1"], ("block1",)),
    (TinyResNet, lambda m: m.block1.conv1, lambda m: "block1.conv1", ("block1.conv1",)),
    (TinyResNet, lambda m: m.stem.weight, lambda m: ["stem.weight"], ("stem.weight",)),
    (TinyResNet, lambda m: (m.stem, "block1.conv2"), lambda m: ("stem", "block1.conv2"), ("stem", "block1.conv2")),
    (TinyResNet, lambda m: iter([m.stem]), lambda m: ["stem"], ("stem",)),
    (tied_ends, lambda m: [getattr(m, "b[1]")], lambda m: ["b[[]1]"], ("b[[]1]",)),
    (tied_ends, lambda m: [m.again], lambda m: ["body.2.weight"], ("body.2.weight",)),
]


@pytest.mark.parametrize(("make", "objects", "patterns", "said"), MEANT)
def test_modules_and_parameters_name_themselves(make: Any, objects: Any, patterns: Any, said: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = make()
    options: dict[str, Any] = {"example_inputs": IMAGE if make is TinyResNet else torch.zeros(1, 8), "round_to": 1}
    plan = structprune.plan_pruning(model, 0.5, ignore=objects(model), keep_representation=False, **options)
    assert plan.settings["ignore"] == list(said)
    assert plan == structprune.plan_pruning(model, 0.5, ignore=patterns(model), keep_representation=False, **options)


def test_modules_as_keys_of_ratios() -> None:
    model = TinyResNet()
    ratios = {model.block1.conv1: 0.5, model.block1.conv2.weight: 0.25, "stem": 0.75}
    plan = structprune.plan_pruning(model, ratios, example_inputs=IMAGE, round_to=1)
    named = {"block1.conv1": 0.5, "block1.conv2.weight": 0.25, "stem": 0.75}
    assert plan.settings["ratio"] == named
    assert plan == structprune.plan_pruning(model, named, example_inputs=IMAGE, round_to=1)
    everywhere = structprune.plan_pruning(model, {model: 0.5}, example_inputs=IMAGE, round_to=1)
    assert everywhere.kept == structprune.plan_pruning(model, 0.5, example_inputs=IMAGE, round_to=1).kept
    with pytest.raises(OptionError, match=r"ignore holds block1.relu, a ReLU \(a module\) without parameters"):
        structprune.plan_pruning(model, 0.5, ignore=[model.block1.relu], example_inputs=IMAGE)


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
