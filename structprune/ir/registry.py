"""What is known of every operator, by name, and where users add theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar
from weakref import WeakSet

from torch import nn

from structprune.compat import schema_of
from structprune.errors import OptionError, RuleError, described
from structprune.ir.operators import Operator, OperatorSpec, Rule

# Arguments that say how large something is: where they follow a cut, shapes and labels show whether they are right.
_SIZES = frozenset(("size", "normalized_shape", "split_size", "split_sizes", "repeats"))
# Arguments that change no value.
_PLACES = frozenset(("device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "implicit"))


class Registry:
    """Operators by name, and modules whose inside is left alone: what structprune knows, and what you add.

    Give it to ``prune_model``, ``plan_pruning``, ``plan_removal``, ``trace`` and ``prove`` as ``rules=``. It may grow
    at any time, also after an operator was seen without a rule.

    Args:
        specs: Operators to begin with.
        extends: Where what is not here is looked up; by default the operators that structprune knows.

    Examples:
        >>> from structprune.rules import Call, Registry
        >>> rules = Registry()
        >>> @rules.operator("mylibrary::swish")
        ... def swish(call: Call):
        ...     return call.labels(call["x"])
    """

    # The operators that structprune knows, once they are there.
    built_in: ClassVar[Registry | None] = None

    def __init__(self, specs: Iterable[OperatorSpec] = (), extends: Registry | None = None) -> None:
        if extends is not None and not isinstance(extends, Registry):
            raise RuleError(f"extends is {described(extends)}; expected a Registry.")
        if not isinstance(specs, Iterable):
            raise RuleError(f"A registry is given a list of OperatorSpecs, got {described(specs)}.")
        self._specs: dict[str, OperatorSpec] = {}
        self._opaque: tuple[type[nn.Module], ...] = ()
        self._extends = extends or Registry.built_in
        self._extended_by: WeakSet[Registry] = WeakSet()
        if self._extends is not None:
            self._extends._extended_by.add(self)
        self._known: dict[Any, Operator] = {}
        self.add(*specs)

    def __reduce__(self) -> Any:
        """Pickled by what it adds; the operators that structprune knows are there already."""
        if self is Registry.built_in:
            return _built_in, ()
        return _again, (tuple(self._specs.values()), self._opaque, self._extends)

    def add(self, *specs: OperatorSpec) -> None:
        """Add operators.

        Raises:
            RuleError: One is here already. What the registry extends may have it: the one here is taken.
        """
        new: dict[str, OperatorSpec] = {}
        for spec in specs:
            if not isinstance(spec, OperatorSpec):
                raise RuleError(f"A registry holds OperatorSpecs, got {described(spec)}.")
            if spec.name in self._specs or spec.name in new:
                raise RuleError(f"{spec.name} is in this registry already, with {rule_name(spec)}.")
            new[spec.name] = spec
        self._specs |= new
        self._look_up_again()

    def _look_up_again(self) -> None:
        self._known.clear()
        for other in self._extended_by:
            other._look_up_again()

    def operator(self, name: str, **facts: Any) -> Callable[[Rule], Rule]:
        """Add an operator with the decorated function as its rule.

        Args:
            name: As ``OperatorSpec.name``.
            **facts: Other fields of ``OperatorSpec``.
        """

        def register(rule: Rule) -> Rule:
            self.add(OperatorSpec(name, rule, **facts))
            return rule

        return register

    def opaque(self, *kinds: type[nn.Module]) -> None:
        """Leave modules of these classes alone: what goes in, their tensors and what comes out keep their sizes.

        Such a module runs as one operator, and nothing in it needs a rule.
        """
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
                raise RuleError(f"opaque takes classes of modules, got {described(kind)}.")
        self._opaque = tuple(dict.fromkeys((*self._opaque, *kinds)))

    @property
    def opaque_modules(self) -> tuple[type[nn.Module], ...]:
        """The classes of modules that are left alone."""
        return (*(self._extends.opaque_modules if self._extends else ()), *self._opaque)

    @property
    def operators(self) -> list[str]:
        """The names of the operators that it adds to those that structprune knows."""
        return [] if self is Registry.built_in else [*(self._extends.operators if self._extends else ()), *self._specs]

    @property
    def added(self) -> list[str]:
        """The names of all that it adds to what structprune knows: operators, and classes of opaque modules."""
        return [*self.operators, *(kind.__name__ for kind in self.opaque_modules)]

    def spec(self, name: str) -> OperatorSpec:
        """What is known of an operator; of one that is not here no more than its name."""
        found = self._specs.get(name) or self._specs.get(name.removesuffix("_"))
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


def _built_in() -> Registry | None:
    return Registry.built_in


def _again(specs: Iterable[OperatorSpec], opaque: tuple[type[nn.Module], ...], extends: Registry) -> Registry:
    made = Registry(specs, extends)
    made.opaque(*opaque)
    return made


def rule_name(spec: OperatorSpec) -> str:
    """A rule in a message: the function's name and module."""
    rule = spec.rule
    if rule is None:
        return "no rule"
    return f"the rule {getattr(rule, '__module__', '')}.{getattr(rule, '__qualname__', repr(rule))}"


def _operator(func: Any, registry: Registry) -> Operator:
    schema = schema_of(func)
    base = schema.name
    mutated = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    # An operator of a library's may write and be called so, and return nothing.
    returned = [r.alias_info for r in schema.returns]
    in_place = mutated and base.endswith("_") and not base.endswith("__")
    in_place = in_place and (base.startswith("aten::") or (len(returned) == 1 and returned[0] is not None))
    name = base.removesuffix("_") if in_place else base
    spec = registry.spec(name)
    names = tuple(a.name for a in schema.arguments)
    out_variant = any(a.is_out for a in schema.arguments)
    written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return Operator(
        func,
        name,
        in_place,
        out_variant,
        () if out_variant else tuple(written[1:] if in_place else written),
        names,
        {a.name: a.default_value for a in schema.arguments},
        tuple(n for n in names if n not in _SIZES | _PLACES and n not in spec.sizes),
        spec,
    )


def read_rules(rules: Any) -> Registry | None:
    """Check an option ``rules``.

    Raises:
        OptionError: It is no registry.
    """
    if rules is not None and not isinstance(rules, Registry):
        raise OptionError(f"rules is {described(rules)}; expected a structprune.rules.Registry.")
    return rules
