"""Which ratio for which compute budget? Prune a pretrained network, fine-tune it on many tasks, and see.

Run it from the repository root; it needs scikit-learn, and matplotlib for the figures::

    python examples/compute_optimal_transfer.py --quick     # under 25 minutes on two cores
    python examples/compute_optimal_transfer.py             # more pretraining, twice the budget, a finer grid of rates
    python examples/compute_optimal_transfer.py --docs docs # and write the page and its figures

A small ResNet is pretrained on half of scikit-learn's digits and on drawn images, then pruned without data at three
ratios in both granularities. Every network is fine-tuned on nine tasks, near to and far from what it has seen, with
the same budget of FLOPs each. Results are stored as they come: a run that was stopped goes on where it was.

The same with your own network and images, a folder for each class::

    python examples/compute_optimal_transfer.py --model torchvision:resnet50 --images flowers/ birds/ --device cuda
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transfer.rates import budgets_up_to, chosen, composed, error, needed

import structprune
from structprune.transfer import Cut, Failure, Frontier, LearningCurve, Task, probe, sweep

if TYPE_CHECKING:
    from transfer.pretraining import Left

GRANULARITIES = ("filter", "channel")
_DEVELOPMENT_SEEDS = 2
_PROBED = 100  # samples of a task: a probe is to cost little beside the training that it gives advice on
_PRUNING: structprune.PruningOptions = {"round_to": 1}


@dataclass(frozen=True)
class Experiment:
    """A pretrained network, and what it is transferred to."""

    model: nn.Module
    example: torch.Tensor
    stream: list[Task]
    near: list[str]
    kinds: list[list[str]]
    development: list[Task]
    pretraining_classes: int | None = None
    pretraining_error: float | None = None
    after_the_cut: Sequence[Left] = ()


def main() -> None:
    """Choose learning rates, run the stream, store and show the frontier."""
    options = _options()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _same_settings(options)
    clock = Clock(options.out / "seconds.json")

    experiment = _own(options) if options.model else _small(options)
    clock.lap()
    batch = experiment.example.expand(options.batch_size, *experiment.example.shape[1:])
    dense_step = structprune.count_flops(experiment.model, batch, training=True).flops
    budgets = budgets_up_to(options.steps, dense_step)
    cuts = [Cut(0.0, "dense")] + [Cut(r, g) for g in GRANULARITIES for r in options.ratios if r]
    probes = probe(
        experiment.model,
        [*experiment.stream, *experiment.development],
        _extremes(cuts),
        samples=_PROBED,
        example_inputs=experiment.example,
        pruning=_PRUNING,
        device=options.device,
    )
    clock.lap()
    logging.getLogger("structprune").setLevel(logging.INFO)  # the sweeps say how far they are
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as executor:
        run = functools.partial(_run, experiment=experiment, executor=executor, options=options)
        # The seeds of the development runs are none of the stream's.
        seeds = range(options.seeds, options.seeds + _DEVELOPMENT_SEEDS)
        tried: dict[float, Frontier] = {}
        for rate in options.rates:
            tried[rate] = _joined(run(experiment.development, cut, rate, budgets, seeds, "rates") for cut in cuts)
            clock.lap()
        rates = chosen(tried, cuts, budgets)
        runs: dict[Cut, dict[float, Frontier]] = {cut: {} for cut in cuts}
        for cut, rate, points in needed(rates, budgets):
            runs[cut][rate] = run(experiment.stream, cut, rate, points, range(options.seeds), "stream")
            clock.lap()
    frontier = _composed(runs, rates, budgets)
    development = _composed(
        {cut: {rate: Frontier(_of(tried[rate], cut)) for rate in rates[cut]} for cut in cuts}, rates, budgets
    )

    document = {
        "frontier": json.loads(frontier.to_json()),
        "development": json.loads(development.to_json()),
        "probes": [own.to_dict() for own in probes],
        "budgets": budgets,
        "rates": [[*cut, own] for cut, own in rates.items()],
        "tried": [[*cut, r, [error(_of(f, cut), b) for b in budgets]] for r, f in tried.items() for cut in cuts],
        "near": experiment.near,
        "kinds": experiment.kinds,
        "after_the_cut": experiment.after_the_cut,
        "settings": {
            "quick": options.quick, "train": options.train, "seeds": options.seeds, "steps": options.steps,
            "batch_size": options.batch_size, "rates": options.rates, "pretraining_steps": options.pretraining_steps,
            "dense_step": dense_step, "development": [task.name for task in experiment.development],
            "development_seeds": _DEVELOPMENT_SEEDS,
            "runs": sum(len(f.curves) for f in (*tried.values(), *(f for own in runs.values() for f in own.values()))),
            "seconds": round(clock.seconds), "pretraining_error": experiment.pretraining_error,
            "pretraining_classes": experiment.pretraining_classes, "expansion": options.expansion,
        },
    }  # fmt: skip
    (options.out / "results.json").write_text(json.dumps(document))
    print(frontier)
    gain, (low, high) = frontier.improvement("filter")
    print(f"low compute: pruned filters err {gain:.1%} less than the dense network (95 %: {low:.1%} to {high:.1%})")
    if options.docs:
        from transfer.page import write

        write(document, options.docs, [json.loads(file.read_text()) for file in options.beside])


def _same_settings(options: argparse.Namespace) -> None:
    """Results that are stored go on only with the settings that they were made with."""
    file = options.out / "settings.json"
    named = ("quick", "train", "steps", "pretraining_steps", "batch_size", "expansion", "model", "weights",
             "images", "image_size")  # fmt: skip
    settings = {name: str(getattr(options, name)) for name in named} | {"format": 5}
    if options.pretraining_samples:
        settings["pretraining_samples"] = str(options.pretraining_samples)
    if options.out.is_dir() and any(options.out.iterdir()):
        stored = json.loads(file.read_text()) if file.exists() else {}
        if stored != settings:
            raise SystemExit(f"{options.out} holds results of other settings ({stored}): take another --out.")
    options.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a shorter pretraining, a smaller budget, fewer rates")
    parser.add_argument("--out", type=Path, help="folder of the results; default build/transfer/quick or full")
    parser.add_argument("--docs", type=Path, help="write the page and its figures here")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75])
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates to choose from")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, help="only so many of the stream")
    parser.add_argument("--train", type=int, help="training samples of a task")
    parser.add_argument("--steps", type=int, help="budget of a run, in training steps of the dense network")
    parser.add_argument("--pretraining-steps", type=int)
    parser.add_argument("--pretraining-samples", type=int, help="images to pretrain on; default 6000, 3000 if quick")
    parser.add_argument(
        "--expansion", type=int, default=2, help="width of the residual stream, in widths of the inside of a block"
    )
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[],
        help="results.json of other runs, such as of another --expansion, to set beside on the page",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--jobs", type=int, help="processes at a time; default: as many as cores")
    parser.add_argument("--device", help="where to train; with cuda take --jobs 1 or few")
    parser.add_argument("--model", help="torchvision:NAME or timm:NAME")
    parser.add_argument("--weights", type=Path, help="its state_dict; default: the hub's own, downloaded")
    parser.add_argument("--images", type=Path, nargs="+", help="a folder for each task, a folder in it for each class")
    parser.add_argument("--image-size", type=int)
    options = parser.parse_args()
    if bool(options.model) != bool(options.images):
        parser.error("--model and --images go together")
    if options.model and options.docs:
        parser.error("--docs writes the page on the built-in network; --out has the results of yours")
    options.out = options.out or Path("build/transfer") / ("quick" if options.quick else "full")
    options.train = options.train or 200  # few, as when one transfers
    options.steps = options.steps or (64 if options.quick else 128)
    options.rates = options.rates or ([0.01, 0.04, 0.16] if options.quick else [0.0025 * 2**k for k in range(7)])
    options.pretraining_steps = options.pretraining_steps or (1500 if options.quick else 3000)
    return options


def _small(options: argparse.Namespace) -> Experiment:
    from transfer import images, pretraining

    file, samples = options.out / "pretrained.pt", options.pretraining_samples or (3000 if options.quick else 6000)
    model, task, error = pretraining.pretrained(file, options.expansion, samples, options.pretraining_steps)
    print(f"pretrained: error {error:.3f} on held-out samples of {model.fc.out_features} classes")
    left = pretraining.after_the_cut(options.out / "after_the_cut.json", model, task)
    stream, development = images.stream(options.train)[: options.tasks], images.development(options.train)
    near = [task.name for task in stream if task.name in images.NEAR]
    return Experiment(
        model,
        pretraining.EXAMPLE,
        stream,
        near,
        images.KINDS,
        development,
        model.fc.out_features,
        error,
        after_the_cut=left,
    )


def _own(options: argparse.Namespace) -> Experiment:
    from transfer import own

    model, transform, example = own.load(options.model, options.weights, options.image_size)
    stream, development = own.tasks(options.images, transform)
    return Experiment(model, example, stream, [], [], development)


def _run(
    tasks: list[Task], cut: Cut, rate: float, budgets: Sequence[float], seeds: range, name: str, *,
    experiment: Experiment, executor: Executor, options: argparse.Namespace,
) -> Frontier:  # fmt: skip
    """One network with one learning rate, on every task and seed, tested at the budgets that it is meant for."""
    extra: dict[str, Any] = {"device": options.device} if options.device else {}
    return sweep(
        experiment.model,
        tasks,
        [cut.ratio],
        [cut.granularity],
        seeds,
        budget_flops=budgets[-1],
        executor=executor,
        # A run that was tested at other budgets is another run.
        store=options.out / f"{name} {rate:g} {budgets[0]:.3g} {len(budgets)}",
        example_inputs=experiment.example,
        pruning=_PRUNING,
        prepare=_follow_quickly,
        optimizer=functools.partial(_sgd, rate=rate),
        schedule=_constant,
        batch_size=options.batch_size,
        evaluate_at=budgets,
        **extra,
    )


def _joined(frontiers: Iterable[Frontier]) -> Frontier:
    """The runs of several frontiers in one."""
    frontiers = list(frontiers)
    return Frontier([c for f in frontiers for c in f.curves], [c for f in frontiers for c in f.failures])


def _of(frontier: Frontier, cut: Cut) -> list[LearningCurve]:
    return [curve for curve in frontier.curves if curve.cut == cut]


def _composed(
    runs: dict[Cut, dict[float, Frontier]], rates: dict[Cut, list[float]], budgets: Sequence[float]
) -> Frontier:
    """A curve for every network, task and seed, of which all runs succeeded."""
    curves: list[LearningCurve] = []
    failures: list[Failure] = []
    for cut, by_rate in runs.items():
        found: dict[tuple[str, int], dict[float, LearningCurve]] = {}
        for rate, frontier in by_rate.items():
            failures += frontier.failures
            for curve in frontier.curves:
                found.setdefault((curve.task, curve.about["seed"]), {})[rate] = curve
        curves += [composed(own, rates[cut], budgets) for own in found.values() if own.keys() == by_rate.keys()]
    return Frontier(curves, failures)


def _extremes(cuts: Sequence[Cut]) -> list[Cut]:
    """The dense network, and the most pruned one of each granularity."""
    return [
        max(cut for cut in cuts if cut.granularity == own) for own in dict.fromkeys(cut.granularity for cut in cuts)
    ]


def _follow_quickly(model: nn.Module, task: Task) -> nn.Module:
    """Let batch norms follow a new task within a few steps.

    With the usual momentum of 0.1 the statistics that evaluation uses would be those of the old data for some twenty
    steps. Networks that make more steps for their budget would look better for this alone.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5
    return model


def _sgd(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4, nesterov=True)


def _constant(spent: float) -> float:
    """So that every point of a curve is what a run of that budget would end with."""
    return 1.0


class Clock:
    """Seconds that a run took, those before it was stopped included, up to the last lap."""

    def __init__(self, file: Path) -> None:
        """Go on from what the file says."""
        self.file = file
        self.seconds: float = json.loads(file.read_text()) if file.exists() else 0.0
        self._last = time.perf_counter()

    def lap(self) -> None:
        """Add the time since the last call, and store the sum."""
        now = time.perf_counter()
        self.seconds, self._last = self.seconds + now - self._last, now
        self.file.write_text(json.dumps(self.seconds))


if __name__ == "__main__":
    main()
