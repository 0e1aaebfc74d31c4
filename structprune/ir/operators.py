"""All that is known of an operator, in one value, beside its schema."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeAlias

import torch

from structprune.errors import RuleError, described
from structprune.ir.slices import Labels
from structprune.ir.tensors import tensors_among, tensors_of

Result: TypeAlias = Labels | list[Labels]
# Called with a ``structprune.rules.Call``.
Rule: TypeAlias = Callable[[Any], Result]
Formula: TypeAlias = Callable[[Sequence[Any], dict[str, Any], Any], int]
Shape: TypeAlias = Callable[[Sequence[Any], dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Surrogate:
    """What stands in for an operator that mixes channels, where a cut network is compared with the masked dense one.

    Attributes:
        fill: What masked entries are set to before.
        function: Called with the operator's arguments by name; returns its first output. ``None``: the operator itself.
        also: For an operator with a second statistic: returns that one.
    """

    fill: float = 0.0
    function: Callable[[dict[str, Any]], Any] | None = None
    also: Callable[[dict[str, Any]], Any] | None = None


@dataclass(frozen=True, slots=True)
class OperatorSpec:
    """All that structprune knows of an operator.

    Attributes:
        name: Without overload and trailing underscore: ``"mylibrary::swish"``; of ATen if it names no namespace.
        rule: How labels cross it: a function of a ``Call`` that returns the labels of the output, or a list of them for
            every output and then for every argument that it writes into. ``None``: what reaches it stays, and it is
            listed as unknown.
        asks: Whether the rule asks ``Call.choose``.
        sizes: Arguments that say how large something is, beside those that are so in every operator: they follow a cut.
        flops: FLOPs of a call, two for a multiply and add: a function of its arguments by position (a tuple), of those
            by name (a dict) and of what it returned. ``None``: by PyTorch's own table, where it has the operator.
        surrogate: Stands in for an operator that mixes channels in proofs; without one there is no proof.
        in_double: The same in float64, for an operator whose kernels have none.
        on_meta: What it returns on the meta device, where PyTorch computes shapes slowly; ``None`` where it declines.
        on_meta_in_place: The same for the variant that writes into its first operand.
        by_numbers: What it returns on the meta device where numbers among its operands say the shape.
        parts: The same made of operators that have rules, for a fused kernel.
        scaling: How scales of rows cross it, see ``structprune.ops.scaling``; ``None``: not at all.
        weight: The argument whose rows its outputs have.
        rows: How it is a matrix product, for a contraction with a weight, see ``structprune.ops.rows``.
        same_as: Another operator that does the same: which of them runs depends on strides.
        moves: Whether it only moves entries: all of them, or some.
        values: For one that makes tensors of sizes: whether they are integers by default, or of the kind of the numbers
            that it was given, or what the memory held before.
        keeps_values: Whether it changes no value: whether it runs at all depends on strides.
        reads_values: Whether values become a Python number, or say how many entries there are.
        has_steps: Whether it is a function with steps, where the last digit may decide.
        normalises: Whether it takes the mean of every channel off, and divides by its deviation.
        placed: Whether it is given positions that no shape shows.
    """

    name: str
    rule: Rule | None = None
    _: KW_ONLY
    asks: bool = False
    sizes: tuple[str, ...] = ()
    flops: Formula | None = None
    surrogate: Surrogate | None = None
    in_double: Callable[..., Any] | None = None
    on_meta: Shape | None = None
    on_meta_in_place: Shape | None = None
    by_numbers: Callable[..., Any] | None = None
    parts: Callable[..., Any] | None = None
    scaling: Callable[[Any], Sequence[torch.Tensor | None]] | None = None
    weight: str = ""
    rows: Any = None
    same_as: str = ""
    moves: Literal["all", "some"] | None = None
    values: Literal["floats", "integers", "as given", "none"] | None = None
    keeps_values: bool = False
    reads_values: bool = False
    has_steps: bool = False
    normalises: bool = False
    placed: bool = False

    def __post_init__(self) -> None:
        """Complete the names."""
        if not isinstance(self.name, str) or "." in self.name:
            raise RuleError(
                f"An operator is named as 'mylibrary::swish': by its namespace, without overload. Got {self.name!r}."
            )
        if self.surrogate is not None and not isinstance(self.surrogate, Surrogate):
            raise RuleError(f"The surrogate of {self.name} is {described(self.surrogate)}; expected a Surrogate.")
        object.__setattr__(self, "name", _full(self.name))
        object.__setattr__(self, "same_as", _full(self.same_as or self.name))


def _full(name: str) -> str:
    return name if "::" in name else f"aten::{name}"


@dataclass(frozen=True, slots=True)
class Operator:
    """An overload's schema, read once, and what is known of the operator.

    Attributes:
        func: The overload.
        name: Its base name: ``aten::add`` for ``add_`` too.
        in_place: Whether it writes into its first operand.
        out_variant: Whether it writes its results into tensors that it is given.
        writes: Other arguments that it writes into.
        parameters: The names of its arguments.
        defaults: Their defaults.
        unchanging: The arguments that must not change with a cut: numbers, words, flags, dimensions.
        spec: What is known of it.
    """

    func: Any
    name: str
    in_place: bool
    out_variant: bool
    writes: tuple[str, ...]
    parameters: tuple[str, ...]
    defaults: dict[str, Any]
    unchanging: tuple[str, ...]
    spec: OperatorSpec

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run it as it is."""
        return self.func(*args, **kwargs)

    def arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, defaults left out."""
        return {**dict(zip(self.parameters, args, strict=False)), **kwargs}

    def results(self, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> list[torch.Tensor]:
        """The tensors that a call gives: what it returned, then the arguments that it wrote into."""
        if not self.writes:
            return tensors_of(out)
        given = self.arguments(args, kwargs)
        return [*tensors_of(out), *tensors_among(given.get(name) for name in self.writes)]


def nothing(args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """The FLOPs of what contracts nothing: by the field's convention it costs nothing."""
    return 0


def each(names: str, rule: Rule | None = None, **facts: Any) -> list[OperatorSpec]:
    """Operators of which the same is known."""
    return [OperatorSpec(name, rule, **facts) for name in names.split()]


def free(names: str, rule: Rule | None = None, **facts: Any) -> list[OperatorSpec]:
    """Operators of which the same is known, and that contract nothing."""
    return each(names, rule, flops=nothing, **facts)
