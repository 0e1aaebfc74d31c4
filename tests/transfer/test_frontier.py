"""The frontier, on curves that were made up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from structprune import OptionError
from structprune.transfer import Frontier, LearningCurve, Point, plot_errors, plot_stream


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
