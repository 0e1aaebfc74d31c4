"""Weights that make up for a number which code computes from a width: right against a network with zeroed rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import structprune
from tests.support import oracle
from tests.support.attention import attend

WIDTH = 32


def silenced(dense: nn.Module, plan: structprune.Plan) -> nn.Module:
    """The dense network whose removed rows of weights and biases are zero, so that nothing comes of them."""
    silent = copy.deepcopy(dense)
    with torch.no_grad():
        for name, tensor in silent.named_parameters():
            kept = plan.kept.get(name, {}).get(0)
            if kept is not None:
                tensor[sorted(set(range(len(tensor))) - set(kept))] = 0
    return silent


def judged(model: nn.Module, x: Tensor, **options: Any) -> structprune.Plan:
    """Prune a randomised model and hold the result against the silenced one, in both modes."""
    oracle.randomise(model.eval())
    x = x.double()
    plan = structprune.plan_pruning(model, 0.5, example_inputs=x, round_to=1, keep_representation=False, **options)
    pruned, silent = plan.apply(model), silenced(model, plan)
    for training in (False, True):
        torch.testing.assert_close(pruned.train(training)(x), silent.train(training)(x), rtol=1e-12, atol=1e-12)
    difference = (silent.eval()(x) - model.eval()(x)).abs().max()
    assert difference > 1e-3
    assert structprune.prove(model, pruned, x)
    return plan


class Scaled(nn.Module):
    """Something between two layers that depends on how many channels there are."""

    def __init__(self, how: Callable[[Tensor], Tensor], first: nn.Module | None = None) -> None:
        super().__init__()
        self.wide = first or nn.Linear(8, WIDTH)
        self.head, self.how = nn.Linear(WIDTH, 4), how

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.how(self.wide(x)))


@pytest.mark.parametrize(
    "how",
    [
        lambda h: h / h.shape[1] ** 0.5,
        lambda h: h * h.shape[1] ** -0.5,
        lambda h: torch.relu(h) / h.shape[1],
        lambda h: (h.unsqueeze(1) * 3).amax(1) / h.shape[1],
        lambda h: torch.cat([h / h.shape[1], h * 2 / h.shape[1]], 0).chunk(2)[1],
    ],
    ids=["root", "power", "relu", "largest", "twice"],
)
def test_a_factor_of_a_width(how: Any) -> None:
    plan = judged(Scaled(how), torch.randn(6, 8))
    assert set(plan.row_scales) == {"wide.weight", "wide.bias"} and "16 rows times" in str(plan)
    assert structprune.Plan.from_json(plan.to_json()) == plan


def test_of_a_convolution() -> None:
    def mean(h: Tensor) -> Tensor:
        return (h / h.shape[1]).mean((2, 3))

    plan = judged(Scaled(mean, nn.Conv2d(3, WIDTH, 3)), torch.randn(2, 3, 6, 6))
    assert set(plan.row_scales) == {"wide.weight", "wide.bias"}
    without = judged(Scaled(mean, nn.Conv2d(3, WIDTH, 3, bias=False)), torch.randn(2, 3, 6, 6))
    assert set(without.row_scales) == {"wide.weight"}


class OneHead(nn.Module):
    """Attention of one head: its width goes. ``how`` computes it from queries, keys and values."""

    def __init__(
        self, how: Callable[[Tensor, Tensor, Tensor], Tensor], fused: bool = True, normed: bool = False
    ) -> None:
        super().__init__()
        self.how, self.fused, self.normed = how, fused, normed
        if fused:
            self.qkv = nn.Linear(8, 3 * WIDTH)
        else:
            self.q, self.k, self.v = nn.Linear(8, WIDTH), nn.Linear(8, WIDTH, bias=False), nn.Linear(8, WIDTH)
        if normed:
            self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 1, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (layer(x).unsqueeze(1) for layer in (self.q, self.k, self.v))
        if self.normed:
            q = self.norm(q)
        return self.out(self.how(q, k, v).transpose(1, 2).flatten(2))


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v)


def of_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q / q.shape[-1] ** 0.5, k, v)


def of_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5).softmax(-1) @ v


@pytest.mark.parametrize("how", [kernel, of_queries, of_scores])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "apart"])
def test_attention_of_one_head(how: Any, fused: bool) -> None:
    plan = judged(OneHead(how, fused), torch.randn(2, 5, 8))
    both = how is kernel  # it multiplies queries and keys with the root of the scale
    expected = {"qkv.weight", "qkv.bias"} if fused else {"q.weight", "q.bias", *(["k.weight"] if both else [])}
    assert set(plan.row_scales) == expected
    values = sorted(set(plan.row_scales["qkv.weight" if fused else "q.weight"]))
    assert values == pytest.approx([2 ** (-0.25 if both else -0.5), *([1] if fused else [])])


def test_a_norm_of_queries_has_weights_of_its_own() -> None:
    """Its statistics are others in a narrower network, so that only the proof, with a surrogate, can tell."""
    model, x = OneHead(of_queries, fused=False, normed=True), torch.randn(2, 5, 8)
    plan = structprune.plan_pruning(model, 0.5, example_inputs=x, round_to=1, keep_representation=False)
    assert set(plan.row_scales) == {"norm.weight", "norm.bias"}
    assert structprune.prove(model, plan.apply(model), x)


@pytest.mark.parametrize(
    "how",
    [
        lambda h: h + h.shape[1],
        lambda h: torch.tanh(h) / h.shape[1],
        lambda h: h + h / h.shape[1],
        lambda h: h * (h / h.shape[1]),
        lambda h: (h + 1) / h.shape[1],
        lambda h: torch.cat([h / h.shape[1], h], 0).chunk(2)[1],
    ],
    ids=["added", "tanh", "beside", "squared", "with a number", "read twice"],
)
def test_what_scaling_would_change_stays(how: Any) -> None:
    model = Scaled(how)
    with pytest.raises(structprune.NothingToPruneError, match="it depends on the size"):
        structprune.plan_pruning(model, 0.5, keep_representation=False, example_inputs=torch.randn(6, 8))


def test_a_weight_that_another_layer_shares_stays() -> None:
    class Tied(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.head(self.wide(x))

    with pytest.raises(structprune.NothingToPruneError, match="it depends on the size"):
        structprune.plan_pruning(
            Tied(lambda h: h / h.shape[1]), 0.5, keep_representation=False, example_inputs=torch.randn(6, 8)
        )


def test_one_layer_called_twice_is_multiplied_once() -> None:
    class Twice(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(x.flip(0))

    plan = judged(Twice(lambda h: h / h.shape[1]), torch.randn(6, 8))
    assert set(plan.row_scales["wide.weight"]) == {0.5}


def test_steps_follow_each_other(tmp_path: Any) -> None:
    """Two cuts as one plan, the second one alone, in place, and from a file."""
    model, x = OneHead(kernel), torch.randn(2, 5, 8)
    oracle.randomise(model)
    x = x.double()
    options: Any = {"example_inputs": x, "round_to": 1, "keep_representation": False}
    first = structprune.prune_model(model, 0.5, **options)
    second = structprune.prune_model(first, 0.5, **options)
    plan = structprune.plan_of(second)
    assert sorted(set(plan.row_scales["qkv.weight"])) == pytest.approx([0.25**0.25, 1])
    assert structprune.prove(model, second, x)
    torch.testing.assert_close(second(x), silenced(model, plan)(x), rtol=1e-12, atol=1e-12)
    alone = plan.after(structprune.plan_of(first))
    torch.testing.assert_close(alone.apply(first)(x), second(x))
    structprune.save(second, tmp_path / "small.safetensors")
    torch.testing.assert_close(structprune.load(tmp_path / "small.safetensors", model)(x), second(x))
    whole = structprune.prune_model(copy.deepcopy(model), 0.75, inplace=True, **options)
    assert structprune.prove(model, whole, x)


class Modes(Scaled):
    """The number is computed in one mode only."""

    def __init__(self, training: bool) -> None:
        super().__init__(nn.Identity())
        self.when = training

    def forward(self, x: Tensor) -> Tensor:
        h = self.wide(x)
        return self.head(h / h.shape[1] if self.training == self.when else h)


@pytest.mark.parametrize("training", [False, True])
def test_no_weights_serve_two_modes_that_differ(training: bool) -> None:
    with pytest.raises(structprune.NothingToPruneError, match="it depends on the size"):
        structprune.plan_pruning(Modes(training), 0.5, keep_representation=False, example_inputs=torch.randn(6, 8))


class Other(nn.Module):
    """Something of a layer of its own over the width of another layer."""

    def __init__(self, between: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.wide, self.head, self.side, self.out = (
            nn.Linear(8, 32),
            nn.Linear(32, 4),
            nn.Linear(8, 12),
            nn.Linear(12, 4),
        )
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.wide(x)
        return self.head(h) + self.out(self.between(self.side(x), h.shape[1]))


def written(y: Tensor, n: int) -> Tensor:
    buffer = torch.zeros(y.shape, dtype=y.dtype, device=y.device)
    torch.mul(y, 2.0, out=buffer)
    return y / n + buffer


@pytest.mark.parametrize(
    "between",
    [
        lambda y, n: y / n + torch.tanh(nn.Parameter(y, requires_grad=False)),
        written,
        lambda y, n: torch.div(y, 0.3, rounding_mode="floor") / n,
        lambda y, n: y.sum(1, keepdim=True, dtype=torch.long) / n + y / n,
        lambda y, n: torch.addmm(y, y, torch.ones(12, 12, dtype=y.dtype, device=y.device)) / n,
    ],
    ids=["shared memory", "out=", "rounded", "integers", "addmm of itself"],
)  # fmt: skip
def test_ways_that_are_not_proportional(between: Any) -> None:
    """They are refused, or cut without the number's width and right."""
    model = oracle.randomise(Other(between).eval())
    x = torch.randn(6, 8, dtype=torch.float64)
    try:
        plan = structprune.plan_pruning(model, 0.5, example_inputs=x, round_to=1, keep_representation=False)
    except structprune.NothingToPruneError as error:
        assert "it depends on the size" in str(error)
        return
    assert not plan.row_scales and plan.kept.keys() == {"side.weight", "side.bias", "out.weight"}
    with torch.no_grad():  # ``out=`` cannot be differentiated
        torch.testing.assert_close(plan.apply(model)(x), silenced(model, plan)(x), rtol=1e-12, atol=1e-12)


