"""The page and its figures, from the results alone: no number in it is typed.

::

    python -m transfer.page build/transfer/full/results.json ../docs [OTHER RESULTS]    # in the folder examples
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structprune
from structprune.transfer import Cut, Frontier
from transfer.beside import commands, streams, summary
from transfer.figures import draw
from transfer.markdown import between, duration, in_words, table
from transfer.recommendations import recommendation

DENSE = Cut(0.0, "dense")
_PAGE = "compute-optimal-transfer.md"


def write(document: dict[str, Any], docs: Path, beside: Sequence[dict[str, Any]] = ()) -> None:
    """Write ``compute-optimal-transfer.md``, its figures and the results into a folder of documentation.

    Args:
        document: The results.
        docs: The folder.
        beside: Results of other networks on the same tasks, of which a summary is set beside.
    """
    frontier = Frontier.from_json(json.dumps(document["frontier"]))
    document = {**document, "beside": [summary(other) for other in beside] or document.get("beside", [])}
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    draw(frontier, document["near"], docs / "figures")
    (docs / "figures" / "transfer-results.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
    (docs / _PAGE).write_text(page(frontier, document))
    print(f"wrote {docs / _PAGE}")


def page(frontier: Frontier, document: dict[str, Any]) -> str:
    """The page as Markdown."""
    near, unit = document["near"] or list(frontier.tasks), document["settings"]["dense_step"]
    parts = [
        _claim(frontier),
        _setting(frontier, document),
        _low_compute(frontier, unit),
        _budgets(frontier, unit),
        _granularities(frontier, near, document),
        _in_the_end(frontier, unit),
        _stream(),
        recommendation(frontier, document),
        _limits(document),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _claim(frontier: Frontier) -> str:
    gain, (low, high) = frontier.improvement("filter")
    if math.isnan(low):
        verdict = "One seed does not show it, but"
    elif gain >= 0.2 and low > 0:
        verdict = "It does here too:"
    elif gain >= 0.1 and low > 0:
        verdict = "Here it does not come out quite as strongly:"
    else:
        verdict = "Here it does not come out as strongly:"
    best, band = frontier.improvement("channel") if _has_both(frontier) else (gain, (low, high))
    channels = f" With pruned channels it is {best:.0%} ({between(band)})." if best > gain else ""
    return f"""# Compute-optimal transfer

