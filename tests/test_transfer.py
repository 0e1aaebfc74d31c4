"""Compute-optimal transfer: the meter, fine-tuning for a budget, sweeps and their frontier."""

from __future__ import annotations

import json
import math
import os
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from structprune import ModelError, OptionError
from structprune.transfer import (
    ComputeMeter,
    Frontier,
    LearningCurve,
    Point,
    ScalingLaw,
    Task,
    finetune,
    new_head,
    plot_errors,
    plot_stream,
    sweep,
)
from structprune.transfer.interval import interval, jackknife

BATCH = 16


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def data(seed: int = 0, count: int = 96) -> TensorDataset:
    """Bright upper or lower halves, with noise: learnt in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.5
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4] += 1
    return TensorDataset(images, labels)


TASK = Task("halves", data(0), data(1), classes=2)


# The meter.


def frozen(model: nn.Sequential, upto: int) -> nn.Sequential:
    for module in list(model)[:upto]:
        module.requires_grad_(False)
    return model


@pytest.mark.parametrize("upto", [0, 4, 8], ids=["full", "partly frozen", "head only"])
def test_the_meter_against_torch_and_the_closed_form(upto: int) -> None:
    model, x = frozen(network(), upto), torch.randn(BATCH, 1, 8, 8)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    meter = ComputeMeter(model)
    meter.step(x)
    # Forward of all; a weight gradient of what is trained; a gradient of what lies behind the first of them.
    first, second, head = 2 * BATCH * 64 * 16 * 9, 2 * BATCH * 64 * 16 * 16 * 9, 2 * BATCH * 16 * 5
    closed = first + second + head + {0: first + second * 2 + head * 2, 4: head * 2, 8: head}[upto]
    assert meter.training_flops == pytest.approx(closed, rel=0.01)
    assert meter.training_flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert meter.steps == 1 and meter.evaluation_flops == 0
    meter.evaluate(x)
    assert meter.evaluation_flops == first + second + head


@pytest.mark.parametrize(
    ("make", "each"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), 2),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 2 + 2),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2, nesterov=True), 2 + 2 + 2 + 2),
        (lambda p: torch.optim.Adam(p, 0.1), 3 + 1 + 3 + 1 + 1 + 1 + 3),
        (lambda p: torch.optim.Adam(p, 0.1, foreach=True), 3 + 1 + 3 + 1 + 1 + 1 + 3),
    ],
)
def test_updates(make: Any, each: int) -> None:
    model = nn.Linear(50, 40, bias=False)
    optimizer, meter = make(model.parameters()), ComputeMeter(model)
    for _ in range(3):
        model(torch.randn(2, 50)).sum().backward()
        meter.update(optimizer.step)
    assert meter.update_flops == pytest.approx(each * 2000, abs=20)


# Fine-tuning.


def run(**options: Any) -> LearningCurve:
    torch.manual_seed(0)
    return finetune(network(), TASK, **{"budget_flops": 2e9, "batch_size": BATCH, **options})


def test_a_budget_is_spent_and_not_more() -> None:
    curve = run()
    assert curve.points[0].flops == 0 and math.isnan(curve.points[0].loss)
    assert 2e9 - curve.step_flops < curve.points[-1].flops <= 2e9
    assert curve.points[-1].step == pytest.approx(2e9 / curve.step_flops, abs=1)
    assert curve.final < 0.1 < curve.points[0].metric
    assert [p.flops for p in curve.points] == sorted({p.flops for p in curve.points})
    assert str(LearningCurve.from_dict(json.loads(json.dumps(curve.to_dict())))) == str(curve)
    assert math.isnan(curve.at(3e9)) and curve.at(curve.points[3].flops) == pytest.approx(curve.points[3].metric)


def test_the_same_seed_gives_the_same_curve() -> None:
    one, two, other = run(seed=1), run(seed=1), run(seed=2)
    assert str(one) == str(two) != str(other)


def test_an_interrupted_run_goes_on_to_the_same_curve(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def until(share: float) -> Any:
        def schedule(spent: float) -> float:
            if spent > share:
                raise Stop
            return 1.0

        return schedule

    whole = run(schedule=until(2.0), checkpoint=tmp_path / "whole.ckpt")
    with pytest.raises(Stop):
        run(schedule=until(0.4), checkpoint=tmp_path / "a.ckpt")
    assert str(run(schedule=until(2.0), checkpoint=tmp_path / "a.ckpt")) == str(whole)
    with pytest.raises(OptionError, match=r"is of a run with budget_flops=2e\+09, this one has 1e\+09"):
        finetune(network(), TASK, budget_flops=1e9, checkpoint=tmp_path / "a.ckpt")


@pytest.mark.parametrize("left", [0, 3, 100, 0.5, 0.999, "zeros"])
def test_a_checkpoint_that_was_cut_short_begins_anew(tmp_path: Path, left: Any) -> None:
    path = tmp_path / "a.ckpt"
    whole = run(checkpoint=path, budget_flops=1e8)
    content = path.read_bytes()
    short = content[: int(left * len(content)) if isinstance(left, float) else left] if left != "zeros" else bytes(4096)
    path.write_bytes(short)
    assert str(run(checkpoint=path, budget_flops=1e8)) == str(whole)
    assert path.stat().st_size == len(content)


@pytest.mark.parametrize("other", ["text", {"weight": torch.zeros(2)}, [1]])
def test_a_file_that_is_no_checkpoint_is_left_alone(tmp_path: Path, other: Any) -> None:
    path = tmp_path / "mine"
    path.write_text(other) if isinstance(other, str) else torch.save(other, path)
    content = path.read_bytes()
    with pytest.raises(OptionError, match=r"mine is no checkpoint of finetune.*: give another file"):
        run(checkpoint=path, budget_flops=1e8)
    assert path.read_bytes() == content


def test_the_head_alone() -> None:
    torch.manual_seed(0)
    model = network()
    before = [p.clone() for p in model[:8].parameters()]
    mean = model[1].running_mean.clone()
    curve = finetune(model, TASK, budget_flops=1e9, batch_size=BATCH, head_only=True)
    assert all(torch.equal(a, b) for a, b in zip(before, model[:8].parameters(), strict=True))
    assert torch.equal(mean, model[1].running_mean) and curve.step_flops < run().step_flops / 2
    with pytest.raises(OptionError, match="the task has none"):
        finetune(network(), Task("none", data(0), data(1)), budget_flops=1e9, head_only=True)


class Named(TensorDataset):
    """Inputs by name, as tokenizers make them."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return {"input": x}, y