def test_layers_that_lose_nothing_are_not_touched() -> None:
    """``ignore`` leaves a layer alone, its values too."""
    model, x = Other(lambda y, n: y / n), torch.randn(6, 8)
    with pytest.raises(structprune.NothingToPruneError, match="it depends on the size"):
        structprune.plan_pruning(model, 0.5, ignore=["side", "out"], example_inputs=x, keep_representation=False)


class Weighted(Scaled):
    """A weight of another layout, read by a function."""

    def __init__(self, weight: Tensor, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(lambda h: h / h.shape[1])
        del self.wide
        self.weight, self.read = nn.Parameter(weight), how

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.how(self.read(x, self.weight)))


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((8, WIDTH), lambda x, w: x @ w),
        ((1, 1, 8, WIDTH), lambda x, w: nn.functional.conv2d(x[:, :, None, None], w.permute(3, 2, 0, 1))[:, :, 0, 0]),
        ((8, WIDTH, 1, 1), lambda x, w: nn.functional.conv2d(x[:, :, None, None], w.transpose(0, 1))[:, :, 0, 0]),
    ],
    ids=["in by out", "HWIO", "transposed"],
)
def test_rows_that_are_not_the_outputs_stay(shape: tuple[int, ...], read: Any) -> None:
    model = oracle.randomise(Weighted(torch.randn(shape), read).eval())
    x = torch.randn(6, 8, dtype=torch.float64)
    with pytest.raises(structprune.NothingToPruneError, match="it depends on the size"):
        structprune.plan_pruning(model, 0.5, example_inputs=x, keep_representation=False)


