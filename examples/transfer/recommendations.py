"""What recommendations are worth on tasks that were held out: a part of the page."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from structprune.transfer import Cut, Frontier, Probe
from structprune.transfer.advice import FEWEST
from structprune.transfer.interval import jackknife
from transfer.markdown import between, table

DENSE = Cut(0.0, "dense")
_WORTH = 4  # where a probe is counted: it is made if the budget is so many times what it takes


def recommendation(frontier: Frontier, document: dict[str, Any]) -> str:
    """The part of the page, if there are tasks to learn from."""
    if len(frontier.tasks) < 2:
        return ""
    unit, budgets, tasks = document["settings"]["dense_step"], frontier.budgets, frontier.tasks
    development = Frontier.from_json(json.dumps(document["development"]))
    probes = [Probe.from_dict(own) for own in document["probes"]]
    curves = [*frontier.curves, *(curve for curve in development.curves if curve.cut in frontier.cuts)]
    advised = [Frontier(known, probes=own) for known, own in itertools.product((frontier.curves, curves), ([], probes))]
    gaps = {task: _gap(frontier, task, budgets) for task in tasks}
    head = ["the stream", "the stream, by probes", "and development tasks", "and development tasks, by probes"]
    rows = _rows(advised, gaps, budgets, document["kinds"])
    fewer = [_fewer(blind, seeing, tasks, budgets) for blind, seeing in (advised[:2], advised[2:])]
    pairs = [f"{100 * points:.1f} points ({100 * low:.1f} to {100 * high:.1f})" for points, (low, high) in fewer]
    shown = all(low > 0 for _, (low, _) in fewer)
    doubt = "" if shown else f" Where it contains zero, {len(tasks)} tasks do not show it."
    late = budgets[len(budgets) // 2 :]
    beyond = [f"{known.regret(tasks, budgets=late):.1%}" for known in advised]
    gap = sum(_gap(frontier, task, late) for task in tasks) / len(tasks)
    always = {
        cut: _regret(frontier, tasks, budgets, functools.partial(_of_cut, frontier, cut)) for cut in frontier.cuts
    }
    least = min(always, key=always.__getitem__)
    steps, cuts = max(own.flops for own in probes) / unit, ", ".join(map(str, probes[0].errors))
    return f"""## Recommendations

`frontier.recommend(budget)` names the ratio to use. To see what it is worth on a task that it does not know, each task
of the stream is held out: the recommendation comes from the others, and its regret is the error that it costs over the
best by hindsight, as a share of the gap between the best and the worst network. Errors are means over budgets; *all
together* adds up what is lost and the gaps before it divides. Who advises:

{table(["held out", "gap", *head], rows)}

For comparison: always to take {least}, which only hindsight knows to be the best single choice, loses
{always[least]:.1%} of the gap, always the dense network {always[DENSE]:.1%}.

**Probes.** What is best depends on the kind of task: where the pretrained network knows what a task needs, a cut takes
it away. A *probe* tells that before any training: how well the classes of a few samples lie apart in the features of
some networks ({cuts}). With `frontier.recommend(budget, probe=...)` known tasks count more
the more their probes resemble that of the new one, by a Gaussian process whose length and noise are chosen without the
task that is held out. How much less is lost by probes, with its 95 % interval over tasks: {pairs[0]}
with the stream alone, {pairs[1]} with the development tasks.{doubt}

**Its bounds.** A probe takes forward passes worth {steps:.1f} training steps of the dense network. Like those of
evaluation they are not counted against a budget; at smaller budgets the recommendation goes without. *The probe
counted*: it is made at budgets from {_WORTH} times its cost on, and training has the rest. Most is won at small
budgets, where the gaps are. With those from {late[0] / unit:.0f} steps on, where the gap is {gap:.3f} on average,
regret is {beyond[0]} by the stream and {beyond[1]} by its probes, {beyond[2]} and {beyond[3]} with the development
tasks.

Tasks have relatives: those of digits are made of the same images, and among the development tasks, on which rates were
chosen, are letters and shapes, too. So the intervals are on the narrow side, and where all of a kind are held out with
a task there is little to go by. That a Gaussian process judges likeness, and not a weighted mean or linear regression,
and which networks and how many samples are probed, was chosen on earlier runs of the same tasks.

