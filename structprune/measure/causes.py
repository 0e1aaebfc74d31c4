"""Why fewer MACs are not as much less time: candidates, each measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from structprune.errors import StructPruneError
from structprune.inputs import Invocations
from structprune.measure.flops import FlopCount
from structprune.measure.profile import operator_seconds
from structprune.measure.quantities import scaled, seconds_text
from structprune.measure.runner import Runner

# Where a batch that fills the device does the same work in less than this of the time an entry, the
# smaller batch was bound by something else than the work.
_OVERHEAD = 0.75
_GAINS = 1.1
_LARGEST_BATCH = 256
_LONGEST_FORWARD = 1.0
_SHARE_WORTH_SAYING = 0.2
_MULTIPLE = 8
# Operators that hold a network's contractions, by the words in the names of ATen and its libraries.
_CONTRACTIONS = ("conv", "mm", "linear", "matmul", "attention", "einsum", "gemm", "rnn", "lstm", "gru", "nnpack")

Cause = tuple[float, str]


def likely_causes(
    dense: nn.Module, pruned: nn.Module, calls: Invocations, runners: Sequence[Runner], counts: Sequence[FlopCount]
) -> tuple[str, ...]:
    """The causes that the measurements support, the one with the largest share of the time first."""
    found = [
        _overhead(dense, pruned, calls, runners),
        *_by_operator(runners, counts),
        _memory(runners[1], counts[1]),
        _widths(runners, counts),
    ]
    return tuple(text for _, text in sorted((cause for cause in found if cause is not None), reverse=True))


def _overhead(dense: nn.Module, pruned: nn.Module, calls: Invocations, runners: Sequence[Runner]) -> Cause | None:
    """Compare the time an entry of the batch with that in a batch that fills the device."""
    runner = runners[1]
    if runner.batch_size is None or any(call.function is not None for call in calls):
        return None
    setting, batch = runner.setting, runner.batch_size
    here = _seconds(runner)
    best = here / batch
    saturating = batch
    while saturating < _LARGEST_BATCH and best * saturating * 2 < _LONGEST_FORWARD:
        larger = _with_batch(pruned, calls, runner, saturating * 2)
        if larger is None:
            break
        each = _seconds(larger) / (saturating * 2)
        saturating *= 2
        if each > 0.9 * best:
            best = min(best, each)
            break
        best = each
    share = 1 - best * batch / here
    if best * batch > _OVERHEAD * here:
        return None
    pair = [_with_batch(model, calls, runner, saturating) for model in (dense, pruned)]
    gained = [_seconds(one) for one in pair if one is not None]
    # A larger batch is cheaper an entry for the dense model too; the shortfall is overhead only if it shrinks.
    if len(gained) < 2 or gained[0] / gained[1] < _GAINS * _seconds(runners[0]) / here:
        return None
    of_entries = (
        f"(an entry takes {seconds_text(here / batch)}, in a batch of {saturating} {seconds_text(best)}); with "
        f"{saturating} the same pair gives {gained[0] / gained[1]:.2f}."
    )
    if setting.cuda_graph:
        # Nothing is launched one by one any more: the kernels themselves are too small.
        return share, (
            f"Too little work: a batch of {batch} uses about {1 - share:.0%} of what the device can do {of_entries} "
            "Larger batches help."
        )
    launching = "launching kernels and in Python" if setting.device.type != "cpu" else "calling operators and in Python"
    return share, (
        f"Overhead-bound: with a batch of {batch} about {share:.0%} of the pruned model's time goes into {launching}, "
        f"not into the work {of_entries} Larger batches, compile=True or cuda_graph=True help."
    )


def _with_batch(model: nn.Module, calls: Invocations, like: Runner, batch: int) -> Runner | None:
    """The model with another batch; ``None`` where it does not run with that."""
    try:
        return _warmed(Runner(model, calls, replace(like.setting, batch_size=batch)))
    except (StructPruneError, torch.OutOfMemoryError):
        # A fixed batch in the code, or no memory for a larger one: then this cannot be told.
        return None


def _warmed(runner: Runner) -> Runner:
    runner.warm_up()
    return runner


def _seconds(runner: Runner, blocks: int = 5) -> float:
    return float(np.median([runner.block(1) for _ in range(blocks)]))


def _by_operator(runners: Sequence[Runner], counts: Sequence[FlopCount]) -> list[Cause]:
    """Divide the time that the pruned model takes beyond what its MACs ask for among the operators."""
    setting = runners[0].setting
    if setting.compile or setting.cuda_graph:
        return []
    dense, pruned = (operator_seconds(runner) for runner in runners)
    promised = counts[1].macs / counts[0].macs
    excess = {name: seconds - promised * dense.get(name, 0.0) for name, seconds in pruned.items()}
    total = sum(excess.values())
    if total <= 0:
        return []
    others = {name: own for name, own in excess.items() if not any(word in name for word in _CONTRACTIONS)}
    share = sum(others.values()) / total
    causes = []
    if share > _SHARE_WORTH_SAYING:
        largest = sorted(others, key=lambda name: others[name], reverse=True)[:3]
        named = ", ".join(
            f"{name.split('::')[-1]} {seconds_text(dense[name])} to {seconds_text(pruned[name])}"
            for name in largest
            if name in dense
        )
        causes.append(
            (
                share,
                f"{min(share, 1):.0%} of the shortfall is time in operators that are no contractions. Pruning shrinks "
                f"them with the channels or not at all, and the MACs do not count them: {named}.",
            )
        )
    seconds = [sum(own.values()) - sum(own[name] for name in others if name in own) for own in (dense, pruned)]
    rates = [count.macs / own for count, own in zip(counts, seconds, strict=True) if own]
    if 1 - share > _SHARE_WORTH_SAYING and len(rates) == 2 and rates[1] < 0.95 * rates[0]:
        causes.append(
            (
                1 - share,
                f"{min(1 - share, 1):.0%} of the shortfall: the contractions run at {scaled(rates[1])}MAC/s in the "
                f"pruned model and at {scaled(rates[0])}MAC/s in the dense one. Smaller matrices use the "
                "device less well.",
            )
        )
    return causes


def _memory(runner: Runner, count: FlopCount) -> Cause | None:
    """The share of the measured time that moving bytes must take in modules that move them longer than they compute.

    The roofline model: Williams, Waterman and Patterson, 2009. Both ceilings are measured here. Held against the time
    that was measured and not against the roofline's own: a small batch may be far from both ceilings.
    """
    leaves = [cost for cost in count.by_module.walk() if not cost.children and cost.moved_bytes]
    # Compiled code fuses modules: what each would move by itself, it does not.
    if not leaves or runner.setting.compile:
        return None
    flops, bandwidth = _ceilings(runner, max(cost.moved_bytes for cost in leaves))
    bound = [(2 * cost.macs / flops, cost.moved_bytes / bandwidth) for cost in leaves]
    share = sum(moving for computing, moving in bound if moving > computing) / _seconds(runner)
    # More than all of the time: the bytes do not go through memory, but stay in caches or registers.
    if not _SHARE_WORTH_SAYING <= share <= 1:
        return None
    return share, (
        f"Memory-bound: moving the bytes of modules where that takes longer than computing would take {share:.0%} of "
        f"the pruned model's time ({bandwidth / 1e9:.0f} GB/s and {flops / 1e12:.2g} TFLOP/s measured here). It falls "
        "with the channels, where MACs fall with their square."
    )


def _ceilings(runner: Runner, moved: int) -> tuple[float, float]:
    """FLOPs a second of a large matrix product, bytes a second of a copy as large as the largest module's."""
    device = runner.setting.device
    dtype = next((p.dtype for p in runner.model.parameters() if p.is_floating_point()), torch.float32)
    # On an accelerator a small copy would time its launch and the cache.
    side, least = (1024, 1 << 20) if device.type == "cpu" else (8192, 1 << 28)
    a = torch.randn(side, side, device=device).to(dtype)
    source = torch.empty(max(moved // 2, least), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        product = _fastest(runner, lambda: a @ a)
        copied = _fastest(runner, lambda: target.copy_(source))
    return 2 * side**3 / product, 2 * source.numel() / copied


def _fastest(runner: Runner, run: Callable[[], torch.Tensor]) -> float:
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        run()
        runner.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _widths(runners: Sequence[Runner], counts: Sequence[FlopCount]) -> Cause | None:
    """The share of the MACs in layers whose width left the multiples that vector units are made for."""
    dense = dict(runners[0].model.named_parameters())
    macs = {cost.name: cost.macs for cost in counts[1].by_module.walk()}
    odd: dict[str, tuple[int, ...]] = {}
    for name, weight in runners[1].model.named_parameters():
        before = dense.get(name)
        if before is None or before.ndim != weight.ndim or weight.ndim < 2:
            continue
        pairs = zip(before.shape[:2], weight.shape[:2], strict=True)
        if any(was % _MULTIPLE == 0 and now % _MULTIPLE for was, now in pairs):
            odd[name] = tuple(weight.shape[:2])
    share = sum(macs.get(name.rpartition(".")[0], 0) for name in odd) / max(counts[1].macs, 1)
    if share < _SHARE_WORTH_SAYING:
        return None
    name, shape = next(iter(odd.items()))
    # What it costs is not measured here, so it does not outrank what is.
    return share * 0.3, (
        f"Widths off the hardware's multiples: {share:.0%} of the pruned model's MACs are in layers whose width was a "
        f"multiple of {_MULTIPLE} and is not any more ({name} is {' x '.join(map(str, shape))}). "
        'round_to="auto" keeps multiples.'
    )