def test_named_inputs_loaders_and_half_precision() -> None:
    task = Task("named", Named(*data(0).tensors), Named(*data(1).tensors), classes=2)
    options: dict[str, Any] = {"budget_flops": 2e9, "batch_size": BATCH}
    torch.manual_seed(0)
    assert str(finetune(network(), task, **options).points) == str(run().points)
    loader = DataLoader(data(0), BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))
    loaded = Task("loaded", loader, DataLoader(data(1), 10), classes=2)
    assert finetune(network(), loaded, budget_flops=2e9).final < 0.1
    for dtype in (torch.bfloat16, torch.float16):
        assert finetune(network(), TASK, autocast=dtype, **options).final < 0.1
    for none in (data(0, 0), DataLoader(data(0, 0))):
        with pytest.raises(OptionError, match=r"Task 'few' has fewer training samples than a step needs: 1 process, e"):
            finetune(network(), Task("few", none, data(1), classes=2), budget_flops=2e9)


def test_heads_and_errors() -> None:
    model = network()
    assert new_head(model, 3, seed=1) == "8" and model[8].out_features == 3
    with pytest.raises(ModelError, match="has no linear layer"):
        new_head(nn.Sequential(nn.Conv2d(1, 2, 3)), 3)
    with pytest.raises(ModelError, match="is its own head"):
        new_head(nn.Linear(2, 2), 3)
    with pytest.raises(OptionError, match=r"budget_flops=10 does not pay for one training step of"):
        finetune(network(), TASK, budget_flops=10)
    with pytest.raises(OptionError, match="finetune has no option 'epochs'"):
        finetune(network(), TASK, budget_flops=1e9, epochs=3)  # type: ignore[call-arg]


# Sweeps.


class Counting(ThreadPoolExecutor):
    """Counts jobs, and dies after some."""

    def __init__(self, upto: int = 10**9) -> None:
        super().__init__(1)
        self.jobs, self.upto = 0, upto

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs += 1
        if self.jobs > self.upto:
            raise KeyboardInterrupt
        return super().submit(function, *args, **kwargs)