class Added(Scaled):
    """A tensor of the model is added before the number."""

    def __init__(self, added: Tensor, *, buffer: bool = False) -> None:
        super().__init__(lambda h: h / h.shape[1])
        self.register_buffer("added", added) if buffer else self.register_parameter("added", nn.Parameter(added))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.how(self.wide(x) + self.added))


def test_what_is_added() -> None:
    """A vector is multiplied along; integers, and a number that all channels share, are not."""
    assert set(judged(Added(torch.randn(WIDTH)), torch.randn(6, 8)).row_scales) == {"wide.weight", "wide.bias", "added"}
    for stays in (Added(torch.arange(WIDTH), buffer=True), Added(torch.tensor(0.3)), Added(torch.randn(1, WIDTH))):
        with pytest.raises(structprune.NothingToPruneError, match="it depends on the size"):
            structprune.plan_pruning(stays, 0.5, keep_representation=False, example_inputs=torch.randn(6, 8))


def test_views_of_what_is_added_up() -> None:
    plan = judged(Scaled(lambda h: (h.reshape(-1) / h.shape[1]).reshape(h.shape)), torch.randn(6, 8))
    assert set(plan.row_scales) == {"wide.weight", "wide.bias"} and set(plan.row_scales["wide.weight"]) == {0.5}


def test_gradients_are_those_of_the_new_weights() -> None:
    """In place or not: what the loss changes by, for a weight that is half as large, is twice as much."""
    model, x = oracle.randomise(Scaled(lambda h: h / h.shape[1])), torch.randn(6, 8, dtype=torch.float64)
    model(x).sum().backward()
    options: Any = {"example_inputs": x, "round_to": 1, "keep_representation": False}
    plan = structprune.plan_pruning(model, 0.5, **options)
    kept, before = list(plan.kept["wide.weight"][0]), model.wide.weight.grad.clone()
    for pruned in (plan.apply(model), plan.apply(model, inplace=True)):
        torch.testing.assert_close(
            pruned.wide.weight.grad, before[kept] / torch.tensor(plan.row_scales["wide.weight"])[:, None]
        )
