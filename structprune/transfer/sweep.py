"""Every combination of task, ratio, granularity and seed, run by any executor and stored as it comes."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from structprune.checkpoint.writing import in_place_of
from structprune.errors import OptionError, brief
from structprune.select.options import PruningOptions
from structprune.transfer.curve import LearningCurve
from structprune.transfer.cut import DENSE, Cut, network_of
from structprune.transfer.finetuning import FinetuneOptions, finetune
from structprune.transfer.frontier import Frontier
from structprune.transfer.runs import Failure
from structprune.transfer.task import Task

_log = logging.getLogger("structprune")
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run. A ratio of 0 is the dense network, whatever the granularity."""

    task: str
    ratio: float
    granularity: str
    seed: int
    budget_flops: float

    @property
    def name(self) -> str:
        """A file name: readable, and with a digest of all that identifies the run."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]
        # A task is called what its user likes, and every file system allows other characters.
        task = re.sub(r"[^\w.-]", "_", self.task)[:80]
        return f"{task}-{self.granularity}-{self.ratio:g}-{self.seed}-{digest}"


def sweep(
    model: nn.Module,
    tasks: Sequence[Task],
    ratios: Sequence[float],
    granularities: Sequence[str] = ("filter",),
    seeds: Sequence[int] = (0,),
    *,
    budget_flops: float,
    executor: Executor | None = None,
    store: str | Path | None = None,
    example_inputs: Any = None,
    pruning: PruningOptions | None = None,
    prepare: Callable[[nn.Module, Task], nn.Module] | None = None,
    **options: Unpack[FinetuneOptions],
) -> Frontier:
    """Prune and fine-tune a pretrained model in every combination, and put the curves side by side.

    Args:
        model: The pretrained network; it is not changed.
        tasks: What to transfer it to, of different names.
        ratios: Shares of channels to remove; 0 is the dense network.
        granularities: ``"filter"``, ``"channel"`` or both.
        seeds: Each decides the head's weights and the order of the samples.
        budget_flops: FLOPs of every run.
        executor: Any ``concurrent.futures.Executor``: threads, processes, ``dask.distributed``'s
            ``Client.get_executor()``. By default a process for each core, one thread each. Workers on other machines
            must find ``store`` there under the same path. Threads share PyTorch's random numbers: with dropout, runs in
            several threads differ from time to time.
        store: A folder of results. Runs that have one are not run again, so a sweep that was killed goes on
            where it was. By default they are kept in memory alone.
        example_inputs: As for ``prune_model``.
        pruning: Further options of ``prune_model``.
        prepare: Called with each pruned (or dense) copy and its task, before the new head is put in.
        **options: Of ``finetune``; ``seed`` and ``checkpoint`` are the sweep's own.

    Returns:
        The curves of all runs that succeeded, and the errors of the others.

    Raises:
        OptionError: Two tasks have one name, or there is none.
    """
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) != len(names):
        raise OptionError(f"tasks must be at least one, of different names; got {names}.")
    for name in {"seed", "checkpoint", "accelerator"} & options.keys():
        raise OptionError(f"{name} is the sweep's own: a run has a seed of seeds, and its files in store.")
    jobs = [
        Job(task, ratio, granularity, seed, float(budget_flops))
        for seed in seeds
        for task in names
        for ratio, granularity in _cuts(ratios, granularities)
    ]
    with _folder(store) as folder:
        shared = _Shared(model, tuple(tasks), example_inputs, pruning or {}, prepare, dict(options))
        payload = folder / "shared.pt"
        _write(payload, shared)
        pending = [job for job in jobs if not isinstance(_stored(folder / f"{job.name}.json"), LearningCurve)]
        for done, (job, outcome) in enumerate(_outcomes(str(payload), pending, executor), start=1):
            _store(folder / f"{job.name}.json", {"job": asdict(job), **outcome})
            _log.info("[%d/%d] %s: %s", done, len(pending), job.name, outcome.get("failed", "done"))
        return _gathered(folder, jobs)


def run_job(payload: str, job: Job) -> Outcome:
    """Prune and fine-tune once, in whatever process the executor has; the curve, or what went wrong."""
    try:
        if multiprocessing.parent_process() is not None:
            # Many processes with many threads each would wait for each other.
            torch.set_num_threads(1)
            _end_with_the_parent()
        shared: _Shared = torch.load(payload, weights_only=False)
        task = next(task for task in shared.tasks if task.name == job.task)
        model = network_of(Cut(job.ratio, job.granularity), shared.model, shared.example_inputs, shared.pruning)
        if shared.prepare is not None:
            model = shared.prepare(model, task)
        checkpoint = Path(payload).parent / f"{job.name}.ckpt"
        curve = finetune(
            model, task, budget_flops=job.budget_flops, seed=job.seed, checkpoint=checkpoint, **shared.options
        )
        checkpoint.unlink(missing_ok=True)
        about = {"ratio": job.ratio, "granularity": job.granularity, "seed": job.seed}
        return {"curve": replace(curve, about=about).to_dict()}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def _outcomes(payload: str, jobs: Sequence[Job], executor: Executor | None) -> Iterator[tuple[Job, Outcome]]:
    """Every job with its outcome, as they come."""
    if executor is not None:
        for job, future in _completed(executor, payload, jobs):
            yield job, _result(future)
        return
    processes = os.cpu_count() or 1
    while jobs:
        lost = set()
        with _pool(processes) as pool:
            for job, future in _completed(pool, payload, jobs):
                if isinstance(future.exception(), BrokenExecutor):
                    lost.add(job)
                else:
                    yield job, _result(future)
        # A process that died took the pool with it, and what waited. Its job is one of the first, as many as there were
        # processes: they get one of their own each, the others another pool.
        left = [job for job in jobs if job in lost]
        for job in left[:processes]:
            with _pool(1) as pool:
                yield job, _result(pool.submit(run_job, payload, job))
        jobs = left[processes:]


def _completed(executor: Executor, payload: str, jobs: Sequence[Job]) -> Iterator[tuple[Job, Future[Outcome]]]:
    futures = {executor.submit(run_job, payload, job): job for job in jobs}
    for future in as_completed(futures):
        yield futures[future], future


def _result(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # the worker died, or its answer was lost: this job failed, the others go on
        return {"failed": f"{type(error).__name__}: {error}"}


@functools.cache
def _end_with_the_parent() -> None:
    """A pool's process waits for work for ever where its parent was killed: watch for that, once."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="structprune-parent", daemon=True).start()