def swept(executor: Executor, store: Path | None, **options: Any) -> Frontier:
    torch.manual_seed(0)
    options = {"ratios": [0, 0.5], "granularities": ["filter", "channel"], "seeds": [0, 1], **options}
    options = {"budget_flops": 1e9, **options}
    return sweep(
        network(), [TASK], executor=executor, store=store, batch_size=BATCH,
        example_inputs=torch.zeros(1, 1, 8, 8), pruning={"round_to": 1}, **options,
    )  # fmt: skip


def test_a_sweep_that_was_killed_goes_on(tmp_path: Path) -> None:
    whole = swept(Counting(), None)
    assert len(whole.curves) == 6 and not whole.failures and whole.cuts[0] == (0.0, "dense")
    killed = Counting(upto=3)
    with pytest.raises(KeyboardInterrupt):
        swept(killed, tmp_path)
    killed.shutdown(cancel_futures=True)
    executor = Counting()
    again = swept(executor, tmp_path)
    assert again.to_json() == whole.to_json() and executor.jobs <= 6
    last = Counting()
    assert swept(last, tmp_path).to_json() == whole.to_json() and last.jobs == 0


DAMAGES: list[tuple[str, Any]] = [
    ("cut short", lambda content: content[: len(content) // 2]),
    ("empty", lambda content: b""),
    ("zeros", lambda content: bytes(len(content))),
    ("no text", lambda content: b"\xff" + content),
    ("another document", lambda content: b"[1, 2]"),
    ("nested", lambda content: b"[" * 100_000),
    ("half a curve", lambda content: b'{"curve": {"task": "halves"}}'),
    ("neither", lambda content: b'{"job": {}}'),
]


@pytest.mark.parametrize("damage", [how for _, how in DAMAGES], ids=[name for name, _ in DAMAGES])
def test_a_result_that_is_damaged_is_made_again(tmp_path: Path, damage: Any) -> None:
    options: dict[str, Any] = {"granularities": ["filter"], "seeds": [0], "budget_flops": 1e8}
    whole = swept(Counting(), tmp_path, **options)
    result = sorted(tmp_path.glob("*.json"))[0]
    result.write_bytes(damage(result.read_bytes()))
    (tmp_path / "shared.pt").write_bytes(b"PK")
    executor = Counting()
    assert swept(executor, tmp_path, **options).to_json() == whole.to_json() and executor.jobs == 1


def test_a_run_that_fails_does_not_end_the_others() -> None:
    found = swept(Counting(), None, granularities=["filter", "filtr"], seeds=[0])
    assert len(found.curves) == 2 and len(found.failures) == 1
    assert "granularity is 'filtr'" in found.failures[0].error and "failed: halves, filtr 0.5" in str(found)
    with pytest.raises(OptionError, match="must be at least one, of different names"):
        sweep(network(), [TASK, TASK], [0], budget_flops=1e9)
    with pytest.raises(OptionError, match="seed is the sweep's own"):
        sweep(network(), [TASK], [0], budget_flops=1e9, seed=3)


@pytest.mark.slow
def test_processes_give_the_same() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"budget_flops": 2e8, "batch_size": BATCH, "example_inputs": torch.zeros(1, 1, 8, 8)}
    model = network()
    ours = sweep(model, [TASK], [0], executor=Counting(), **options)
    assert sweep(model, [TASK], [0], **options).to_json() == ours.to_json()


def dies(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    os._exit(1)


@pytest.mark.slow
def test_a_process_that_dies_fails_its_own_run_alone() -> None:
    torch.manual_seed(0)
    tasks = [
        Task("a", data(0), data(1), 2),
        Task("dies", data(0), data(1), 2, loss=dies),
        Task("b", data(0), data(1), 2),
    ]
    found = sweep(network(), tasks, [0], seeds=[0, 1], budget_flops=2e8, batch_size=BATCH)
    assert sorted((c.task, c.about["seed"]) for c in found.curves) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [(f.task, f.seed) for f in found.failures] == [("dies", 0), ("dies", 1)]
    assert "BrokenProcessPool" in found.failures[0].error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask_gives_the_same(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path / "dask")
    )
    with cluster, distributed.Client(cluster) as client:
        found = swept(client.get_executor(), tmp_path / "store")
    assert not found.failures and found.to_json() == swept(Counting(), None).to_json()


# The frontier, on curves that were made up.


def made(task: str, ratio: float, granularity: str, seed: int, metrics: list[float]) -> LearningCurve:
    points = [Point(0 if not i else 10**i, m, 0.0, i, 0) for i, m in enumerate(metrics)]
    about = {"ratio": ratio, "granularity": granularity, "seed": seed}
    return LearningCurve(task, tuple(points), 10, 1, about)


def known() -> Frontier:
    curves = []
    for seed in (0, 1):
        d = 0.01 * seed
        for task in ("a", "b"):
            curves.append(made(task, 0.0, "dense", seed, [0.9 + d, 0.8 + d, 0.5 + d, 0.1 + d]))
            curves.append(made(task, 0.5, "filter", seed, [0.9 + d, 0.4 + d, 0.25 + d, 0.2 + d]))
    return Frontier(curves)


def test_the_best_at_a_budget_and_where_they_cross() -> None:
    frontier = known()
    low, high = frontier.best(10), frontier.best(1000)
    assert (low.ratio, low.granularity, high.ratio) == (0.5, "filter", 0.0)
    assert f"{low.cut:>12}" == "  filter 0.5" and frontier.cost([0.5, "filter"]) == 1  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"cut=\(0.4, 'filter'\) was not run"):
        frontier.metric((0.4, "filter"), 10)
    with pytest.raises(OptionError, match="does not say how its network was pruned"):
        _ = LearningCurve("a", (), 1, 1).cut
    assert (str(low.cut), str(high.cut)) == ("filter 0.5", "dense") and low.cut == (0.5, "filter")
    assert low.metric == pytest.approx(0.405) and low.dense == pytest.approx(0.805)
    # Student's t of one degree of freedom: two seeds say little.
    assert low.interval == pytest.approx((0.405 - 12.706 * 0.005, 0.405 + 12.706 * 0.005))
    assert 100 < frontier.crossover((0.5, "filter")) < 1000
    assert frontier.crossover((0.0, "dense")) == frontier.budgets[0]
    # Half of the dense network's gain, from 0.905 to 0.105, is reached at about 100.
    assert frontier.low_compute("a") == pytest.approx(100, rel=0.6)
    mean, (least, most) = frontier.improvement("filter")
    assert 0.4 < least <= mean <= most < 0.55
    assert frontier.gain(10)[0] == pytest.approx(1 - 0.405 / 0.805)
    assert frontier.gain(1000, cut=(0.5, "filter"))[0] == pytest.approx(1 - 0.205 / 0.105)
    assert frontier.cost((0.5, "filter")) == 1
    assert frontier.area((0.5, "filter")) < frontier.area((0.0, "dense"))
    assert frontier.stream((0.0, "dense"), 1000) == ([1000, 2000], pytest.approx([0.105, 0.105]))
    assert frontier.recommend(10).ratio == 0.5 and frontier.regret("a") == frontier.regret() == pytest.approx(0)
    assert Frontier.from_json(frontier.to_json()).to_json() == frontier.to_json()
    with pytest.raises(OptionError, match="all runs failed: there were none"):
        Frontier([])
    with pytest.raises(OptionError, match="No run has granularity 'channel'"):
        frontier.improvement("channel")


