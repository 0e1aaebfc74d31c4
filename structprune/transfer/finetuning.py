"""Fine-tuning for a budget of FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from typing_extensions import TypedDict, Unpack

from structprune.checkpoint.writing import in_place_of
from structprune.errors import OptionError
from structprune.transfer.curve import LearningCurve, Point
from structprune.transfer.meter import ComputeMeter
from structprune.transfer.task import Task, new_head

_EVALUATIONS = 8
OptimizerMaker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class FinetuneOptions(TypedDict, total=False):
    """Options of ``finetune``, and of every run of a ``sweep``.

    Attributes:
        optimizer: A function of parameters; SGD of rate 0.01 and momentum 0.9 by default.
        schedule: A function of the share of the budget that is spent, in [0, 1], that scales the rate; by default
            a warm-up over the first twentieth, then constant, so that every point of the curve is a result.
        head_only: Train the new head alone; everything else is frozen, and in evaluation mode.
        batch_size: Samples a step, where the task has a ``Dataset``. Default 64.
        seed: Decides the head's weights and the order of the samples. Default 0.
        evaluate_at: FLOPs at which to evaluate, beside the start and the end; log-spaced by default.
        device: Where to train. Default: where the model is.
        autocast: A dtype for mixed precision, such as ``torch.bfloat16``. Default: none.
        accelerator: An ``accelerate.Accelerator``, for several devices; FLOPs are those of all of them.
        checkpoint: A file that the run is stored in at every evaluation, and taken up from.
        progress: Whether to show a bar. Default ``False``.
    """

    optimizer: OptimizerMaker
    schedule: Callable[[float], float]
    head_only: bool
    batch_size: int
    seed: int
    evaluate_at: Sequence[float]
    device: str | torch.device
    autocast: torch.dtype
    accelerator: Any
    checkpoint: str | Path
    progress: bool


def finetune(model: nn.Module, task: Task, *, budget_flops: float, **options: Unpack[FinetuneOptions]) -> LearningCurve:
    """Train a model on a task until a budget of FLOPs is spent.

    Args:
        model: The network, dense or pruned. It is trained in place; where the task has ``classes`` it gets a new
            head first.
        task: What to train on and to test with.
        budget_flops: FLOPs of training steps, updates included; evaluation is not counted against it.
        **options: See ``FinetuneOptions``.

    Returns:
        The metric over accumulated FLOPs. The same seed gives the same curve on the CPU, also when it
        was interrupted and taken up from its checkpoint.

    Raises:
        OptionError: An option is unknown, or the budget does not pay for one step.
        ModelError: There is no layer to replace by a new head.
    """
    unknown = options.keys() - FinetuneOptions.__annotations__.keys()
    if unknown:
        raise OptionError(
            f"finetune has no option {unknown.pop()!r}; there are {', '.join(FinetuneOptions.__annotations__)}."
        )
    # Dropout and the like draw from PyTorch's generator: from the seed, and the caller's stays where it was.
    with torch.random.fork_rng():
        torch.manual_seed(options.get("seed", 0))
        return _Run(model, task, budget_flops, options).to_the_end()


def constant_after_warm_up(spent: float) -> float:
    """The default schedule: a linear warm-up over the first twentieth of the budget."""
    return min(1.0, (spent + 1e-3) / 0.05)


@dataclass
class _State:
    """How far a run is."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0


