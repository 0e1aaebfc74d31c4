"""What channels are ranked by: the choice among norms, lots, functions and the criteria of torch-pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from structprune.errors import ModelError
from structprune.inputs import Invocations
from structprune.meta.replica import named_tensors
from structprune.select.error import PredictedError
from structprune.select.options import Importance, Settings
from structprune.select.scores import NO_VALUES, GroupNorms, Norms, Random, Ranking, Scored


def ranking_of(
    settings: Settings, model: nn.Module, weights: Mapping[str, torch.Tensor], examples: Callable[[], Invocations]
) -> Ranking:
    """The ranking that was asked for.

    Args:
        settings: What is asked for: a criterion by name, an object of ``torch_pruning.importance``, or a function of a
            group; batches to measure with; rules.
        model: The user's model: criteria of torch-pruning read its modules, and the gradients there.
        weights: The values of its parameters and buffers by name.
        examples: Gives the calls that the model is traced with.
    """
    importance = settings.importance
    if importance == "error":
        return PredictedError(model, examples, settings.rules, Norms(weights), settings.calibrate, settings.progress)
    if importance == "group":
        # Running statistics are no weights.
        return GroupNorms({name: weights[name] for name, _ in model.named_parameters() if name in weights})
    if isinstance(importance, str):
        return Random() if importance == "random" else Norms(weights, 1 if importance == "l1" else 2)
    from structprune.select.criteria import TorchPruning, is_of_torch_pruning

    if is_of_torch_pruning(importance):
        return TorchPruning(importance, model, Norms(weights))
    return Scored(importance)


def check_values(importance: Importance, model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse a criterion that reads the weights' values of a model that has none.

    Args:
        importance: As for ``ranking_of``.
        model: The user's model.
        weights: The values of its parameters and buffers by name; only the first of those on the meta device is read.

    Raises:
        ModelError: They are on the meta device.
    """
    parameters = {name: t for name, t in named_tensors(model).items() if isinstance(t, nn.Parameter)}
    if parameters and all(t.is_meta for t in parameters.values()) and _reads_values(importance):
        first = next(iter(parameters))
        if weights[first].is_meta:
            raise ModelError(NO_VALUES.format(first))


def _reads_values(importance: Importance) -> bool:
    """Whether scores are computed from weights; a function may compute them from anything."""
    if isinstance(importance, str):
        return importance != "random"
    from structprune.select.criteria import draws_lots, is_of_torch_pruning

    return is_of_torch_pruning(importance) and not draws_lots(importance)