def test_every_task_counts_the_same_whatever_its_seeds() -> None:
    """Three runs of one task, two of another, of other seeds: mean and interval are around the mean of both."""
    curves = [made("a", 0.0, "dense", seed, [0.9, 0.1 + d, 0.1]) for seed, d in enumerate((-0.01, 0.0, 0.01))]
    curves += [made("b", 0.0, "dense", seed, [0.9, 0.5 + d, 0.1]) for seed, d in ((7, -0.02), (8, 0.02))]
    frontier = Frontier(curves)
    low, high = frontier.interval((0.0, "dense"), 10)
    assert frontier.metric((0.0, "dense"), 10) == pytest.approx(0.3) == (low + high) / 2
    assert 0 < high - low < 0.2
    # Without the only run of b there would be no mean of both.
    assert np.isnan(Frontier(curves[:-1]).interval((0.0, "dense"), 10)).all()


def test_a_scaling_law_finds_what_it_was_made_of() -> None:
    def error(flops: float, density: float) -> float:
        return 0.05 + 0.3 * (flops / 1e9 / density) ** -0.5 + 0.2 * (1 - density) ** 2

    rows = [(c, d, error(c, d)) for c in (1e8, 1e9, 1e10) for d in (0.25, 0.5, 1.0)]
    law = ScalingLaw.fit(rows)
    assert law.residual < 1e-6 and law(1e11, 0.75) == pytest.approx(error(1e11, 0.75), rel=1e-3)
    with pytest.raises(OptionError, match="six parameters; 3 measurements are too few"):
        ScalingLaw.fit(rows[:3])


