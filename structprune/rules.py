"""What you know of operators and modules: rules for custom operators, surrogates, modules to be left alone, criteria.

``docs/rules.md`` shows each of them.
"""

from structprune.errors import RuleError
from structprune.ir.operators import OperatorSpec, Surrogate
from structprune.ir.registry import Registry
from structprune.ir.slices import Ids, Labels
from structprune.ops.call import Call
from structprune.select.scores import over_graph

__all__ = ["Call", "Ids", "Labels", "OperatorSpec", "Registry", "RuleError", "Surrogate", "over_graph"]