{_law(frontier, unit)}"""


def _share(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.1%}"


def _gap(frontier: Frontier, task: str, budgets: Sequence[float]) -> float:
    """Between the worst and the best network, the mean over budgets."""
    errors = [[frontier.metric(cut, budget, tasks=[task]) for cut in frontier.cuts] for budget in budgets]
    return sum(max(own) - min(own) for own in errors) / len(errors)


def _rows(
    advised: Sequence[Frontier], gaps: Mapping[str, float], budgets: Sequence[float], kinds: Sequence[Sequence[str]]
) -> list[list[str]]:
    """Regret of each task, and of all together, by each that advises."""
    tasks = list(gaps)
    by_task = {task: [known.regret(task, budgets=budgets) for known in advised] for task in tasks}
    means = [sum(column) / len(tasks) for column in zip(*by_task.values(), strict=True)]
    together = [known.regret(tasks, budgets=budgets) for known in advised]
    over = [_over_tasks(lambda some, k=k: k.regret(some, budgets=budgets), tasks) for k in advised]
    counted = [_counted(known, tasks, budgets) for known in advised]
    by_kind = [_by_kind(known, gaps, kinds, budgets) for known in advised]
    return [
        *([task, f"{gaps[task]:.3f}", *map(_share, regrets)] for task, regrets in by_task.items()),
        ["mean of the shares", "", *map(_share, means)],
        ["**all together**", "", *(f"**{regret:.1%}**" for regret in together)],
        ["its 95 % interval over tasks", "", *(between(band, ".1%") for band in over)],
        ["all together, the probe counted", "", *map(_share, counted)],
        ["all together, the whole kind held out", "", *map(_share, by_kind)],
    ]


def _over_tasks(statistic: Callable[[list[str]], float], tasks: Sequence[str]) -> tuple[float, float]:
    return jackknife(lambda rows: statistic([tasks[row] for row in rows]), np.arange(len(tasks)))


def _fewer(
    blind: Frontier, seeing: Frontier, tasks: Sequence[str], budgets: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """How much less is lost by probes, and its interval over tasks."""

    def difference(some: Sequence[str]) -> float:
        return blind.regret(some, budgets=budgets) - seeing.regret(some, budgets=budgets)

    return difference(tasks), _over_tasks(difference, tasks)


def _regret(
    frontier: Frontier, tasks: Sequence[str], budgets: Sequence[float], reached: Callable[[str, float], float]
) -> float:
    """What is lost by errors that are reached somehow, as a share of the gaps."""
    lost = gap = 0.0
    for task, budget in itertools.product(tasks, budgets):
        errors = [frontier.metric(cut, budget, tasks=[task]) for cut in frontier.cuts]
        lost, gap = lost + reached(task, budget) - min(errors), gap + max(errors) - min(errors)
    return lost / gap


def _of_cut(frontier: Frontier, cut: Cut, task: str, budget: float) -> float:
    return frontier.metric(cut, budget, tasks=[task])


def _counted(known: Frontier, tasks: Sequence[str], budgets: Sequence[float]) -> float:
    """Regret where a probe is made from some times its cost on, and training lacks what it took."""
    if not known.probes or len(known.tasks) <= FEWEST:
        return math.nan

    def reached(task: str, budget: float) -> float:
        others, probe = [other for other in known.tasks if other != task], known.probe_of[task]
        if budget < _WORTH * probe.flops:
            return _of_cut(known, known.recommend(budget, tasks=others).cut, task, budget)
        return _of_cut(known, known.recommend(budget, tasks=others, probe=probe).cut, task, budget - probe.flops)

    return _regret(known, tasks, budgets, reached)


def _by_kind(known: Frontier, gaps: Mapping[str, float], kinds: Sequence[Sequence[str]], at: Sequence[float]) -> float:
    """Regret of all tasks, where those of the same kind do not advise."""
    lost = 0.0
    for task, gap in gaps.items():
        kin = next((kind for kind in kinds if task in kind), [task])
        others = [other for other in known.tasks if other not in kin]
        lost += gap * known.regret(task, tasks=others, budgets=at) if others else math.nan
    return lost / sum(gaps.values())


def _law(frontier: Frontier, unit: int) -> str:
    budgets = frontier.budgets
    upto = budgets[len(budgets) * 3 // 4 - 1]
    later = [b for b in budgets if b > upto]
    rows, regrets = [], []
    for granularity in sorted({c[1] for c in frontier.cuts[1:]}, reverse=True):
        law = frontier.law(granularity, upto=upto)
        cuts = frontier.cuts_of(granularity)
        off = [law(b, 1 - c[0]) - frontier.metric(c, b) for b in later for c in cuts]
        for b in later:
            measured = {c: frontier.metric(c, b) for c in cuts}
            chosen = min(cuts, key=lambda c, b=b: law(b, 1 - c[0]))
            regrets.append(measured[chosen] - min(measured.values()))
        rms = math.sqrt(sum(x * x for x in off) / len(off))
        formula = (
            f"{law.floor:.3f} + {law.learnt:.3f} (c / d^{law.kappa:g})^-{law.alpha:g} "
            f"+ {law.lost:.3f} (1 - d)^{law.beta:g}"
        )
        rows.append([granularity, f"`{formula}`", f"{law.residual:.3f}", f"{rms:.3f}"])
    return f"""For budgets that were not run, `frontier.law()` fits the error over compute *c* (in units of the mean
budget) and density *d*. Fitted here to budgets up to {upto / unit:.0f} dense steps, it is held against the {len(later)}
larger ones:

{table(["cuts", "law", "residual where fitted", "error on the held-out budgets"], rows)}

Errors are root mean squares of error rates. The ratio that the law picks for a held-out budget errs
{max(regrets):.4f} more than the best by hindsight at worst, {sum(regrets) / len(regrets):.4f} on average."""
