"""``calibrate``: channels chosen, and weights that read them solved anew, by batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune import InputError, OptionError, Plan
from structprune.compensate.ridge import fitted
from structprune.compensate.targets import Targets
from tests.compensate.test_compensation import statistics_set
from tests.support.small import IMAGE, TinyResNet, chain

Tensor = torch.Tensor
FREE: dict[str, Any] = {"round_to": 1, "keep_representation": False}


def batches(*shape: int, count: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def error(small: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - model(x)).square().mean() / model(x).var())


def redundant(kernel: int = 1, groups: int = 1) -> nn.Sequential:
    """Every second channel of the first layer is the one before, times two: half of them tell all."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    with torch.no_grad():
        if groups == 1:
            first.weight[1::2] = 2 * first.weight[::2]
        else:
            first.weight[8:] = first.weight[:8]
            first.weight[1::2] = 2 * first.weight[::2]
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(16, 8, kernel, padding=kernel // 2, groups=groups), nn.ReLU(),
                         nn.Flatten(), nn.Linear(8 * 64, 5)).eval()  # fmt: skip


@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (3, 1), (3, 2)])
def test_what_others_can_say_is_lost_without_a_trace(kernel: int, groups: int) -> None:
    model, data = redundant(kernel, groups), batches(16, 3, 8, 8)
    plan = structprune.plan_pruning(model, {"0": 0.5}, calibrate=data, example_inputs=data[0], **FREE)
    kept = plan.kept["0.weight"][0]
    assert sorted(k // 2 for k in kept) == list(range(8))  # one of each pair
    small = plan.apply(model)
    (fresh,) = batches(16, 3, 8, 8, count=1, seed=7)
    assert error(small, model, fresh) < 1e-5
    assert plan.solved["2.weight"].after < 1e-5 < plan.solved["2.weight"].before
    by_norm = structprune.prune_model(model, {"0": 0.5}, compensate=data, example_inputs=data[0], **FREE)
    assert error(by_norm, model, fresh) > 0.05


def test_every_kind_of_reader_is_solved() -> None:
    class Readers(nn.Module):
        """Channels read by a linear layer after flattening, without a bias, and by a one-dimensional convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv1d(2, 12, 3, padding=1)
            self.norm = nn.BatchNorm1d(12)
            self.body = nn.Conv1d(12, 10, 3, stride=2, bias=False)
            self.flat = nn.Linear(10 * 7, 6, bias=False)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x)).relu()
            return self.head(self.flat(self.body(x).relu().flatten(1)).tanh())

    torch.manual_seed(0)
    model, data = statistics_set(Readers()), batches(32, 2, 16)
    plan = structprune.plan_pruning(model, 0.5, calibrate=data, example_inputs=data[0][:1], **FREE)
    assert plan.solved.keys() == {"body.weight", "flat.weight", "head.weight"}
    assert "calibrate: solved 3 of the 3 contractions behind the cut" in plan.notes
    (fresh,) = batches(64, 2, 16, count=1, seed=5)
    plain = structprune.prune_model(model, 0.5, example_inputs=data[0][:1], **FREE)
    made_up = structprune.prune_model(model, 0.5, compensate=data, example_inputs=data[0][:1], **FREE)
    solved = error(plan.apply(model), model, fresh)
    assert solved < 0.7 * error(made_up, model, fresh) < error(plain, model, fresh)


def test_batches_are_looked_at_together() -> None:
    model, data = statistics_set(chain(8, 8, 8)), batches(8, 3, 8, 8, count=4)
    options: dict[str, Any] = {"example_inputs": IMAGE, "importance": "l2", **FREE}
    several = structprune.prune_model(model, 0.5, calibrate=data, **options)
    one = structprune.prune_model(model, 0.5, calibrate=[torch.cat(data)], **options)
    for (name, left), right in zip(several.named_parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4, msg=name)


def test_progress_is_shown_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    model, data = redundant(), batches(8, 3, 8, 8, count=3)
    for progress in (None, False, True):
        structprune.plan_pruning(model, {"0": 0.5}, calibrate=data, progress=progress, example_inputs=data[0], **FREE)
        said = capsys.readouterr()
        # Batches, channels and weights.
        shown = [done in said.err for done in ("3/3", "16/16", "2/2")]
        assert said.out == "" and shown == [progress is True] * 3


@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_the_plan_says_what_was_solved_and_all_else_goes_on_working(granularity: Any, tmp_path: Any) -> None:
    model, data = statistics_set(TinyResNet()), batches(8, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    plan = structprune.plan_pruning(model, 0.5, granularity, calibrate=data, example_inputs=IMAGE, **FREE)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert plan.solved and all(how.after <= how.before for how in plan.solved.values())
    assert plan.settings["calibrate"] == 2 and plan.settings["importance"] == "error"

    small = plan.apply(model, verify=True)
    assert structprune.prove(model, small, IMAGE)
    assert structprune.plan_of(small).solved == plan.solved
    structprune.save(small, tmp_path / "small.safetensors")
    loaded = structprune.load(tmp_path / "small.safetensors", copy.deepcopy(model))
    assert torch.equal(loaded(IMAGE), small(IMAGE))
    in_place = copy.deepcopy(model)
    plan.apply(in_place, inplace=True)
    assert torch.equal(in_place(IMAGE), small(IMAGE))

    read = Plan.from_json(plan.to_json())
    assert read.solved == plan.solved and read == plan and not read.values
    with pytest.warns(UserWarning, match="weights anew, and their values are not in its JSON"):
        plainly = read.apply(model)
    assert not torch.equal(plainly(IMAGE), small(IMAGE))


def test_steps_go_on_from_what_was_solved() -> None:
    model, data = statistics_set(chain(16, 16, 16)), batches(8, 3, 8, 8)
    first = structprune.plan_pruning(model, 0.25, calibrate=data, example_inputs=IMAGE, **FREE)
    middle = first.apply(model)
    second = structprune.plan_pruning(middle, 0.25, calibrate=data, example_inputs=IMAGE, **FREE)
    small = second.apply(middle)
    torch.testing.assert_close(first.then(second).apply(model)(IMAGE), small(IMAGE))
    assert first.then(second).after(first).solved == second.solved


def test_a_weight_that_is_read_more_than_once_is_left() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = x + self.down(self.up(x).relu())
            return x

    torch.manual_seed(0)
    plan = structprune.plan_pruning(
        Twice().eval(), 0.5, calibrate=batches(16, 6), example_inputs=torch.zeros(1, 6), **FREE
    )
    assert not plan.solved
    assert "calibrate: its weight is read more than once (2)" in plan.notes


class Decides(nn.Module):
    """Takes another way where its inputs are large."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.up(x).relu())
        return y if x.abs().max() < 100 else -y


def test_batches_may_take_one_way_through_the_code() -> None:
    data, options = batches(16, 6), {"example_inputs": torch.zeros(1, 6), **FREE}
    assert structprune.plan_pruning(Decides(), 0.5, calibrate=data, **options).solved
    with pytest.raises(InputError, match="gives the forward True for the first batch, and something else for another"):
        structprune.plan_pruning(Decides(), 0.5, calibrate=[data[0], 1000 * data[1]], **options)


def test_a_tied_weight_stays_what_its_other_use_needs() -> None:
    class Tied(nn.Module):
        """Tokens in, tokens out, over one table."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 16)
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.table(tokens)
            return torch.nn.functional.linear(x + self.down(self.up(x).relu()), self.table.weight)

    torch.manual_seed(0)
    model, tokens = Tied().eval(), torch.randint(20, (64, 7))
    for granularity in ("filter", "channel"):
        plan = structprune.plan_pruning(
            model, 0.5, granularity, calibrate=[tokens], example_inputs=tokens[:1], **FREE  # type: ignore[arg-type]
        )  # fmt: skip
        assert "table.weight" not in plan.solved and "down.weight" in plan.solved
        small = plan.apply(model, verify=True)
        kept = plan.kept.get("table.weight", {}).get(1, range(16))
        assert torch.equal(small.table.weight, model.table.weight[:, list(kept)])


def test_a_fit_is_never_worse_on_rows_that_were_held_out() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(2, 4, 30)
    x, noise = torch.randn(40, 2, 30), 5 * torch.randn(40, 2, 4)
    fit = fitted(x, torch.einsum("rge,goe->rgo", x, matrix) + noise, matrix)
    assert fit is not None and fit.after <= fit.before
    assert fit.strength == 0 or fit.strength >= 0.1  # few rows, and much noise
    # Without noise, and with rows enough, the weights are found from anywhere.
    x = torch.randn(2000, 2, 30)
    fit = fitted(x, torch.einsum("rge,goe->rgo", x, matrix) + 3, torch.zeros_like(matrix))
    assert fit is not None
    torch.testing.assert_close(fit.matrix.float(), matrix, rtol=0, atol=0.01)
    torch.testing.assert_close(fit.offset.float(), torch.full((8,), 3.0), rtol=0, atol=0.01)
    assert fitted(x * torch.nan, x[..., :4], matrix) is None


@pytest.mark.parametrize(
    ("given", "error_type", "says"),
    [
        (torch.zeros(2, 3, 8, 8), OptionError, "calibrate is 'Tensor'; expected batches in a list"),
        ([], OptionError, "calibrate is an empty list"),
        (
            batches(2, 3, 8, 8) + batches(1, 3, 8, 8),
            InputError,
            "batch 3 is .* all have to be alike, and of the same shapes",
        ),
        (batches(2, 5, 8, 8), InputError, "calibrate: Sequential does not run with batch 1"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2))], InputError, "does not run with batch 1, .* without labels"),
        ([[torch.zeros(2, 3, 8, 8), torch.zeros(2)]], InputError, r"without labels: \[x for x, _ in loader\]"),
        ([lambda m: m(IMAGE), lambda m: m(IMAGE)], InputError, "batches that are one call each"),
    ],
)
def test_batches_that_will_not_do(given: Any, error_type: type[Exception], says: str) -> None:
    with pytest.raises(error_type, match=says):
        structprune.plan_pruning(chain(8, 8), 0.5, calibrate=given, example_inputs=IMAGE, **FREE)


def test_one_way_of_making_up_for_what_goes() -> None:
    with pytest.raises(OptionError, match="calibrate makes up for what is removed, as compensate does: give one"):
        structprune.plan_pruning(chain(8, 8), 0.5, calibrate=batches(2, 3, 8, 8), compensate=True, example_inputs=IMAGE)


class Residual(nn.Module):
    """Two branches that are added to a stream, halved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 24)
        self.up, self.down = (
            nn.ModuleList(nn.Linear(24, 48) for _ in range(2)),
            nn.ModuleList(nn.Linear(48, 24) for _ in range(2)),
        )
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + 0.5 * down(up(x).relu())
        return self.head(x)