class _Run:
    """One fine-tuning: model, optimizer, data, meter, and the points so far."""

    def __init__(self, model: nn.Module, task: Task, budget: float, options: FinetuneOptions) -> None:
        self.model, self.task, self.budget = model, task, float(budget)
        self.seed = options.get("seed", 0)
        self.batch_size = options.get("batch_size", 64)
        self.schedule = options.get("schedule", constant_after_warm_up)
        self.accelerator = options.get("accelerator")
        self.autocast = options.get("autocast")
        self.checkpoint = Path(options["checkpoint"]) if "checkpoint" in options else None
        self.progress = options.get("progress", False)
        head = new_head(model, task.classes, self.seed) if task.classes is not None else None
        if "device" in options:
            model.to(options["device"])
        trained = self._trained(head) if options.get("head_only") else list(model.parameters())
        self.frozen = bool(options.get("head_only"))
        self.head = head
        self.optimizer = options.get("optimizer", _sgd)([p for p in trained if p.requires_grad])
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.meter = ComputeMeter(model)
        self.processes = getattr(self.accelerator, "num_processes", 1)
        self.device = next(model.parameters()).device
        self.runner: nn.Module = model
        if self.accelerator is not None:
            self.runner, self.optimizer = self.accelerator.prepare(model, self.optimizer)
            self.device = self.accelerator.device
        self.points: list[Point] = []
        self.state = _State()
        self.evaluate_at = sorted(options.get("evaluate_at") or _log_spaced(self.budget))

    def to_the_end(self) -> LearningCurve:
        """Train and evaluate until the next step would be more than the budget."""
        self._resume()
        if not self.points:
            self._evaluate()
        batches = self._batches(self.state.step)
        pending: list[float] | None = None
        with _bar(self.progress, self.task.name, self.budget) as advance:
            for inputs, targets in batches:
                cost = self.processes * (self.meter.step_flops(inputs) + self.meter.update_flops)
                if pending is None:
                    # What the last evaluation was made for lies less than a step beyond it.
                    done = self.spent + cost if self.state.step else 0
                    pending = [at for at in self.evaluate_at if at > done]
                if self.spent + cost > self.budget:
                    break
                self._step(inputs, targets)
                advance(self.spent)
                if pending and self.spent + cost > pending[0]:
                    pending = [at for at in pending if self.spent + cost <= at]
                    self._evaluate()
        if not self.state.step:
            raise OptionError(
                f"budget_flops={self.budget:.3g} does not pay for one training step of {cost:.3g} FLOPs: give more, or "
                "a smaller batch_size."
            )
        if self.points[-1].step != self.state.step:
            self._evaluate()
        return LearningCurve(
            self.task.name,
            tuple(self.points),
            self.processes * self.meter.step_flops(inputs) + self.meter.update_flops,
            sum(p.numel() for p in self.model.parameters()),
            {"seed": self.seed},
        )

    @property
    def spent(self) -> int:
        """Training FLOPs of all processes so far."""
        return self.processes * self.meter.training_flops

    def _step(self, inputs: Any, targets: Any) -> None:
        self.runner.train(not self.frozen)
        if self.frozen and self.head is not None:
            self.model.get_submodule(self.head).train()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.schedule(min(1.0, self.spent / self.budget))
        self.optimizer.zero_grad()
        with self._precision():
            loss = self.task.loss(self.runner(inputs), targets)
        if self.accelerator is not None:
            self.accelerator.backward(loss)
        else:
            torch.autograd.backward(loss)
        self.meter.update(self.optimizer.step)
        self.meter.step(inputs)
        self.state.step += 1
        self.state.loss_sum += loss.detach().item()
        self.state.loss_count += 1

    def _evaluate(self) -> None:
        self.runner.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, targets in self._in_order():
                with self._precision():
                    outputs = self.runner(inputs)
                self.meter.evaluate(inputs)
                values = self.task.metric(outputs, targets)
                total, count = total + float(values.sum()), count + values.numel()
        state = self.state
        loss = state.loss_sum / state.loss_count if state.loss_count else math.nan
        self.points.append(Point(self.spent, total / max(1, count), loss, state.step, self.meter.evaluation_flops))
        state.loss_sum, state.loss_count = 0.0, 0
        self._store()

    def _batches(self, start: int) -> Iterator[tuple[Any, Any]]:
        """Training batches without end, from a step on: each pass in an order of its own."""
        data, epoch, skip = self.task.train, 0, start
        while True:
            if isinstance(data, DataLoader):
                batches: Any = data
                length = len(data)
            else:
                samples: Any = data
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(len(samples), generator=generator).tolist()
                size = min(self.batch_size, len(order))
                # The last few of a pass would be a batch of another size, and another cost.
                starts = range(0, len(order) - size + 1, size)
                length = len(starts)
                chosen = starts[skip:] if skip < length else ()
                batches = (default_collate([samples[j] for j in order[i : i + size]]) for i in chosen)
            if skip >= length:
                skip, epoch = skip - length, epoch + 1
                continue
            for index, batch in enumerate(batches):
                if isinstance(data, DataLoader) and index < skip:
                    continue
                yield self._placed(batch)
            skip, epoch = 0, epoch + 1

    def _in_order(self) -> Iterator[tuple[Any, Any]]:
        data: Any = self.task.test
        loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=512)
        return (self._placed(batch) for batch in loader)

    def _placed(self, batch: Any) -> tuple[Any, Any]:
        inputs, targets = batch
        return tuple(t.to(self.device) if isinstance(t, torch.Tensor) else t for t in (inputs, targets))  # type: ignore[return-value]

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, self.autocast) if self.autocast is not None else nullcontext()

    def _trained(self, head: str | None) -> list[nn.Parameter]:
        if head is None:
            raise OptionError("head_only trains a new head, and the task has none: give it classes.")
        own = set(map(id, self.model.get_submodule(head).parameters()))
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in own)
        return list(self.model.get_submodule(head).parameters())

    def _store(self) -> None:
        if self.checkpoint is None:
            return
        document = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "points": [vars(point) for point in self.points],
            "step": self.state.step,
            "meter": self.meter.state_dict(),
            "random": torch.get_rng_state(),
            "budget": self.budget,
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with in_place_of(self.checkpoint) as partial:
            torch.save(document, partial)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        document = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if document["budget"] != self.budget:
            raise OptionError(
                f"{self.checkpoint} is of a run with budget_flops={document['budget']:.6g}, this one has "
                f"{self.budget:.6g}: give another file, or delete it."
            )
        self.model.load_state_dict(document["model"])
        self.optimizer.load_state_dict(document["optimizer"])
        self.points = [Point(**point) for point in document["points"]]
        self.state.step = document["step"]
        self.meter.load_state_dict(document["meter"])
        torch.set_rng_state(document["random"].cpu())


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def _log_spaced(budget: float) -> list[float]:
    return [budget * 2.0**-k for k in range(_EVALUATIONS, -1, -1)]


def _bar(shown: bool, name: str, total: float) -> Any:
    """A progress bar over FLOPs, or nothing."""
    return _Bar(name, total) if shown else nullcontext(lambda spent: None)


class _Bar:
    def __init__(self, name: str, total: float) -> None:
        from rich.progress import Progress

        self._progress = Progress()
        self._task = self._progress.add_task(name, total=total)

    def __enter__(self) -> Callable[[float], None]:
        self._progress.start()
        return lambda spent: self._progress.update(self._task, completed=spent)

    def __exit__(self, *details: Any) -> None:
        self._progress.stop()
