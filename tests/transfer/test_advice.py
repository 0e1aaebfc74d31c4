"""Advice for a task that was not run: which tasks it goes by, and what it says of itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from structprune import OptionError
from structprune.transfer import Cut, Frontier, LearningCurve, Point, Probe
from structprune.transfer.advice import Advisor

DENSE, HALF, MOST = Cut(0.0, "dense"), Cut(0.5, "filter"), Cut(0.75, "filter")


def made(task: str, cut: Cut, metrics: list[float], seed: int = 0) -> LearningCurve:
    points = [Point(10**i if i else 0, m, 0.0, i, 0) for i, m in enumerate([0.9, *metrics])]
    return LearningCurve(task, tuple(points), 10, 1, {**cut._asdict(), "seed": seed})


KINDS = {"known": (0.05, 0.6), "strange": (0.5, 0.55)}
ERRORS = {
    "known": {DENSE: [0.3, 0.1, 0.05], MOST: [0.5, 0.4, 0.3]},
    "strange": {DENSE: [0.8, 0.6, 0.5], MOST: [0.6, 0.4, 0.3]},
}


def world(probed: int = 6, flops: int = 1) -> Frontier:
    """Two kinds of tasks: what one knows goes with the cut, the other has nothing to lose and learns by steps."""
    curves, probes = [], []
    for number in range(6):
        kind = list(KINDS)[number % 2]
        own, shift = f"{kind} {number}", 0.01 * number
        curves += [made(own, cut, [e + shift for e in errors]) for cut, errors in ERRORS[kind].items()]
        errors = dict(zip((DENSE, MOST), KINDS[kind], strict=True))
        probes.append(Probe(own, {c: e + shift for c, e in errors.items()}, flops))
    return Frontier(curves, probes=probes[:probed])


def new(kind: str, *cuts: Cut) -> Probe:
    errors = dict(zip((DENSE, MOST), KINDS[kind], strict=True))
    return Probe("new", {cut: errors[cut] + 0.005 for cut in cuts or (DENSE, MOST)}, 1)


def test_a_probe_tells_which_tasks_to_go_by() -> None:
    frontier = world()
    blind = frontier.recommend(100)
    known, strange = (frontier.recommend(100, probe=new(kind)) for kind in KINDS)
    assert (known.cut, strange.cut) == (DENSE, MOST) and known.dense == known.metric < blind.dense
    assert known.metric == pytest.approx(0.1 + 0.02, abs=0.03) and strange.metric == pytest.approx(0.4 + 0.03, abs=0.03)
    assert known.interval[0] < known.metric < known.interval[1]
    weights = frontier.likeness(new("known"))
    assert sum(weights.values()) == pytest.approx(1)
    assert sum(weights[f"known {n}"] for n in (0, 2, 4)) == pytest.approx(1, abs=0.1)
    # Of the tasks that are named alone, and of one granularity.
    strangers = [f"strange {n}" for n in (1, 3, 5)]
    assert frontier.recommend(100, probe=new("known"), tasks=strangers).metric > 0.3
    channels = [made(c.task, Cut(0.5, "channel"), [0.0] * 3) for c in frontier.curves if c.cut == DENSE]
    wider = Frontier([*frontier.curves, *channels], probes=frontier.probes)
    assert wider.recommend(100, probe=new("known")).granularity == "channel"
    assert wider.recommend(100, "filter", probe=new("known")).cut == DENSE
    again = Frontier.from_json(frontier.to_json())
    assert again.probes == frontier.probes and again.recommend(100, probe=new("known")) == known
    stored = json.loads(frontier.to_json())
    del stored["probes"]  # as they were stored before there were probes
    assert Frontier.from_json(json.dumps(stored)).probes == ()


def test_regret_by_probes() -> None:
    """Half of the tasks are advised what the other half needs; a probe tells them apart."""
    frontier = world()
    blind = Frontier(frontier.curves)
    assert blind.regret() > 0.3 and frontier.regret() == frontier.regret("known 0") == 0
    assert frontier.regret(["known 0", "strange 1"]) == 0
    # What it took is more than some budgets, or than all.
    late = [b for b in frontier.budgets if b >= 100]
    dear = world(flops=100)
    assert dear.regret(budgets=late) == 0 < dear.regret() < world(flops=10**9).regret() == blind.regret()
    # Of one kind alone there is little to learn for the other.
    strangers = ["strange 1", "strange 3", "strange 5"]
    assert frontier.regret("known 0", tasks=strangers) == 1 > frontier.regret("strange 1", tasks=strangers) == 0
    with pytest.raises(OptionError, match="No run is on a task 'other'"):
        frontier.regret("known 0", tasks=["other"])
    with pytest.raises(OptionError, match="needs runs on another one"):
        frontier.regret("known 0", tasks=["known 0"])


def test_who_is_held_out_does_not_advise() -> None:
    """Regret is that of what a frontier without the task, and without its probe, would have advised."""
    curves = list(world().curves)
    for row, curve in enumerate(curves):
        if curve.task == "known 2":  # its probe is that of a task of the other kind
            curves[row] = made(curve.task, curve.cut, ERRORS["strange"][curve.cut])
    frontier = Frontier(curves, probes=world().probes)
    for held_out in frontier.probes:
        without = Frontier(
            [curve for curve in curves if curve.task != held_out.task],
            probes=[own for own in frontier.probes if own != held_out],
        )
        lost = gap = 0.0
        for budget in frontier.budgets:
            values = {cut: frontier.metric(cut, budget, tasks=[held_out.task]) for cut in frontier.cuts}
            lost += values[without.recommend(budget, probe=held_out).cut] - min(values.values())
            gap += max(values.values()) - min(values.values())
        assert frontier.regret(held_out.task) == pytest.approx(lost / gap)
    assert frontier.regret("known 2") == 1


def test_what_a_prediction_typically_misses() -> None:
    """Each known task predicted from the others by scikit-learn, with the length and the noise that were chosen."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    frontier = world()
    probes = np.array([[own.errors[cut] for cut in (DENSE, MOST)] for own in frontier.probes])
    errors = np.array([frontier.metric(MOST, 100, tasks=[own.task]) for own in frontier.probes])
    likeness = Advisor(frontier, frontier.cuts, frontier.tasks)._likeness
    off = []
    for row in range(6):
        others = np.arange(6) != row
        fitted = GaussianProcessRegressor(
            RBF(likeness._length * 2**0.5, "fixed"), alpha=likeness._noise, optimizer=None
        ).fit(probes[others], errors[others] - errors[others].mean())
        off.append(fitted.predict(probes[row][None])[0] + errors[others].mean() - errors[row])
    best = frontier.recommend(100, probe=new("strange"))
    assert best.cut == MOST and best.interval[1] - best.metric == pytest.approx(np.sqrt(np.mean(np.square(off))))