def test_a_stream_is_mended_where_a_branch_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, (data, fresh) = Residual().eval(), batches(400, 3, 6)
    options: dict[str, Any] = {"calibrate": [data], "example_inputs": data[:1], **FREE}
    mended = structprune.prune_model(model, {"up.0": 0.75, "up.1": 0.25}, **options)
    kept: list[Any] = []
    monkeypatch.setattr(Targets, "_add_stream", lambda *given: kept.append(given))
    alone = structprune.prune_model(model, {"up.0": 0.75, "up.1": 0.25}, **options)
    assert len(kept) == 4
    assert error(mended, model, fresh) < 0.9 * error(alone, model, fresh)


@pytest.mark.parametrize("normed", [False, True])
def test_a_bias_that_cannot_change_is_counted_once(normed: bool) -> None:
    class Shared(nn.Module):
        """Two layers add one bias."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 32), nn.Linear(32, 16), nn.Linear(32, 16)
            self.norm, self.head = nn.BatchNorm1d(16) if normed else nn.Identity(), nn.Linear(16, 4)
            self.c.bias = self.b.bias

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            return self.head(self.norm(self.b(x)).relu() + self.c(x).tanh())

    torch.manual_seed(0)
    model = statistics_set(Shared())
    with torch.no_grad():
        model.b.bias.fill_(20.0)
    data, fresh = batches(256, 6)
    options: dict[str, Any] = {"example_inputs": data[:1], **FREE}
    calibrated = structprune.prune_model(model, {"a": 0.5}, calibrate=[data], **options)
    plain = structprune.prune_model(model, {"a": 0.5}, **options)
    assert error(calibrated, model, fresh) < error(plain, model, fresh)


def test_what_is_added_by_the_product_itself_is_no_part_of_the_fit() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.weight = nn.Linear(6, 32), nn.Parameter(torch.randn(32, 6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(x, self.up(x).relu(), self.weight)

    torch.manual_seed(0)
    (data,) = batches(64, 6, count=1)
    plan = structprune.plan_pruning(Added().eval(), 0.5, calibrate=[data], example_inputs=data[:1], **FREE)
    assert not plan.solved and "calibrate: it is no plain matrix product or convolution (1)" in plan.notes


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, (data, fresh) = statistics_set(chain(16, 16)).to(dtype), batches(32, 3, 8, 8)
    small = structprune.prune_model(model, 0.5, calibrate=[data.to(dtype)], example_inputs=data[:1].to(dtype), **FREE)
    assert {p.dtype for p in small.parameters()} == {dtype}
    plain = structprune.prune_model(model, 0.5, example_inputs=data[:1].to(dtype), **FREE)
    assert error(small, model, fresh.to(dtype)) < error(plain, model, fresh.to(dtype))


def test_too_few_rows_are_no_ground_for_a_fit() -> None:
    model, (data,) = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), batches(4, 6, count=1)
    small = structprune.prune_model(model, 0.5, calibrate=[data], **FREE)
    assert not structprune.plan_of(small).solved


def test_batches_are_matched_by_name_and_alike() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 32), nn.Linear(6, 32), nn.Linear(32, 4)

        def forward(self, q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
            return self.out(scale * self.a(q).relu() + self.b(k).tanh())

    torch.manual_seed(0)
    model, (q, k, r, s) = Named().eval(), batches(64, 6, count=4)
    first, second = {"q": q, "k": k}, {"q": r, "k": s}
    expected, got = (
        structprune.plan_pruning(model, 0.5, calibrate=[first, other], **FREE)
        for other in (second, dict(reversed(second.items())))
    )
    assert expected.kept == got.kept and expected.solved == got.solved
    with pytest.raises(InputError, match="all have to be alike"):
        structprune.plan_pruning(model, 0.5, calibrate=[{**first, "scale": 1.0}, {**second, "scale": 50.0}], **FREE)


def test_two_fits_of_one_weight_can_be_told_apart() -> None:
    model, data = statistics_set(chain(16, 16, 16)), batches(8, 3, 8, 8)
    first = structprune.plan_pruning(model, 0.25, calibrate=data, **FREE)
    middle = first.apply(model)
    second = structprune.plan_pruning(middle, 0.25, calibrate=data, **FREE)
    rest = first.then(second).after(first)
    assert rest.values.keys() == second.values.keys()
    torch.testing.assert_close(rest.apply(middle)(IMAGE), second.apply(middle)(IMAGE))
