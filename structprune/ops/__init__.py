"""All that is known of operators, one file per family; ``OPERATORS`` has them by name."""

from structprune.ir.operators import OperatorSpec
from structprune.ir.registry import Registry
from structprune.ops import (
    boundary,
    contraction,
    costless,
    creation,
    elementwise,
    indexing,
    movement,
    normalisation,
    pieces,
    recurrent,
    reduction,
    spatial,
    writing,
)

__all__ = ["OPERATORS", "is_built_in"]

_FAMILIES = (
    contraction, normalisation, elementwise, movement, pieces, reduction, spatial, indexing, writing, creation,
    recurrent, boundary, costless,
)  # fmt: skip
OPERATORS = Registry(spec for family in _FAMILIES for spec in family.SPECS)
Registry.built_in = OPERATORS


def is_built_in(spec: OperatorSpec) -> bool:
    """Whether what is known of an operator is structprune's own, not a user's."""
    return OPERATORS.spec(spec.name) == spec
