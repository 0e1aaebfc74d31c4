"""Prunes one network with structprune, times it and judges the result."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn

import structprune
from tests.support import oracle
from tests.zoo.by_value import by_value
from tests.zoo.calls import Call, Shapes, agree
from tests.zoo.families import Network, build
from tests.zoo.process import Emit, described

GRANULARITIES = ("filter", "channel")
RATIO = 0.5
_ATTENTION = ("attn", "attention")
_MLP = ("mlp", "ffn", "fc1", "fc2")


def judge(network: Network, emit: Emit) -> None:
    """Prune in both granularities; what is known is emitted at once, since a limit may end the process."""
    emit({"doing": "dense"})
    model, call = build(network)
    # Transformers' models register parameters that only some calls read (mask tokens).
    judge_model(model, call, emit, allow_untraced=network.family == "transformers")


def judge_model(model: nn.Module, call: Call, emit: Emit, *, allow_untraced: bool = False, timed: bool = True) -> None:
    """Judge a network in evaluation mode, wherever it comes from; ``timed`` has its seconds and operators too."""
    subject = _Subject(model, call, allow_untraced, timed)
    emit({"params": sum(p.numel() for p in model.parameters()), "dense_trains": subject.trained is not None})
    plans = {}
    for granularity in GRANULARITIES:
        emit({"doing": f"{granularity}: plan"})
        try:
            plans[granularity], entry = subject.plan(granularity)
        except structprune.NothingToPruneError as error:
            emit({granularity: {"refused": str(error)}})
            continue
        except Exception as error:
            emit({granularity: {"failed": described(error)}})
            continue
        emit({granularity: entry})
    for granularity, plan in plans.items():
        emit({"doing": f"{granularity}: proof"})
        emit({granularity: subject.judged(plan)})
    if timed:
        emit({"doing": "trace"})
        try:
            emit({"unknown_operators": structprune.trace(model, call.example_inputs).unknown_operators})
        except Exception as error:
            emit({"trace_failed": described(error)})
    emit({"doing": "oracle"})
    for granularity, verdict in subject.by_oracle(plans):
        emit({granularity: verdict})


class _Subject:
    """A dense network, and what it gives in both modes."""

    def __init__(self, model: nn.Module, call: Call, allow_untraced: bool, timed: bool) -> None:
        self._model, self._call, self._timed = model, call, timed
        self._options: dict[str, Any] = {"allow_untraced": True} if allow_untraced else {}
        self._shapes = call.shapes(model)
        self.trained = _training_shapes(model, call)

    def plan(self, granularity: str) -> tuple[structprune.Plan, dict[str, Any]]:
        """The plan, and what it cost: where time counts, of the second of two equal calls."""
        if self._timed:
            self._prune(granularity)
        start = time.perf_counter()
        plan = self._prune(granularity)
        seconds = time.perf_counter() - start
        left_whole = [g.reason for g in plan.groups if not g.removed and unexpected(g.reason)]
        parameters = [name for name, _ in self._model.named_parameters()]
        return plan, {
            "seconds": round(seconds, 4),
            "removed": 1 - plan.params[1] / plan.params[0],
            "macs_removed": 1 - plan.macs[1] / plan.macs[0] if plan.macs[0] else None,
            "attention_removed": _removed(plan, (n for n in parameters if _names(n, _ATTENTION))),
            "mlp_removed": _removed(plan, (n for n in parameters if _names(n, _MLP))),
            "left_whole": len(left_whole),
            "left_whole_reasons": list(dict.fromkeys(left_whole)),
            "whole_reasons": _counted(g.reason for g in plan.groups if not g.removed),
        }

    def judged(self, plan: structprune.Plan) -> dict[str, Any]:
        """Whether the pruned network runs in both modes, and its proof."""
        pruned = plan.apply(self._model)
        entry: dict[str, Any] = {}
        try:
            shapes = self._call.shapes(pruned)
            entry["runs"] = shapes == self._shapes or agree(shapes, self._call.settled_shapes(self._model))
        except Exception as error:
            entry |= {"runs": False, "run_failed": described(error)}
        try:
            proof = structprune.prove(self._model, pruned, self._call.example_inputs)
            entry |= {"proved": proof.proved, "error": _finite(proof.max_error), "power": _finite(proof.power)}
            entry["reason"] = proof.reason
        except Exception as error:
            entry |= {"proved": False, "error": None, "power": None, "reason": described(error)}
        entry["trains"] = "n/a" if self.trained is None else _training_shapes(pruned, self._call) == self.trained
        return entry

    def by_oracle(self, plans: dict[str, structprune.Plan]) -> Iterable[tuple[str, dict[str, Any]]]:
        """The oracle's verdicts. It does not know every norm, so that the proof is what counts."""
        oracle.randomise(self._model)
        for granularity, plan in plans.items():
            try:
                yield granularity, by_value(self._model, plan.apply(self._model, verify=False), self._call.double())
            except Exception as error:
                yield granularity, {"oracle": described(error)}

    def _prune(self, granularity: str) -> structprune.Plan:
        plan = structprune.plan_pruning(
            self._model,
            RATIO,
            granularity,  # type: ignore[arg-type]
            example_inputs=self._call.example_inputs,
            round_to=1,
            keep_representation=granularity == "filter",
            **self._options,
        )
        plan.apply(self._model)
        return plan


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    """Why groups lost nothing, and how many for each reason, the most frequent first."""
    return dict(Counter(reasons).most_common(6))


def unexpected(reason: str) -> bool:
    """Whether a person would have expected the channels to be prunable."""
    return reason.startswith(("cannot shrink", "is split", "must be as wide")) or " has no rule" in reason


def _training_shapes(model: nn.Module, call: Call) -> Shapes | None:
    """The shapes of the outputs in training mode, with a batch of two; None where the forward fails."""
    statistics = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    try:
        return call.pair().shapes(model)
    except Exception:
        return None
    finally:
        model.eval()
        for buffer, before in statistics:
            buffer.copy_(before)


def _removed(plan: structprune.Plan, parameters: Iterable[str]) -> float | None:
    """The share of these parameters that goes; None if there are none."""
    before = after = 0
    for name in parameters:
        shape, kept = plan.shapes[name], plan.kept.get(name, {})
        before += math.prod(shape)
        after += math.prod(len(kept[dim]) if dim in kept else size for dim, size in enumerate(shape))
    return 1 - after / before if before else None


def _names(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