def test_luck_in_choosing_is_no_gain() -> None:
    """Each seed has another network that is better by luck alone: what the other seeds choose gains nothing."""
    curves = []
    for seed in (0, 1, 2):
        curves.append(made("a", 0.0, "dense", seed, [0.9, 0.5, 0.5]))
        curves += [made("a", r, "filter", seed, [0.9, *[0.2 if lucky == seed else 0.6] * 2])
                   for lucky, r in enumerate((0.25, 0.5, 0.75))]  # fmt: skip
    frontier = Frontier(curves)
    assert frontier.best(50).metric == pytest.approx(1.4 / 3)  # which is no better than the dense network's 0.5
    assert frontier.gain(50)[0] == pytest.approx(1 - 0.6 / 0.5)


def test_a_seed_in_which_the_dense_network_hardly_errs_does_not_rule() -> None:
    curves = []
    for seed, dense in enumerate((0.5, 0.5, 0.001)):
        curves.append(made("a", 0.0, "dense", seed, [0.9, dense, dense]))
        curves.append(made("a", 0.5, "filter", seed, [0.9, 0.25, 0.25]))
    gain, (low, high) = Frontier(curves).gain(50)
    assert gain == pytest.approx(1 - 0.75 / 1.001)  # the mean of the seeds' ratios would be -82
    assert low < 0 < gain < high
    # A seed without a run of one network says nothing of the other's either.
    lacking = Frontier([c for c in curves if c.about["seed"] != 2 or c.cut[0] == 0])
    assert lacking.gain(50) == (pytest.approx(0.5), (pytest.approx(0.5), pytest.approx(0.5)))
    # Nor does one seed alone, however many there are of the other network.
    alone = Frontier([c for c in curves if c.about["seed"] == 0 or c.cut[0]])
    assert alone.gain(50)[0] == pytest.approx(0.5) and all(map(math.isnan, alone.gain(50)[1]))


def test_the_interval_knows_the_scatter_of_choosing() -> None:
    """Two cuts are level but for one seed each: what is chosen changes with the seed that is left out."""
    errors = {0.25: [0.1, 0.4, 0.4], 0.5: [0.4, 0.1, 0.38]}
    curves = [made("a", r, "filter", seed, [0.9, e, e]) for r, own in errors.items() for seed, e in enumerate(own)]
    curves += [made("a", 0.0, "dense", seed, [0.9, 0.5, 0.5]) for seed in range(3)]
    gain, (low, high) = Frontier(curves).gain(50)
    # Seeds 0 and 1 choose what is good for the other, seed 2 chooses 0.25, whose sum over the others is as large.
    assert gain == pytest.approx(1 - (0.4 + 0.4 + 0.4) / 1.5)
    # Without seed 0 both others choose 0.5 and err 0.1 and 0.38; without 1 or 2 the two that are left err 0.4 each.
    without = np.array([1 - 0.48, 1 - 0.8, 1 - 0.8])
    pseudo = 3 * gain - 2 * without
    assert (low, high) == pytest.approx(
        tuple(gain + np.array([-1, 1]) * 4.303 * pseudo.std(ddof=1) / math.sqrt(3)), rel=1e-6
    )


def test_where_nobody_errs_nothing_is_gained() -> None:
    curves = [made("a", r, g, 0, [0.9, 0.0, 0.0]) for r, g in ((0.0, "dense"), (0.5, "filter"))]
    gain, band = Frontier(curves).gain(50)
    assert gain == 0 and all(map(math.isnan, band))
    assert Frontier([curves[0], made("a", 0.5, "filter", 0, [0.9, 0.1, 0.1])]).gain(50)[0] == -math.inf