def test_a_prediction_is_no_better_nor_worse_than_any_known_task() -> None:
    """Near an error of 0 the weighted sum may be negative: it chooses, and is not shown."""
    curves, probes = [], []
    for number in range(5):
        curves += [made(f"{number}", DENSE, [0.01 + 0.1 * number] * 3), made(f"{number}", MOST, [0.6] * 3)]
        probes.append(Probe(f"{number}", {DENSE: 0.1 + 0.1 * number}, 1))
    frontier = Frontier(curves, probes=probes)
    easier = Probe("easier", {DENSE: 0.05}, 1)
    assert Advisor(frontier, frontier.cuts, frontier.tasks).expected(easier, 100)[DENSE] < 0
    best = frontier.recommend(100, probe=easier)
    assert best.cut == DENSE and best.metric == best.dense == pytest.approx(0.01)


def test_beyond_the_budgets_there_is_no_advice_by_a_probe() -> None:
    frontier = world()
    for budget in (1e5, 1.0):
        with pytest.raises(OptionError, match=r"for budgets that were run, 10 to 1\.000 kFLOPs"):
            frontier.recommend(budget, probe=new("known"))
    assert frontier.recommend(1e5).cut in frontier.cuts
    dense = Frontier([c for c in frontier.curves if c.cut == DENSE])
    with pytest.raises(OptionError, match="needs runs of pruned networks"):
        dense.recommend(1e5)
    for own in (frontier, world(probed=0)):
        with pytest.raises(OptionError, match="No run of these cuts reaches a budget"):
            own.regret(budgets=[1e5])


def test_advice_that_cannot_be_given() -> None:
    said = "needs 3 tasks that were probed, by the same cuts, and run with every cut; of 6 tasks {} are"
    for probed in (2, 0):
        with pytest.raises(OptionError, match=said.format(probed)):
            world(probed).recommend(100, probe=new("known"))
    with pytest.raises(OptionError, match=r"The probe of 'new' lacks filter 0\.75"):
        world().recommend(100, probe=new("known", DENSE))
    # With too few probes regret goes without them.
    assert world(probed=3).regret() == world(probed=0).regret() > 0.3


def test_tasks_that_lack_a_run_or_a_part_of_the_probe_are_not_gone_by() -> None:
    frontier = world()
    partly = Frontier([c for c in frontier.curves if (c.task, c.cut) != ("known 0", MOST)], probes=frontier.probes)
    assert "known 0" not in partly.likeness(new("known")) and len(partly.likeness(new("known"))) == 5
    assert partly.recommend(100, probe=new("known")).cut == DENSE
    first, *others = frontier.probes
    thin = Frontier(frontier.curves, probes=[Probe(first.task, {DENSE: 0.1}, 1), *others])
    assert "known 0" not in thin.likeness(new("known")) and len(thin.likeness(new("known"))) == 5
    # Nobody advises the one whose own probe lacks a part, as without probes.
    assert thin.regret("known 0") == Frontier(frontier.curves).regret("known 0") > 0
    with pytest.raises(OptionError, match="Each task has one probe"):
        Frontier(frontier.curves, probes=[first, *frontier.probes])


@pytest.mark.parametrize("probed", [6, 0])
def test_a_task_is_advised_of_what_was_run_on_it(probed: int) -> None:
    """A third cut is the best on all other tasks, and was not run on this one: the next best is judged, and fails."""
    third = Cut(0.25, "filter")
    best = [made(c.task, third, [0.0] * 3) for c in world().curves if c.cut == DENSE and c.task != "known 0"]
    worse = {DENSE: [0.3] * 3, MOST: [0.1] * 3}
    own = [made(c.task, c.cut, worse[c.cut]) if c.task == "known 0" else c for c in world().curves]
    frontier = Frontier([*own, *best], probes=world(probed).probes)
    # The others' means, and of those that are like it, are least for the dense network from 100 on.
    assert frontier.regret("known 0", tasks=["known 2", "known 4", "strange 1"], budgets=[1000]) == 1
    assert frontier.regret("known 2", budgets=[1000]) == 0
