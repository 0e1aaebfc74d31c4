"""The options of a plan, checked: what the user may ask for, and the errors for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from typing_extensions import TypedDict

from structprune.compat import NormWithStatistics
from structprune.errors import OptionError, described, nearest
from structprune.ir.registry import Registry, read_rules
from structprune.measure.runner import LatencyOptions, read_setting
from structprune.select.patterns import Names, matches
from structprune.tracing.groups import DependencyGraph, Group
from structprune.tracing.session import has_values

Pattern = str | nn.Module | torch.Tensor
# The keys are patterns, of any of their kinds.
Ratio = float | Mapping[Any, float]
Criterion = Callable[[Group], Any]
CriterionOverGraph = Callable[[DependencyGraph], Sequence[Any]]
Importance = Literal["l2", "l1", "group", "error", "random"] | Criterion | CriterionOverGraph
Granularity = Literal["filter", "channel"]
TARGETS = ("macs", "params", "latency", "speedup")
_GRANULARITIES = ("filter", "channel")
IMPORTANCES = ("l2", "l1", "group", "error", "random")
_SCOPES = ("local", "isomorphic", "global")
# With one ratio for all layers together, no layer collapses.
_MOST = {"global": 0.9, "isomorphic": 0.9}
# What other libraries call it.
_ELSEWHERE = {
    **dict.fromkeys(("pruning_ratio", "ch_sparsity", "sparsity", "amount", "prune_ratio"), "ratio"),
    **dict.fromkeys(("pruning_ratio_dict", "ch_sparsity_dict"), "ratio, a dict from module or pattern to share"),
    **dict.fromkeys(("ignored_layers", "ignored_params", "ignored"), "ignore"),
    "max_pruning_ratio": "max_ratio",
    "max_ch_sparsity": "max_ratio",
    "global_pruning": 'scope="global"',
    "inputs": "example_inputs",
    "dummy_input": "example_inputs",
}
_CRITERIA = {
    "taylor": (
        ": it needs gradients. Run loss.backward() on some data, then give torch_pruning.importance.TaylorImportance()."
    ),
    "hessian": (
        ": it needs the gradients of every sample. Give an object of torch_pruning.importance.HessianImportance that "
        "has seen them."
    ),
    "lamp": ": give torch_pruning.importance.LAMPImportance().",
    "fpgm": ": give torch_pruning.importance.FPGMImportance().",
    **dict.fromkeys(("magnitude", "norm", "l2_norm", "l2norm"), ", did you mean 'l2'?"),
    **dict.fromkeys(("l1_norm", "l1norm"), ", did you mean 'l1'?"),
}


class PruningOptions(TypedDict, total=False):
    """Keyword options of ``structprune.prune_model`` and ``structprune.plan_pruning``.

    Attributes:
        macs: In place of ``ratio``: the MACs to keep, as a share of the dense network's in (0, 1), or as a number above
            1 (``1.2e9``).
        params: In place of ``ratio``: the parameters to keep, as a share or as a number (``5e6``).
        latency: In place of ``ratio``: the share in (0, 1) of the dense network's latency to keep, measured on the
            device.
        speedup: In place of ``ratio``: the factor, above 1, by which to become faster, measured on the device.
        measure: How ``latency`` and ``speedup`` are measured, see ``LatencyOptions`` (default: as ``compare``).
        importance: ``"l2"`` or ``"l1"``: rank channels by the norm of the filters that produce them; ``"group"``: by
            the norm of all that leaves with them; ``"error"``: by the predicted error of the output, without data, see
            ``docs/criteria.md``; ``"random"``: by PyTorch's random numbers; an object of ``torch_pruning.importance``;
            a function of a ``Group`` that returns a score for each of its ``channels``; or one of the whole graph, see
            ``structprune.rules.over_graph`` (default: ``"l2"`` with a ratio; ``"error"`` with a target, if the model
            has its weights, and with ``calibrate``).
        scope: ``"local"``: the ratio holds in every layer. ``"global"``: it holds for all layers together, and those
            whose channels matter less lose more: by ``"error"`` itself, by other scores beside the mean of their layer.
            ``"isomorphic"``: for all layers together that are read and written alike, such as the first convolutions of
            all blocks (default: ``"global"`` where ``"error"`` meets a target, else ``"local"``).
        max_ratio: The largest share of its channels that any layer may lose, in (0, 1], or a dict from pattern to
            share, of which a layer takes the first that matches: layers keep at least one channel in any case (default:
            0.9 where layers lose a ratio together, and others give what one at this limit cannot; else none).
        uniform: Whether layers that repeat, such as the MLPs of a transformer's blocks, keep one width, as
            a configuration needs that holds one number for all (default: False).
        compensate: ``True``: add what the removed channels gave on average to the biases and running means of the
            layers that read them, computed from batch-norm statistics, without data. ``"auto"``: if the model has its
            weights and batch norms. A list, or another iterable, of a few batches (each as ``example_inputs``; all are
            held): computed from those, in any network (default: ``"auto"`` with a target, ``False`` with a ratio).
        calibrate: A list, or another iterable, of batches (each as ``example_inputs``, all of the same shapes; all are
            held): channels are chosen by the error that is left once the weights that read them are fitted anew to
            what the dense network gives for these batches, and the weights are so fitted. Some hundred samples
            are enough; labels are not needed (default: none, no data).
        loadable: Whether a config of the model's class has to have the sizes that are left, so that ``from_pretrained``
            builds the pruned model after ``structprune.fit_config``: where the class refuses a number of heads, the
            nearest that it accepts goes, and a note says so. With a target only the note says that none does (default:
            with ``uniform``, if the model has such a config).
        round_to: Widths that are left. ``"auto"`` (default): a width that is a multiple of 8 and at least 64
            stays a multiple of 8; an int: every width becomes a multiple of it where it can; 1: off.
        ignore: Modules or parameters whose channels stay: patterns of their names, or the objects (default: none).
        keep_representation: Leave alone what the last contractions before the outputs read (default: True).
        allow_untraced: Prune although no traced forward read a parameter of a size that changes
            (default: False).
        progress: Whether ``calibrate`` shows a bar on stderr (default: where that is a terminal).
        rules: What you know of operators and modules, beside what structprune knows: a ``structprune.rules.Registry``.
    """

    macs: float
    params: float
    latency: float
    speedup: float
    measure: LatencyOptions
    importance: Importance
    scope: Literal["local", "isomorphic", "global"]
    max_ratio: float | Mapping[Any, float]
    uniform: bool
    compensate: bool | Literal["auto"] | Iterable[Any]
    calibrate: Iterable[Any]
    round_to: int | Literal["auto"]
    ignore: Pattern | Sequence[Pattern]
    keep_representation: bool
    allow_untraced: bool
    loadable: bool
    progress: bool | None
    rules: Registry


@dataclass(frozen=True)
class Target:
    """What is to be left of the dense network: ``share`` of its ``quantity``; a share above 1 is a number of them."""

    quantity: Literal["macs", "params", "latency"]
    share: float
    asked: str
    measure: LatencyOptions


@dataclass(frozen=True)
class Settings:
    """Checked options.

    Attributes:
        max_ratio: The largest share that a layer may lose, for all or by pattern; ``None``: all but its last channel.
        target: What ``ratio`` is searched for, if anything.
        finer: From the group of this index on, a smaller ratio: to come nearer to a target than one ratio
            for all can, where many layers shrink at the same ratio.
        channels: In place of a ratio the channels that go, by the weight whose layer produces them.
    """

    ratio: float | Mapping[str, float]
    granularity: str = "filter"
    importance: Importance = "l2"
    scope: str = "local"
    max_ratio: float | Mapping[str, float] | None = None
    uniform: bool = False
    round_to: int | str = "auto"
    ignore: tuple[str, ...] = ()
    keep_representation: bool = True
    allow_untraced: bool = False
    compensate: bool | tuple[Any, ...] = False
    calibrate: tuple[Any, ...] = ()
    target: Target | None = None
    finer: tuple[int, float] | None = None
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rules: Registry | None = None
    progress: bool | None = None
    loadable: bool | None = None

    def most_of(self, group: Group) -> float | None:
        """The largest share that a group may lose, that of the layer which may lose least; ``None``: no limit."""
        if not isinstance(self.max_ratio, Mapping):
            return self.max_ratio
        limits = [next((m for p, m in self.max_ratio.items() if matches(p, q.name)), None) for q in group.producers]
        return min((limit for limit in limits if limit is not None), default=_MOST.get(self.scope))

    def ratio_of(self, group: Group) -> float:
        """The share to remove of a group: that of the first pattern that matches."""
        if not isinstance(self.ratio, Mapping):
            return self.finer[1] if self.finer and group.index >= self.finer[0] else self.ratio
        names = [p.name for p in group.producers]
        return next((r for p, r in self.ratio.items() if any(matches(p, n) for n in names)), 0.0)

    def ignores(self, names: Iterable[str]) -> bool:
        """Whether any of these producers is to be left alone."""
        return any(matches(pattern, name) for name in names for pattern in self.ignore)


def read_settings(ratio: Any, granularity: Any, model: nn.Module, options: Mapping[str, Any]) -> Settings:
    """Check the options of a call.

    Args:
        ratio: A share in [0, 1), or a dict from pattern to share.
        granularity: ``"filter"`` or ``"channel"``.
        model: The model, whose modules and parameters the options name.
        options: See ``PruningOptions``.

    Raises:
        OptionError: Naming the option, its value, what was expected, and the nearest names.
    """
    known = set(PruningOptions.__annotations__)
    for name in options:
        if name not in known:
            meant = _ELSEWHERE.get(name)
            hint = f", did you mean {meant}?" if meant else nearest(name, known)
            raise OptionError(f"There is no option {name!r}{hint} The options are {', '.join(sorted(known))}.")
    names = Names(model)
    target = _read_target(ratio, options)
    calibrate = _read_batches("calibrate", options["calibrate"], "") if "calibrate" in options else ()
    compensate = options.get("compensate", "auto" if target and not calibrate else False)
    if isinstance(compensate, str) and compensate == "auto":
        norms = any(isinstance(module, NormWithStatistics) for module in model.modules())
        compensate = norms and has_values(model) and not calibrate
    if calibrate and compensate:
        raise OptionError("calibrate makes up for what is removed, as compensate does: give one of them.")
    # A ratio says what every layer loses, by magnitude, as the paper has it. A target leaves that to us: predicted
    # errors can be compared between layers. They are of runs of the network, which takes its weights.
    ours = bool(calibrate) or (target is not None and has_values(model))
    importance = _read_importance(options.get("importance", "error" if ours else "l2"))
    scope = _one_of("scope", options.get("scope", "global" if target and importance == "error" else "local"), _SCOPES)
    return Settings(
        ratio=0.5 if target else _read_ratio(ratio, names),
        granularity=_one_of("granularity", granularity, _GRANULARITIES),
        importance=importance,
        scope=scope,
        max_ratio=_read_max_ratio(options["max_ratio"], names) if "max_ratio" in options else _MOST.get(scope),
        uniform=bool(options.get("uniform", False)),
        round_to=_read_round_to(options.get("round_to", "auto")),
        ignore=tuple(names.listed("ignore", options.get("ignore", ()))),
        keep_representation=bool(options.get("keep_representation", True)),
        allow_untraced=bool(options.get("allow_untraced", False)),
        compensate=_read_compensate(compensate),
        calibrate=calibrate,
        target=target,
        rules=read_rules(options.get("rules")),
        loadable=None if options.get("loadable") is None else bool(options["loadable"]),
        progress=None if options.get("progress") is None else bool(options["progress"]),
    )


def _read_target(ratio: Any, options: Mapping[str, Any]) -> Target | None:
    """The target that is given in place of a ratio."""
    given = [name for name in TARGETS if options.get(name) is not None]
    if len(given) + (ratio is not None) != 1:
        said = ([("ratio", ratio)] if ratio is not None else []) + [(name, options[name]) for name in given]
        what = ", ".join(f"{name}={described(value)}" for name, value in said)
        raise OptionError(
            f"Give one of ratio, {', '.join(TARGETS)}: how much to remove, or what is to be left. Got {what or 'none'}."
        )
    if "measure" in options and given not in (["latency"], ["speedup"]):
        raise OptionError("measure says how latency=... and speedup=... are measured; neither is given.")
    if not given:
        return None
    (name,) = given
    value = options[name]
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (0 < number < 1 if name == "latency" else 1 < number < math.inf or (name != "speedup" and 0 < number < 1)):
        raise OptionError(f"{name} is {described(value)}; expected {_EXPECTED[name]}.")
    share = 1 / float(value) if name == "speedup" else float(value)
    quantity = "latency" if name == "speedup" else name
    measure = options.get("measure", {})
    if quantity == "latency":
        read_setting(measure)  # planning takes a while
    return Target(quantity, share, f"{name}={value}", measure)  # type: ignore[arg-type]


_LEFT = "a share in (0, 1) of the dense network's, which is to be left"
_EXPECTED = {
    "macs": f"{_LEFT}, or a number of MACs, such as 1.2e9",
    "params": f"{_LEFT}, or a number of parameters, such as 5e6",
    "latency": f"{_LEFT} (speedup=2 is latency=0.5)",
    "speedup": "a factor above 1: 1.5 is half again as fast",
}

# They can be gone through, but not batch by batch.
_NO_BATCHES = (str, bytes, torch.Tensor, np.ndarray, nn.Module, Mapping)


def _read_compensate(compensate: Any) -> bool | tuple[Any, ...]:
    if isinstance(compensate, bool):
        return compensate
    return _read_batches("compensate", compensate, "True (from batch-norm statistics), False, 'auto', or ")


def _read_batches(option: str, given: Any, otherwise: str) -> tuple[Any, ...]:
    said = repr(type(given).__name__)
    if isinstance(given, Iterable) and not isinstance(given, _NO_BATCHES):
        batches = tuple(given)
        if batches:
            return batches
        said = f"an empty {type(given).__name__}"
    raise OptionError(
        f"{option} is {said}; expected {otherwise}batches in a list or another iterable, each as example_inputs."
    )


def _read_importance(importance: Any) -> Importance:
    if isinstance(importance, type):
        raise OptionError(f"importance is the class {importance.__name__}; expected an object of it: call it.")
    if callable(importance) or (isinstance(importance, str) and importance in IMPORTANCES):
        checked: Importance = importance
        return checked
    name = importance.lower() if isinstance(importance, str) else ""
    hint = _CRITERIA.get(name) or (nearest(name, IMPORTANCES) if name else ".")
    raise OptionError(
        f"importance is {described(importance)}{hint} Expected {', '.join(map(repr, IMPORTANCES))}, an object of "
        "torch_pruning.importance, or a function of a group that returns a score for each of its channels."
    )


def _read_ratio(ratio: Any, names: Names) -> float | dict[str, float]:
    given = ratio.values() if isinstance(ratio, Mapping) else ratio if isinstance(ratio, (tuple, list)) else [ratio]
    if any(isinstance(value, torch.Tensor) and value.ndim for value in given):
        raise OptionError(
            f"ratio is {described(ratio)}: the share of channels to remove is the second argument, and inputs are "
            "given by name: prune_model(model, 0.5, example_inputs=x)."
        )
    if isinstance(ratio, Mapping):
        if not ratio:
            raise OptionError("ratio is an empty dict: give a share for at least one module pattern.")
        shares: dict[str, float] = {}
        for key, share in ratio.items():
            for pattern in names.patterns("ratio", key):
                shares.setdefault(pattern, _share(share, f" for {pattern!r}"))
        return shares
    return _share(ratio, "")


def _share(ratio: Any, where: str) -> float:
    if isinstance(ratio, bool) or not isinstance(ratio, Real):
        raise OptionError(
            f"ratio{where} is {described(ratio)}; expected a number in [0, 1), the share of channels to remove."
        )
    value = float(ratio)
    if math.isnan(value) or not 0 <= value < 1:
        raise OptionError(f"ratio{where} is {value}; expected a share in [0, 1): 0.5 removes half of the channels.")
    return value


def _read_max_ratio(most: Any, names: Names) -> float | dict[str, float]:
    if not isinstance(most, Mapping):
        return _limit(most, "", "any layer")
    if not most:
        raise OptionError("max_ratio is an empty dict: give a share for at least one module pattern.")
    limits: dict[str, float] = {}
    for key, share in most.items():
        for pattern in names.patterns("max_ratio", key):
            limits.setdefault(pattern, _limit(share, f" for {pattern!r}", "these layers"))
    return limits


def _limit(most: Any, where: str, what: str) -> float:
    if isinstance(most, bool) or not isinstance(most, Real) or not 0 < float(most) <= 1:
        raise OptionError(
            f"max_ratio{where} is {described(most)}; expected a share in (0, 1], the most that {what} may lose."
        )
    return float(most)


def _read_round_to(round_to: Any) -> int | str:
    if isinstance(round_to, str) and round_to == "auto":
        return "auto"
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise OptionError(
            f"round_to is {described(round_to)}; expected 'auto' or an integer of at least 1 (1: no rounding)."
        )
    return round_to


def _one_of(option: str, value: Any, allowed: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        hint = nearest(value, allowed) if isinstance(value, str) else "."
        if isinstance(value, torch.Tensor):
            hint = ": inputs are given by name, as example_inputs=..."
        raise OptionError(f"{option} is {described(value)}{hint} Expected {' or '.join(map(repr, allowed))}.")
    return str(value)
