"""Make the config of a pruned model say its new sizes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from structprune.errors import ModelError
from structprune.hub.fields import Values, assign, changed, fields, is_config, spelled
from structprune.hub.search import Search, Sizes, build_sizes
from structprune.inputs import Invocations
from structprune.meta.forward import running
from structprune.meta.replica import duplicate
from structprune.plan.plan import Plan, plan_of
from structprune.tracing.checks import check_model
from structprune.tracing.outputs import output_tensors
from structprune.tracing.session import Session

# Both networks run the same operators on the same numbers; a scale of another size shows by far more.
_TOLERANCE, _TOLERANCE_OF_HALVES = 1e-5, 2e-2
MOST_TRIED = 8
_INSTEAD = "structprune.save and structprune.load keep a pruned model of any sizes"


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A number of a config that changes: ``field`` as code would write it, ``old`` and ``new``."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.old} -> {self.new}"


def fit_config(pruned: nn.Module, example_inputs: Any = None) -> list[ConfigChange]:
    """Make ``pruned.config`` say the new sizes, so that a model built from it takes the pruned weights.

    This is what ``save_pretrained`` and ``from_pretrained`` of the Hugging Face libraries need: the one
    writes config and weights, the other builds the model from the config. Which fields have to
    change is found by building the model on the meta device; nothing is known about architectures.
    A model built from the changed config then has to return what ``pruned`` returns, with the same
    random weights: a scale that is computed from a size would differ.

    Args:
        pruned: What ``structprune.prune_model`` made of a model with a ``config``; of it only the
            config is changed. Training it in between does no harm.
        example_inputs: As for ``structprune.prune_model``.

    Returns:
        What was changed. Nothing if the config says the sizes already.

    Raises:
        ModelError: The model has no such config, cannot be built from it alone, or the config cannot
            express the sizes; the message says which, and the model is as it was.
        PlanError: The model was not pruned by structprune.
        InputError: The inputs could not be inferred, or do not run.
    """
    check_model(pruned)
    plan = plan_of(pruned)
    if not is_config(getattr(pruned, "config", None)):
        raise ModelError(f"{type(pruned).__name__} has no config to fit (an object with to_dict). {_INSTEAD}.")
    search = Search(pruned)
    if search.gaps({}) is None:
        name = type(pruned).__name__
        raise ModelError(f"{name} cannot be built as {name}(config), or has other parameters then. {_INSTEAD}.")
    calls = [call.mapped(_random) for call in Session(pruned, example_inputs).examples]
    refused = ""
    for values in islice(search.solutions(), MOST_TRIED):
        reason = _difference(pruned, values, calls)
        if reason is None:
            return _commit(pruned, values)
        refused = refused or (
            f"A {type(pruned).__name__} built from a config with {_listed(pruned, values)} has the pruned shapes, but "
            f"{reason}. {_INSTEAD}."
        )
    raise ModelError(refused or _inexpressible(pruned, search, plan))


def _commit(pruned: Any, values: Values) -> list[ConfigChange]:
    before = dict(fields(pruned.config))
    assign(pruned.config, values)
    return [ConfigChange(spelled(field), before.get(field), value) for field, value in values.items()]


def _listed(pruned: Any, values: Values) -> str:
    before = dict(fields(pruned.config))
    return ", ".join(str(ConfigChange(spelled(f), before.get(f), v)) for f, v in values.items())


def _inexpressible(pruned: nn.Module, search: Search, plan: Plan) -> str:
    """The message for sizes that no config found has: which they are, and which layers to leave whole."""
    gaps, built = search.gaps(search.closest) or {}, search.built(search.closest)
    names = [name for name in search.wanted.shapes if any(name == other for other, _ in gaps)]
    producers = [name for group in plan.groups if group.removed for name in group.producers if name in names]
    patterns = dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name.rpartition(".")[0]) for name in producers)
    there = list(built.shapes[names[0]]) if built is not None else "another shape"
    nearest = f"it with {_listed(pruned, search.closest)}" if search.closest else "it"
    more = f" and {len(names) - 1} more differ," if names[1:] else ""
    return (
        f"The config of {type(pruned).__name__} cannot express the pruned sizes: {names[0]} is "
        f"{list(search.wanted.shapes[names[0]])}, a model built from {nearest} has {there},{more} whatever field "
        f"changes. Leave such layers whole with ignore={list(patterns)}; or cut all layers that share a number of the "
        f"config alike (one ratio, and keep_representation=False where only the last is whole). {_INSTEAD}."
    )


def _difference(pruned: Any, values: Values, calls: Invocations) -> str | None:
    """Why a model built from the changed config is not the pruned one, or ``None`` if it is."""
    kind, config = type(pruned), changed(pruned.config, values)
    sizes = build_sizes(kind, config)
    try:
        again = saved_and_read(config)
    except Exception as error:  # a config may check itself in any way
        return f"its config cannot be read again with them ({type(error).__name__}: {error})"
    if sizes is None or sizes != build_sizes(kind, again):
        return "its config changes as it is saved and read"
    for (path, name), held in Sizes.of(pruned).held.items():
        other = sizes.held.get((path, name))
        # A cut changes no such number: one that differs is computed from a size, a scale most likely.
        if isinstance(held, float) and other is not None and other != held:
            where = f"{path}.{name}" if path else name
            return f"its {where} is {other:.6g} where the pruned model has {held:.6g}"
    ours: Any = duplicate(pruned, _randomised, lambda tensor: tensor.detach().clone())
    expected = _outputs(ours, calls)
    assign(ours.config, values)
    with torch.random.fork_rng(devices=[]):
        theirs = kind(config).to(next(ours.parameters()).device)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    if not (_agree(expected, _outputs(theirs, calls)) and _agree(expected, _outputs(ours, calls))):
        return "with the same weights it returns something else (a scale or a table that is computed from a size)"
    return None


def saved_and_read(config: Any) -> Any:
    """What is left of a config that went through its own file format, where it has one."""
    if callable(getattr(config, "to_json_string", None)) and callable(getattr(config, "from_dict", None)):
        return type(config).from_dict(json.loads(config.to_json_string()))
    return config


def _randomised(_name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Weights of a size that every layer shows in the outputs; buffers as they are."""
    if not isinstance(tensor, nn.Parameter):
        return tensor.detach().clone()
    noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel()))
    values = (noise - 0.5) * (12 * tensor.shape[0] / tensor.numel()) ** 0.5 if tensor.ndim > 1 else noise + 0.5
    return nn.Parameter(values.to(tensor), requires_grad=False)


def _random(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)).to(tensor)


def _outputs(model: nn.Module, calls: Invocations) -> list[torch.Tensor]:
    with torch.no_grad(), running(model, training=False):
        return [tensor.detach() for call in calls for tensor in output_tensors(call(model)).tensors]


def _agree(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return False
    for a, b in zip(ours, theirs, strict=True):
        tolerance = _TOLERANCE if a.dtype in (torch.float32, torch.float64) else _TOLERANCE_OF_HALVES
        scale = float(a.double().abs().max()) if a.numel() else 0.0
        # Written so that a NaN is no agreement.
        if a.numel() and not float((a.double() - b.double()).abs().max()) <= tolerance * scale:
            return False
    return True
