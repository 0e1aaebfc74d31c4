"""The options of a plan, checked: what the user may ask for, and the errors for the rest."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import TypedDict

from structprune.errors import OptionError, described, nearest
from structprune.graph.groups import Group
from structprune.measure.runner import LatencyOptions

Ratio = float | Mapping[str, float]
Criterion = Callable[[Group], Any]
Importance = Literal["l2", "l1", "random"] | Criterion
Granularity = Literal["filter", "channel"]
TARGETS = ("macs", "params", "latency", "speedup")
_GRANULARITIES = ("filter", "channel")
IMPORTANCES = ("l2", "l1", "random")
_SCOPES = ("local", "global")
# With one ratio for all layers together, no layer collapses.
_MOST = {"global": 0.9}


class PruningOptions(TypedDict, total=False):
    """Keyword options of ``structprune.prune_model`` and ``structprune.plan_pruning``.

    Attributes:
        macs: In place of ``ratio``: the share of the dense network's MACs to keep, in (0, 1).
        params: In place of ``ratio``: the share of its parameters to keep.
        latency: In place of ``ratio``: the share of its latency to keep, measured on the device.
        speedup: In place of ``ratio``: how many times as fast to become, above 1, measured on the device.
        measure: How ``latency`` and ``speedup`` are measured, see ``LatencyOptions`` (default: as ``compare``).
        importance: ``"l2"`` (default) or ``"l1"``: rank channels by the norm of the filters that produce
            them; ``"random"``: by PyTorch's random numbers; an object of ``torch_pruning.importance``; or a
            function of a ``Group`` that returns a score for each of its ``channels``.
        scope: ``"local"`` (default): the ratio holds in every layer. ``"global"``: it holds for all layers
            together, and those whose channels matter less, beside the mean of their layer, lose more.
        max_ratio: The largest share of its channels that any layer may lose, in (0, 1]: layers keep at least one
            channel in any case (default: 0.9 with ``scope="global"``, where others give what a layer at this limit
            cannot; else none).
        uniform: Whether layers that repeat, such as the MLPs of a transformer's blocks, keep one width, as
            a configuration needs that holds one number for all (default: False).
        compensate: ``True``: add what the removed channels gave on average to the biases and running means of the
            layers that read them, computed from batch-norm statistics, without data. A list, or another
            iterable, of a few batches (each as ``example_inputs``; all are held): computed from those, in any network
            (default: False).
        round_to: Widths that are left. ``"auto"`` (default): a width that is a multiple of 8 and at least 64
            stays a multiple of 8; an int: every width becomes a multiple of it where it can; 1: off.
        ignore: Patterns of modules or parameters whose channels stay (default: none).
        keep_representation: Leave alone what the last contractions before the outputs read (default: True).
        allow_untraced: Prune although no traced forward read a parameter of a size that changes
            (default: False).
    """

    macs: float
    params: float
    latency: float
    speedup: float
    measure: LatencyOptions
    importance: Importance
    scope: Literal["local", "global"]
    max_ratio: float
    uniform: bool
    compensate: bool | Iterable[Any]
    round_to: int | Literal["auto"]
    ignore: Sequence[str]
    keep_representation: bool
    allow_untraced: bool


@dataclass(frozen=True)
class Target:
    """What is to be left of the dense network: ``share`` of its ``quantity``."""

    quantity: Literal["macs", "params", "latency"]
    share: float
    asked: str
    measure: LatencyOptions


@dataclass(frozen=True)
class Settings:
    """Checked options.

    Attributes:
        max_ratio: The largest share that a layer may lose; ``None``: nothing but its last channel is kept from it.
        target: What ``ratio`` is searched for, if anything.
        finer: From the group of this index on, a smaller ratio: to come nearer to a target than one ratio
            for all can, where many layers shrink at the same ratio.
    """

    ratio: Ratio
    granularity: str = "filter"
    importance: Importance = "l2"
    scope: str = "local"
    max_ratio: float | None = None
    uniform: bool = False
    round_to: int | str = "auto"
    ignore: tuple[str, ...] = ()
    keep_representation: bool = True
    allow_untraced: bool = False
    compensate: bool | tuple[Any, ...] = False
    target: Target | None = None
    finer: tuple[int, float] | None = None

    @property
    def most(self) -> float:
        """The largest share that a layer may lose, as a number."""
        return 1.0 if self.max_ratio is None else self.max_ratio

    def ratio_of(self, group: Group) -> float:
        """The share to remove of a group: that of the first pattern that matches."""
        if not isinstance(self.ratio, Mapping):
            return self.finer[1] if self.finer and group.index >= self.finer[0] else self.ratio
        names = [p.name for p in group.producers]
        return next((r for p, r in self.ratio.items() if any(matches(p, n) for n in names)), 0.0)

    def ignores(self, names: Iterable[str]) -> bool:
        """Whether any of these producers is to be left alone."""
        return any(matches(pattern, name) for name in names for pattern in self.ignore)


def read_settings(ratio: Any, granularity: Any, tensors: Sequence[str], options: Mapping[str, Any]) -> Settings:
    """Check the options of a call.

    Args:
        ratio: A share in [0, 1), or a dict from pattern to share.
        granularity: ``"filter"`` or ``"channel"``.
        tensors: The model's parameter and buffer names, which patterns must match.
        options: See ``PruningOptions``.

    Raises:
        OptionError: Naming the option, its value, what was expected, and the nearest names.
    """
    known = set(PruningOptions.__annotations__)
    for name in options:
        if name not in known:
            raise OptionError(
                f"There is no option {name!r}{nearest(name, known)} The options are {', '.join(sorted(known))}."
            )
    ignore = options.get("ignore", ())
    scope = _one_of("scope", options.get("scope", "local"), _SCOPES)
    target = _read_target(ratio, options)
    return Settings(
        ratio=0.5 if target else _read_ratio(ratio, tensors),
        granularity=_one_of("granularity", granularity, _GRANULARITIES),
        importance=_read_importance(options.get("importance", "l2")),
        scope=scope,
        max_ratio=_read_max_ratio(options["max_ratio"]) if "max_ratio" in options else _MOST.get(scope),
        uniform=bool(options.get("uniform", False)),
        round_to=_read_round_to(options.get("round_to", "auto")),
        ignore=tuple(_read_pattern("ignore", p, tensors) for p in ((ignore,) if isinstance(ignore, str) else ignore)),
        keep_representation=bool(options.get("keep_representation", True)),
        allow_untraced=bool(options.get("allow_untraced", False)),
        compensate=_read_compensate(options.get("compensate", False)),
        target=target,
    )


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a parameter, its module or a module around it (``*`` and ``?`` as in shells)."""
    if fnmatch.fnmatchcase(name, pattern):
        return True
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts)))


