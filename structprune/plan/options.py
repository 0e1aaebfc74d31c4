"""The options of a plan, checked: what the user may ask for, and the errors for the rest."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from typing_extensions import TypedDict

from structprune.errors import OptionError, nearest

Ratio = float | Mapping[str, float]
Granularity = Literal["filter", "channel"]
_GRANULARITIES = ("filter", "channel")
_IMPORTANCES = ("l2",)
_SCOPES = ("local",)


class PruningOptions(TypedDict, total=False):
    """Keyword options of ``structprune.prune_model`` and ``structprune.plan_pruning``.

    Attributes:
        importance: ``"l2"`` (default): rank channels by the L2 norm of the filters that produce them.
        scope: ``"local"`` (default): the ratio holds in every layer.
        round_to: Widths that are left. ``"auto"`` (default): a width that is a multiple of 8 and at least 64
            stays a multiple of 8; an int: every width becomes a multiple of it where it can; 1: off.
        ignore: Patterns of modules or parameters whose channels stay (default: none).
        keep_representation: Leave alone what the last contractions before the outputs read (default: True).
        allow_untraced: Prune although no traced forward read a parameter of a size that changes
            (default: False).
    """

    importance: Literal["l2"]
    scope: Literal["local"]
    round_to: int | Literal["auto"]
    ignore: Sequence[str]
    keep_representation: bool
    allow_untraced: bool


@dataclass(frozen=True)
class Settings:
    """Checked options."""

    ratio: Ratio
    granularity: str = "filter"
    importance: str = "l2"
    scope: str = "local"
    round_to: int | str = "auto"
    ignore: tuple[str, ...] = ()
    keep_representation: bool = True
    allow_untraced: bool = False

    def ratio_of(self, names: Iterable[str]) -> float:
        """The share to remove of a group with these producers: that of the first pattern that matches."""
        if not isinstance(self.ratio, Mapping):
            return self.ratio
        names = list(names)
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
    importance = options.get("importance", "l2")
    ignore = options.get("ignore", ())
    return Settings(
        _read_ratio(ratio, tensors),
        _one_of("granularity", granularity, _GRANULARITIES),
        _one_of("importance", importance, _IMPORTANCES),
        _one_of("scope", options.get("scope", "local"), _SCOPES),
        _read_round_to(options.get("round_to", "auto")),
        tuple(_read_pattern("ignore", p, tensors) for p in ((ignore,) if isinstance(ignore, str) else ignore)),
        bool(options.get("keep_representation", True)),
        bool(options.get("allow_untraced", False)),
    )


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a parameter, its module or a module around it (``*`` and ``?`` as in shells)."""
    if fnmatch.fnmatchcase(name, pattern):
        return True
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts)))


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
