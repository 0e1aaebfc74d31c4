"""The rules, one file per operator family; importing this package registers all of them."""

from structprune.ops import (
    contraction,
    creation,
    elementwise,
    indexing,
    movement,
    normalisation,
    pieces,
    reduction,
    spatial,
    writing,
)

__all__ = [
    "contraction",
    "creation",
    "elementwise",
    "indexing",
    "movement",
    "normalisation",
    "pieces",
    "reduction",
    "spatial",
    "writing",
]