def _read_target(ratio: Any, options: Mapping[str, Any]) -> Target | None:
    """The target that is given in place of a ratio."""
    given = [name for name in TARGETS if options.get(name) is not None]
    if len(given) + (ratio is not None) != 1:
        what = ", ".join(([f"ratio={ratio!r}"] if ratio is not None else []) + [f"{n}={options[n]!r}" for n in given])
        raise OptionError(
            f"Give one of ratio, {', '.join(TARGETS)}: how much to remove, or what is to be left. Got {what or 'none'}."
        )
    if "measure" in options and given not in (["latency"], ["speedup"]):
        raise OptionError("measure says how latency=... and speedup=... are measured; neither is given.")
    if not given:
        return None
    (name,) = given
    value = options[name]
    above = 1.0 if name == "speedup" else 0.0
    if isinstance(value, bool) or not isinstance(value, Real) or not above < float(value) < (math.inf if above else 1):
        expected = (
            "a number above 1: 1.5 is half again as fast"
            if name == "speedup"
            else "a share in (0, 1) of the dense network's, which is to be left"
        )
        raise OptionError(f"{name} is {value!r}; expected {expected}.")
    share = 1 / float(value) if name == "speedup" else float(value)
    quantity = "latency" if name == "speedup" else name
    return Target(quantity, share, f"{name}={value}", options.get("measure", {}))  # type: ignore[arg-type]


