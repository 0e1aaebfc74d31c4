"""The registry: what is known of every operator, and where users add theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

from structprune.compat import schema_of
from structprune.ir.operators import Operator, OperatorSpec, Rule

# Arguments that say how large something is: where they follow a cut, shapes and labels show whether they are right.
_SIZES = frozenset(("size", "normalized_shape", "split_size", "split_sizes", "repeats"))
# Arguments that change no value.
_PLACES = frozenset(("device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "implicit"))


class Registry:
    """Operators by name. What one does not know is looked up in the one that it extends."""

    def __init__(self, specs: Iterable[OperatorSpec] = (), extends: Registry | None = None) -> None:
        self._specs: dict[str, OperatorSpec] = {}
        self._extends = extends
        self._extended_by: WeakSet[Registry] = WeakSet()
        if extends is not None:
            extends._extended_by.add(self)
        self._known: dict[Any, Operator] = {}
        self.add(*specs)

    def add(self, *specs: OperatorSpec) -> None:
        """Add operators.

        Raises:
            ValueError: One is here already.
        """
        for spec in specs:
            if spec.name in self._specs:
                raise ValueError(f"{spec.name} is in this registry already.")
            self._specs[spec.name] = spec
        self._known.clear()
        for other in self._extended_by:
            other.add()

    def operator(self, name: str, **facts: Any) -> Callable[[Rule], Rule]:
        """Add an operator with the decorated function as its rule; ``facts`` are fields of ``OperatorSpec``."""

        def register(rule: Rule) -> Rule:
            self.add(OperatorSpec(name, rule, **facts))
            return rule

        return register

    def spec(self, name: str) -> OperatorSpec:
        """What is known of an operator; of one that is not here no more than its name."""
        found = self._specs.get(name)
        if found is None:
            found = self._extends.spec(name) if self._extends else OperatorSpec(name)
        return found

    def specs(self) -> dict[str, OperatorSpec]:
        """All operators by name."""
        return {**(self._extends.specs() if self._extends else {}), **self._specs}

    def of(self, func: Any) -> Operator:
        """An overload's schema and what is known of the operator."""
        known = self._known.get(func)
        if known is None:
            known = self._known[func] = _operator(func, self)
        return known


def _operator(func: Any, registry: Registry) -> Operator:
    schema = schema_of(func)
    base = schema.name
    mutated = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    in_place = mutated and base.endswith("_") and not base.endswith("__")
    name = base.removesuffix("_") if in_place else base
    spec = registry.spec(name)
    names = tuple(a.name for a in schema.arguments)
    return Operator(
        func,
        name,
        in_place,
        any(a.is_out for a in schema.arguments),
        names,
        {a.name: a.default_value for a in schema.arguments},
        tuple(n for n in names if n not in _SIZES | _PLACES and n not in spec.sizes),
        spec,
    )