@dataclass(frozen=True)
class _Shared:
    """What all jobs have in common; every worker reads it from a file."""

    model: nn.Module
    tasks: tuple[Task, ...]
    example_inputs: Any
    pruning: PruningOptions
    prepare: Callable[[nn.Module, Task], nn.Module] | None
    options: dict[str, Any]


def _cuts(ratios: Sequence[float], granularities: Sequence[str]) -> list[Cut]:
    """The dense network once, then every ratio in every granularity."""
    dense = [DENSE] if 0 in ratios else []
    return dense + [Cut(float(r), g) for g in granularities for r in dict.fromkeys(ratios) if r]


def _write(path: Path, shared: _Shared) -> None:
    """Pickle what the jobs share."""
    with in_place_of(path) as partial:
        torch.save(shared, partial)


def _stored(path: Path) -> LearningCurve | str | None:
    """The curve that a run left, or why it failed; none where there is no result, or one that was cut short."""
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return LearningCurve.from_dict(document["curve"]) if "curve" in document else str(document["failed"])
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        _log.warning("%s is damaged, and its run is made again (%s)", path, brief(error))
        return None


def _store(path: Path, document: dict[str, Any]) -> None:
    with in_place_of(path) as partial:
        partial.write_text(json.dumps(document), encoding="utf-8")


def _gathered(folder: Path, jobs: Sequence[Job]) -> Frontier:
    curves, failures = [], []
    for job in jobs:
        found = _stored(folder / f"{job.name}.json")
        if isinstance(found, LearningCurve):
            curves.append(found)
        else:
            failures.append(Failure(job.task, job.ratio, job.granularity, job.seed, found or "its result was lost"))
    return Frontier(tuple(curves), tuple(failures))


@contextmanager
def _folder(store: str | Path | None) -> Iterator[Path]:
    if store is not None:
        Path(store).mkdir(parents=True, exist_ok=True)
        yield Path(store)
        return
    with TemporaryDirectory(prefix="structprune-sweep-") as made:
        yield Path(made)


@contextmanager
def _pool(processes: int) -> Iterator[Executor]:
    # A forked child of a process with threads may hang.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as made:
        try:
            yield made
        except BaseException:
            made.shutdown(wait=False, cancel_futures=True)
            raise
