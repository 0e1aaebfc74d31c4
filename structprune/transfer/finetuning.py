"""Fine-tuning for a budget of FLOPs."""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import TypedDict, Unpack

from structprune.checkpoint.writing import in_place_of
from structprune.errors import OptionError, brief
from structprune.transfer.batches import Batches, outputs_of
from structprune.transfer.curve import LearningCurve, Point
from structprune.transfer.meter import ComputeMeter
from structprune.transfer.task import Task, new_head

_EVALUATIONS = 8
# How a file of torch.save begins; what holds its parts together stands at the end.
_ZIP = b"PK\3\4"
_log = logging.getLogger("structprune")
OptimizerMaker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class FinetuneOptions(TypedDict, total=False):
    """Options of ``finetune``, and of every run of a ``sweep``.

    Attributes:
        optimizer: A function of parameters; SGD of rate 0.01 and momentum 0.9 by default.
        schedule: A function of the share of the budget that is spent, in [0, 1], that scales the rate; by default
            a warm-up over the first twentieth, then constant, so that every point of the curve is a result.
        head_only: Train the new head alone; everything else is frozen, and in evaluation mode.
        batch_size: Samples of a process in a step, where the task has a ``Dataset``. Default 64.
        seed: Decides the head's weights and the order of the samples. Default 0.
        evaluate_at: FLOPs at which to evaluate, beside the start and the end; log-spaced by default.
        device: Where to train. Default: where the model is.
        autocast: A dtype for mixed precision, such as ``torch.bfloat16``. Default: none.
        accelerator: An ``accelerate.Accelerator``, for several devices, as ``torchrun`` or ``accelerate launch`` starts
            them: every process takes its share of the data, FLOPs are those of all of them.
        checkpoint: A file that the run is stored in at every evaluation, and taken up from. Where it was cut short,
            the run begins anew.
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
        The metric over accumulated FLOPs. With a ``Dataset`` the same seed gives the same curve on the CPU, also when
        it was interrupted and taken up from its checkpoint; the order of a ``DataLoader`` is its own.

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
        self.schedule = options.get("schedule", constant_after_warm_up)
        self.accelerator = options.get("accelerator")
        self.autocast = options.get("autocast")
        self.checkpoint = Path(options["checkpoint"]) if "checkpoint" in options else None
        self.progress = options.get("progress", False)
        self.head = new_head(model, task.classes, self.seed) if task.classes is not None else None
        self.frozen = options.get("head_only", False)
        if "device" in options:
            model.to(options["device"])
        trained = self._head_alone() if self.frozen else list(model.parameters())
        self.optimizer = options.get("optimizer", _sgd)([p for p in trained if p.requires_grad])
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.meter = ComputeMeter(model)
        self.runner: nn.Module = model
        rank, self.processes, self.device = 0, 1, next(model.parameters()).device
        if self.accelerator is not None:
            self.runner, self.optimizer = self.accelerator.prepare(model, self.optimizer)
            rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
            self.device = self.accelerator.device
        self.batches = Batches(task, options.get("batch_size", 64), self.seed, self.device, rank, self.processes)
        # Half precision has too few exponents for gradients: losses are scaled up, as torch.amp does it.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast == torch.float16)
        self.points: list[Point] = []
        self.state = _State()
        self.evaluate_at = sorted(options.get("evaluate_at") or _log_spaced(self.budget))

    def to_the_end(self) -> LearningCurve:
        """Train and evaluate until the next step would be more than the budget."""
        self._resume()
        if not self.points:
            self._evaluate()
        pending: list[float] | None = None
        with _bar(self.progress, self.task.name, self.budget) as advance:
            for inputs, targets in self.batches.training(self.state.step):
                cost = self._cost(inputs)
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
        params = sum(p.numel() for p in self.model.parameters())
        return LearningCurve(self.task.name, tuple(self.points), self._cost(inputs), params, {"seed": self.seed})

    @property
    def spent(self) -> int:
        """Training FLOPs of all processes so far."""
        return self.processes * self.meter.training_flops

    def _cost(self, inputs: Any) -> int:
        """FLOPs of a training step of all processes."""
        return self.processes * (self.meter.step_flops(inputs) + self.meter.update_flops)

    def _step(self, inputs: Any, targets: Any) -> None:
        self.runner.train(not self.frozen)
        if self.frozen and self.head is not None:
            self.model.get_submodule(self.head).train()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.schedule(min(1.0, self.spent / self.budget))
        self.optimizer.zero_grad()
        with self._precision():
            loss = self.task.loss(outputs_of(self.runner, inputs), targets)
        if self.accelerator is not None:
            self.accelerator.backward(loss)
            self.meter.update(self.optimizer.step)
        else:
            torch.autograd.backward(self.scaler.scale(loss))
            self.meter.update(lambda: self.scaler.step(self.optimizer))
            self.scaler.update()
        self.meter.step(inputs)
        self.state.step += 1
        self.state.loss_sum += loss.detach().item()
        self.state.loss_count += 1

    def _evaluate(self) -> None:
        self.runner.eval()
        total, count = 0.0, 0.0
        with torch.no_grad():
            for inputs, targets in self.batches.testing():
                with self._precision():
                    outputs = outputs_of(self.model, inputs)
                self.meter.evaluate(inputs)
                values = self.task.metric(outputs, targets)
                total, count = total + float(values.sum()), count + values.numel()
        state = self.state
        total, count, losses, steps, evaluation = self._summed(
            total, count, state.loss_sum, state.loss_count, self.meter.evaluation_flops
        )
        loss = losses / steps if steps else math.nan
        self.points.append(Point(self.spent, total / max(1, count), loss, state.step, int(evaluation)))
        state.loss_sum, state.loss_count = 0.0, 0
        self._store()

    def _summed(self, *values: float) -> list[float]:
        """Over all processes."""
        if self.processes == 1:
            return list(values)
        here = torch.tensor(values, dtype=torch.float64, device=self.device)
        together: list[float] = self.accelerator.reduce(here, "sum").tolist()  # type: ignore[union-attr]
        return together

    def _precision(self) -> Any:
        return torch.autocast(self.device.type, self.autocast) if self.autocast is not None else nullcontext()

    def _head_alone(self) -> list[nn.Parameter]:
        """The new head's parameters; all others are frozen."""
        if self.head is None:
            raise OptionError("head_only trains a new head, and the task has none: give it classes.")
        self.model.requires_grad_(False)
        head = self.model.get_submodule(self.head).requires_grad_(True)
        return list(head.parameters())

    def _store(self) -> None:
        if self.checkpoint is None or self.batches.rank:
            return
        document = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "points": [vars(point) for point in self.points],
            "step": self.state.step,
            "meter": self.meter.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "budget": self.budget,
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with in_place_of(self.checkpoint) as partial:
            torch.save(document, partial)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        document = _read_checkpoint(self.checkpoint, self.device)
        if document is None:
            return
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
        self.scaler.load_state_dict(document["scaler"])
        torch.set_rng_state(document["random"].cpu())


def _read_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """What a run stored; none where the file was cut short, so that the run begins anew.

    Raises:
        OptionError: The file is no checkpoint of a run, and would be overwritten.
    """
    try:
        document = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # zip, pickle and PyTorch have an error of their own each
        with path.open("rb") as file:
            begins = file.read(len(_ZIP))
        if not begins.strip(b"\0") or (_ZIP.startswith(begins) and not zipfile.is_zipfile(path)):
            _log.warning("%s was cut short: the run begins anew (%s)", path, brief(error))
            return None
        raise OptionError(
            f"{path} is no checkpoint of finetune ({brief(error)}): give another file, or delete it."
        ) from error
    if not isinstance(document, dict) or not {"model", "optimizer", "points", "budget"} <= document.keys():
        raise OptionError(f"{path} is no checkpoint of finetune: give another file, or delete it.")
    return document


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