def test_regret_of_advice_that_does_not_fit() -> None:
    """On one task the cut gains a tenth of what it costs on the other: each is advised what the other needs."""
    curves = [made(task, r, g, 0, [0.9, *[e] * 2]) for task, r, g, e in (
        ("a", 0.0, "dense", 0.5), ("a", 0.5, "filter", 0.4), ("b", 0.0, "dense", 0.1), ("b", 0.5, "filter", 0.11),
        ("c", 0.0, "dense", 0.5), ("c", 0.5, "filter", 0.4),
    )]  # fmt: skip
    frontier = Frontier(curves)
    assert [frontier.regret(task) for task in "abc"] == pytest.approx([0, 1, 0])
    assert frontier.regret() == pytest.approx(0.01 / (0.1 + 0.01 + 0.1))
    with pytest.raises(OptionError, match="No run is on a task 'd'; there are a, b, c"):
        frontier.regret("d")
    with pytest.raises(OptionError, match="needs runs on another one"):
        Frontier(curves[:2]).regret("a")


def test_granularities_at_equal_cost() -> None:
    def costing(curve: LearningCurve, step: int) -> LearningCurve:
        return replace(curve, step_flops=step)

    curves = []
    for seed in (0, 1):
        curves.append(costing(made("a", 0.0, "dense", seed, [0.9, 0.4, 0.4]), 100))
        # At 50 the channels' line from 0.6 at 25 to 0.4 at 100 is at 0.5.
        curves.append(costing(made("a", 0.5, "channel", seed, [0.9, 0.6, 0.6]), 25))
        curves.append(costing(made("a", 0.5, "filter", seed, [0.9, 0.45, 0.45]), 50))
        curves.append(costing(made("a", 0.9, "filter", seed, [0.9, 0.1, 0.1]), 20))
    frontier = Frontier(curves)
    gain, (low, high) = frontier.against("filter", "channel")
    assert gain == pytest.approx(0.1) == low == high
    with pytest.raises(OptionError, match="No filter network costs"):
        frontier.against("filter", "channel", cut=(0.9, "filter"))
    # At 25 the channels' own 0.6.
    both = Frontier([*curves, *(costing(made("a", 0.7, "filter", s, [0.9, 0.3, 0.3]), 25) for s in (0, 1))])
    assert both.against("filter", "channel", cut=(0.5, "filter"))[0] == pytest.approx(0.1)
    assert both.against("filter", "channel", cut=(0.7, "filter"))[0] == pytest.approx(0.5)
    assert both.against("filter", "channel")[0] == pytest.approx(1 - (0.45 + 0.3) / (0.5 + 0.6))
    for wrong in ((0.3, "filter"), (0.5, "channel"), (0.0, "dense"), "filter", 0.5):
        with pytest.raises(
            OptionError, match=r"was not run; there are \(0.0, 'dense'\)|is not of granularity 'filter'"
        ):
            both.against("filter", "channel", cut=wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="No random network costs as much as a channel network or more"):
        Frontier([*curves, made("a", 0.5, "random", 0, [0.9, 0.6, 0.6])]).against("random", "channel")


@pytest.mark.parametrize("count", [2, 3, 5, 9, 12, 40, 200])
def test_intervals_are_student_s(count: int) -> None:
    from scipy import stats

    samples = np.random.default_rng(count).normal(3, 1, count)
    low, high = interval(samples)
    expected = stats.t.interval(0.95, count - 1, loc=samples.mean(), scale=stats.sem(samples))
    assert low <= expected[0] + 1e-3 and high >= expected[1] - 1e-3
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.03)
    assert all(map(math.isnan, interval(np.array([1.0, math.nan]))))
    assert jackknife(lambda own: float(samples[own].mean()), np.arange(count)) == pytest.approx((low, high))


def test_the_jackknife_of_a_ratio() -> None:
    """Against the delta method, which it agrees with where there are many samples."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(1, 0.3, 4000), generator.normal(2, 0.3, 4000)
    ratio = a.mean() / b.mean()
    deviation = float(np.std(a - ratio * b, ddof=1)) / b.mean() / math.sqrt(len(a))
    low, high = jackknife(lambda own: float(a[own].mean() / b[own].mean()), np.arange(len(a)))
    assert (low + high) / 2 == pytest.approx(ratio) and (high - low) / 2 == pytest.approx(1.98 * deviation, rel=0.02)


def test_plots() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2)
    plot_errors(known(), left)
    plot_stream(known(), right, budgets=[10, 1000])
    assert [line.get_label() for line in left.lines] == ["dense", "filter 0.5"]
    dense = right.lines[0]
    assert list(dense.get_xdata()) == [20, 2000] and list(dense.get_ydata()) == pytest.approx([0.805, 0.105])
    plt.close(figure)
