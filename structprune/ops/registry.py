"""The registry of rules: how labels cross each ATen operator, and which slices it couples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from structprune.compat import schema_of
from structprune.ir.schema import Signature, signature
from structprune.ir.slices import Labels

if TYPE_CHECKING:
    from structprune.ops.call import Call

Result: TypeAlias = Labels | list[Labels]
Rule: TypeAlias = "Callable[[Call], Result]"

# Arguments that say how large something is: where they follow a cut, shapes and labels show whether they are right.
_SIZES = frozenset(("size", "normalized_shape", "split_size", "split_sizes", "repeats"))
_SIZES_OF = {
    "aten::convolution": ("groups",),
    "aten::_convolution": ("groups",),
    "aten::native_group_norm": ("N", "C", "HxW", "group"),
    "aten::roll": ("shifts",),
    "aten::slice": ("start", "end"),
    "aten::slice_copy": ("start", "end"),
    "aten::as_strided": ("stride",),
    "aten::empty_strided": ("stride",),
    "aten::new_empty_strided": ("stride",),
    "aten::_reshape_alias": ("stride",),
    "aten::repeat_interleave": ("output_size",),
}
# Arguments that change no value.
_PLACES = frozenset(("device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "implicit"))
_RULES: dict[str, Rule] = {}
_AMBIGUOUS: set[str] = set()
_KNOWN: dict[Any, Operator] = {}


@dataclass(frozen=True)
class Operator(Signature):
    """What the tracer needs of an operator's schema, read once per overload.

    ``settings`` are the arguments that must not change with a cut: numbers, words, flags, dimensions.
    """

    parameters: tuple[str, ...]
    defaults: dict[str, Any]
    settings: tuple[str, ...]
    rule: Rule | None
    ambiguous: bool


def rule(*names: str, ambiguous: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operators, named without namespace, overload and trailing underscore.

    A rule is a pure function ``call -> labels``: it tells the call what is coupled, contracted,
    mixed or frozen, and returns the labels of the output (a list of them for several outputs).
    The contract, tested for every operator: for any channels that the rule lets go,
    ``op(slice(x)) == slice(op(x))``; where it mixes, with the statistics of what is kept.
    One that asks ``Call.choose`` is ``ambiguous``.

    Raises:
        ValueError: An operator has a rule already.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            full = name if "::" in name else f"aten::{name}"
            if full in _RULES:
                raise ValueError(f"{full} has a rule already: {_RULES[full].__name__}")
            _RULES[full] = function
            if ambiguous:
                _AMBIGUOUS.add(full)
        return function

    return register


def registered() -> dict[str, Rule]:
    """All rules by operator name."""
    return dict(_RULES)


def operator(func: Any) -> Operator:
    """Look an overload up: its base name, its parameters and its rule (``None`` if there is none)."""
    known = _KNOWN.get(func)
    if known is None:
        arguments, plain = schema_of(func).arguments, signature(func)
        known = _KNOWN[func] = Operator(
            func,
            plain.name,
            plain.in_place,
            plain.out_variant,
            tuple(a.name for a in arguments),
            {a.name: a.default_value for a in arguments},
            tuple(
                a.name
                for a in arguments
                if a.name not in _SIZES | _PLACES and a.name not in _SIZES_OF.get(plain.name, ())
            ),
            _RULES.get(plain.name),
            plain.name in _AMBIGUOUS,
        )
    return known
