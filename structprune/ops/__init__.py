"""All that is known of operators, one file per family; ``OPERATORS`` has them by name."""

from structprune.ops import (
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
from structprune.ops.registry import Registry

__all__ = ["OPERATORS"]

_FAMILIES = (
    contraction, normalisation, elementwise, movement, pieces, reduction, spatial, indexing, writing, creation,
    recurrent, costless,
)  # fmt: skip
OPERATORS = Registry(spec for family in _FAMILIES for spec in family.SPECS)