# They can be gone through, but not batch by batch.
_NO_BATCHES = (str, bytes, torch.Tensor, np.ndarray, torch.nn.Module, Mapping)


def _read_compensate(compensate: Any) -> bool | tuple[Any, ...]:
    if isinstance(compensate, bool):
        return compensate
    said = repr(type(compensate).__name__)
    if isinstance(compensate, Iterable) and not isinstance(compensate, _NO_BATCHES):
        batches = tuple(compensate)
        if batches:
            return batches
        said = f"an empty {type(compensate).__name__}"
    raise OptionError(
        f"compensate is {said}; expected True (from batch-norm statistics), or batches in a list or another iterable, "
        "each as example_inputs."
    )


def _read_importance(importance: Any) -> Importance:
    if isinstance(importance, type):
        raise OptionError(f"importance is the class {importance.__name__}; expected an object of it: call it.")
    if callable(importance) or (isinstance(importance, str) and importance in IMPORTANCES):
        checked: Importance = importance
        return checked
    hint = nearest(importance, IMPORTANCES) if isinstance(importance, str) else "."
    raise OptionError(
        f"importance is {importance!r}{hint} Expected {', '.join(map(repr, IMPORTANCES))}, an object of "
        "torch_pruning.importance, or a function of a group that returns a score for each of its channels."
    )


def _read_ratio(ratio: Any, tensors: Sequence[str]) -> Ratio:
    if isinstance(ratio, Mapping):
        if not ratio:
            raise OptionError("ratio is an empty dict: give a share for at least one module pattern.")
        return {_read_pattern("ratio", p, tensors): _share(r, f" for {p!r}") for p, r in ratio.items()}
    return _share(ratio, "")


def _share(ratio: Any, where: str) -> float:
    if isinstance(ratio, bool) or not isinstance(ratio, Real):
        raise OptionError(f"ratio{where} is {ratio!r}; expected a number in [0, 1), the share of channels to remove.")
    value = float(ratio)
    if math.isnan(value) or not 0 <= value < 1:
        raise OptionError(f"ratio{where} is {value}; expected a share in [0, 1): 0.5 removes half of the channels.")
    return value


def _read_max_ratio(most: Any) -> float:
    if isinstance(most, bool) or not isinstance(most, Real) or not 0 < float(most) <= 1:
        raise OptionError(
            f"max_ratio is {described(most)}; expected a share in (0, 1], the most that any layer may lose."
        )
    return float(most)


def _read_round_to(round_to: Any) -> int | str:
    if round_to == "auto":
        return "auto"
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise OptionError(f"round_to is {round_to!r}; expected 'auto' or an integer of at least 1 (1: no rounding).")
    return round_to


def _one_of(option: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        hint = nearest(value, allowed) if isinstance(value, str) else "."
        raise OptionError(f"{option} is {value!r}{hint} Expected {' or '.join(map(repr, allowed))}.")
    return str(value)


def _read_pattern(option: str, pattern: Any, tensors: Sequence[str]) -> str:
    if not isinstance(pattern, str):
        raise OptionError(f"{option} holds {pattern!r}; expected patterns of module or parameter names as strings.")
    if not any(matches(pattern, name) for name in tensors):
        parts = [name.split(".") for name in tensors]
        modules = {".".join(p[:i]) for p in parts for i in range(1, len(p) + 1)}
        raise OptionError(f"{option}={pattern!r} matches no module and no parameter{nearest(pattern, modules)}")
    return pattern