You have a pretrained network, a task and a budget of compute. Which share of the channels should go before you
fine-tune? The paper behind this library ([arXiv 2304.13164](https://arxiv.org/abs/2304.13164)) says: at a small budget
the pruned network is ahead, by more than 20 % in its low-compute regime; in the end the dense one is.

{verdict} at small budgets the best network with pruned filters makes
**{gain:.0%} fewer errors** than the dense one (95 % interval over
{len(frontier.seeds)} seeds: {between((low, high))}),
the mean over {len(frontier.tasks)} tasks.{channels}{_why_not_more(frontier, gain)}{_at_last(frontier)}

![Error over training FLOPs, mean over all tasks](figures/transfer-errors.svg)

Bands are 95 % intervals over seeds, the grey area is the low-compute regime. Everything on this page was computed from
[one file of results](figures/transfer-results.json), which `examples/compute_optimal_transfer.py` makes; no number was
typed."""


def _has_both(frontier: Frontier) -> bool:
    return {"filter", "channel"} <= {cut.granularity for cut in frontier.cuts}


def _why_not_more(frontier: Frontier, gain: float) -> str:
    """What stands between the measured gain and the paper's."""
    if gain >= 0.2:
        return ""
    least = sorted(frontier.tasks, key=lambda task: frontier.improvement("filter", tasks=[task])[0])[:2]
    first, regime = frontier.budgets[0], max(map(frontier.low_compute, frontier.tasks))
    peak = max((b for b in frontier.budgets if b <= regime), key=lambda b: frontier.gain(b)[0])
    return (
        f" Least is gained on {' and on '.join(least)}. With a budget of one dense step, where no network has learnt "
        f"much, it is {frontier.gain(first)[0]:.0%}, with {peak / first:.1f} steps {frontier.gain(peak)[0]:.0%}."
    )


def _at_last(frontier: Frontier) -> str:
    """What the largest budget shows."""
    if len(frontier.seeds) < 2:
        return ""
    last = frontier.budgets[-1]
    ahead, _, behind = _standing(frontier)
    steps = f"With {last / frontier.budgets[0]:.0f} times the smallest budget"
    if ahead:
        return f" {steps} {in_words(ahead)} {'are' if len(ahead) > 1 else 'is'} still ahead."
    pruned = len(frontier.cuts) - 1
    return f" {steps} no pruned network is ahead any more, and {len(behind)} of {pruned} are behind."


def _standing(frontier: Frontier) -> tuple[list[Cut], list[Cut], list[Cut]]:
    """The pruned networks that are ahead of the dense one at the largest budget, not told apart from it, and behind."""
    bands = {cut: frontier.gain(frontier.budgets[-1], cut=cut)[1] for cut in frontier.cuts[1:]}
    ahead = [cut for cut, (low, _) in bands.items() if low > 0]
    behind = [cut for cut, (_, high) in bands.items() if high < 0]
    return ahead, [cut for cut in bands if cut not in ahead and cut not in behind], behind


def _setting(frontier: Frontier, document: dict[str, Any]) -> str:
    settings, budgets = document["settings"], document["budgets"]
    params = {c: next(x.params for x in frontier.curves if x.cut == c) for c in frontier.cuts}
    networks = [[str(c), f"{params[c]:,}", f"{frontier.cost(c):.2f}"] for c in frontier.cuts]
    by_cut = {Cut(ratio, granularity): own for ratio, granularity, own in document["rates"]}
    rates = [[str(c), *(f"{rate:g}" for rate in by_cut[c])] for c in frontier.cuts]
    steps = [f"{budget / settings['dense_step']:.0f}" for budget in budgets]
    listed = ", ".join(f"{rate:g}" for rate in settings["rates"])
    failed = f", {len(frontier.failures)} failed" if frontier.failures else ""
    return f"""## What was run

A ResNet of bottlenecks (`examples/transfer/network.py`), its residual stream {settings["expansion"]} times as wide as
the inside of its blocks, is pretrained for {settings["pretraining_steps"]:,} steps on
scikit-learn's digits 0 to 4, drawn shapes and textures, and letters of an invented script:
{settings["pretraining_classes"]} classes, most of them letters. It errs on {settings["pretraining_error"]:.1%} of
held-out samples. It is pruned without data, by the L2 norm, and every network is fine-tuned whole on every task,
{settings["train"]} samples of it, with a new head, for the FLOPs of {settings["steps"]} training steps of the dense
network (batches of {settings["batch_size"]}). `ComputeMeter` counts forward, backward and
update; evaluation is not counted.

{table(["network", "parameters", "FLOPs of a step"], networks)}

**Equal effort.** A learning rate that is the best for few steps makes a pretrained network forget in many, and a pruned
network makes more steps for its budget. So every network has a rate of its own for every budget, chosen from
{listed} by the error at that budget on
{", ".join(settings["development"])}, {settings["development_seeds"]} seeds of each, which are not in the stream:

{table(["rate for a budget of", *steps], rates)}

{_edges(by_cut, settings["rates"])}

The rate of a run is constant, so that a point of it is what a run of that budget would end with; a curve takes each of
its points from the run with the budget's rate. All share the rest: SGD with momentum, the same heads and the same order
of samples for a seed. Batches are small: the more steps the dense network makes before it is half done, the more of the
regime there is to see. Batch norms follow with a momentum of 0.5: with the usual 0.1 they would evaluate with the
statistics of the old data for some twenty steps, which puts networks with few steps, the dense one above all, at a
disadvantage that has nothing to do with pruning.

{settings["runs"]} runs{failed} for {len(frontier.curves)} curves, {duration(settings["seconds"])} in all."""


def _edges(rates: Mapping[Cut, Sequence[float]], grid: Sequence[float]) -> str:
    """Where the grid of rates may have been too narrow."""
    chosen = [rate for own in rates.values() for rate in own]
    least, most = chosen.count(min(grid)), chosen.count(max(grid))
    if len(grid) == 1:
        return "There was one rate to choose from."
    return (
        f"Of these {len(chosen)} choices {least} are the least rate of the grid and {most} the largest: "
        "a wider grid might find better ones there, for dense and pruned networks alike."
    )


def _low_compute(frontier: Frontier, unit: int) -> str:
    rows = []
    for task in frontier.tasks:
        end = frontier.low_compute(task)
        gain, band = frontier.improvement("filter", tasks=[task])
        error = frontier.metric(DENSE, end, tasks=[task])
        rows.append([task, f"{end / unit:.1f}", f"{error:.3f}", f"**{gain:.0%}**", between(band)])
    gain, band = frontier.improvement("filter")
    rows.append(["**all**", "", "", f"**{gain:.0%}**", between(band)])
    at_once = [task for task in frontier.tasks if frontier.low_compute(task) == frontier.budgets[0]]
    others = [task for task in frontier.tasks if task not in at_once]
    why = ""
    gain, band = frontier.improvement("filter", tasks=others or frontier.tasks)
    if at_once and others and frontier.improvement("filter", tasks=at_once)[0] < gain:
        why = (
            f"\n\nOn {' and '.join(at_once)} the dense network is past the regime after its first step: a pruned\n"
            f"network, which must first find again what the cut took, has one budget to gain at. On the others\n"
            f"it makes {gain:.0%} fewer errors ({between(band)})."
        )
    return f"""## The low-compute regime

It ends where the dense network has made half of its final gain. In it, at each budget, the error of the best network
with pruned filters is held against the dense one's. {_chosen_on(frontier)} Budgets are in training steps of the dense
network.

{table(["task", "the regime ends at", "dense error there", "fewer errors", "95 % interval"], rows)}{why}

![Error over training FLOPs, task by task](figures/transfer-tasks.svg)"""


def _chosen_on(frontier: Frontier) -> str:
    if len(frontier.seeds) < 2:
        return "Which is best is decided on the same seed."
    return "Which is best is decided on the other seeds, so that luck in choosing is not counted as gain."


def _budgets(frontier: Frontier, unit: int) -> str:
    rows = []
    for budget in frontier.budgets:
        best = frontier.best(budget)
        fewer = f"{1 - best.metric / best.dense:.0%}" if best.ratio else ""
        rows.append([f"{budget / unit:.1f}", str(best.cut), f"{best.metric:.3f}", f"{best.dense:.3f}", fewer])
    crossings = []
    for cut in frontier.cuts[1:]:
        budget = frontier.crossover(cut)
        at = f"from {budget / unit:.0f} steps on" if math.isfinite(budget) else "not within this budget"
        crossings.append([str(cut), at])
    return f"""## Which ratio for which budget

The best of all networks, and how many errors fewer than the dense one it makes:

{table(["budget", "best", "its error", "dense error", "fewer errors"], rows)}

Where the dense network overtakes each of the others, by the means over tasks and seeds:

{table(["network", "the dense network is ahead"], crossings)}"""


def _granularities(frontier: Frontier, near: Sequence[str], document: dict[str, Any]) -> str:
    if not _has_both(frontier):
        return ""
    groups = {"near: " + ", ".join(near): near, "all tasks": frontier.tasks}
    rows = []
    for name, tasks in groups.items():
        for cut in [None, *(c for c in frontier.cuts if c[1] == "filter")]:
            try:
                gain, band = frontier.against("filter", "channel", tasks=tasks, cut=cut)
            except structprune.OptionError:  # no network with pruned channels is as cheap
                continue
            which = f"{cut}, {frontier.cost(cut):.2f} of the FLOPs" if cut else "**mean**"
            rows.append([name, which, f"{gain:.1%}", between(band, ".1%")])
    if not rows:
        return ""
    _, (low, high) = frontier.against("filter", "channel", tasks=near)
    if math.isnan(low):
        verdict = "One seed shows neither granularity to be ahead."
    elif low > 0:
        verdict = "On the near tasks filters are ahead in this network."
    elif high < 0:
        verdict = "**The paper's order does not come out in this network: at equal FLOPs, pruned channels are ahead.**"
    else:
        verdict = (
            "On the near tasks the interval contains zero: over all ratios neither granularity is shown to be ahead."
        )
    return f"""## Filters or channels

At equal FLOPs of a training step, mean over all budgets (the channels' error between the networks that were run is
interpolated over the logarithm of FLOPs); positive means that filters make fewer errors:

{table(["tasks", "network", "filters against channels", "95 % interval"], rows)}

{verdict}

![Both granularities on the near tasks](figures/transfer-granularities.svg)

{streams([summary(document), *document["beside"]])}"""


def _in_the_end(frontier: Frontier, unit: int) -> str:
    last = frontier.budgets[-1]
    rows = []
    for cut in frontier.cuts:
        fewer = ["", ""]
        if cut != DENSE:
            gain, band = frontier.gain(last, cut=cut)
            fewer = [f"{gain:.0%}", between(band)]
        error = [f"{frontier.metric(cut, last):.4f}", between(frontier.interval(cut, last), ".4f")]
        rows.append([str(cut), *error, *fewer])
    ahead, level, behind = _standing(frontier)
    many = len(frontier.seeds) > 1
    overtaken = "still ahead of the dense network, a larger budget is needed to see it overtake"
    untold = "not told apart from it" if many else "not told apart from it, as one seed does not tell"
    said = ["No pruned network makes fewer errors than the dense one there."] if many and not ahead else []
    said += [
        f"{in_words(cuts)}: {words}."
        for cuts, words in ((ahead, overtaken), (behind, "behind it"), (level, untold))
        if cuts
    ]
    verdict = " ".join(said)
    return f"""## In the end

Errors at the largest budget, {last / unit:.0f} dense steps, mean over tasks, and how many fewer than the dense
network's they are, task by task and then averaged. The mean error is ruled by the hardest tasks, the average of shares
by those on which hardly an error is left:

{table(["network", "error", "95 % interval", "fewer errors", "95 % interval"], rows)}

By the shares of all tasks: {verdict[0].lower()}{verdict[1:]}"""


def _stream() -> str:
    return """## A stream of tasks

As Nevis'22 ([arXiv 2211.11747](https://arxiv.org/abs/2211.11747)) draws it: the mean error over all tasks against the
FLOPs of all of them together, for each budget that a task gets.

![Error over the FLOPs of the whole stream](figures/transfer-stream.svg)"""


def _limits(document: dict[str, Any]) -> str:
    options = " --quick" if document["settings"]["quick"] else ""
    return f"""## What this does not show

- Small networks, each pretrained once, on images of 16 x 16 pixels; seeds are of heads and the order of samples. How
  much a pruned ResNet-50 gains on photographs is the paper's to say, or yours to measure: see below.
- Budgets are FLOPs, as in the paper. Narrow layers use a processor less well: on a CPU a pruned network of this size
  takes longer for the same FLOPs. [Measure](measuring.md) what a ratio gives on your machine.
- Full fine-tuning. Where the head alone is trained nothing repairs what pruning took.

## Run it yourself

```bash
python examples/compute_optimal_transfer.py{options} --docs docs
```

{commands(document)}A run that was stopped goes on where it was. With your own network and images, a folder for
each class:

```bash
python examples/compute_optimal_transfer.py --model torchvision:resnet50 --images flowers/ birds/ --device cuda --jobs 1
```

[Transfer](transfer.md) says how to use the parts: `finetune`, `sweep`, `Frontier`."""


if __name__ == "__main__":
    results, *others = (json.loads(Path(file).read_text()) for file in (sys.argv[1], *sys.argv[3:]))
    write(results, Path(sys.argv[2]), others)
