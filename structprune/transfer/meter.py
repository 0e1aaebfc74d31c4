"""The FLOPs that training really spends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from structprune.compat import TorchDispatchMode, tree_leaves
from structprune.inputs import read_inputs
from structprune.ir.tensors import tensors_of
from structprune.measure.flops import count_flops

# FLOPs for an element that an operator of an optimizer writes, where it is not one.
_PER_ELEMENT = {"addcmul": 3, "addcdiv": 3, "lerp": 3, "fused_sgd": 6, "fused_adam": 15, "fused_adamw": 15}
# What moves numbers without computing with them.
_FREE = ("copy", "zero", "fill", "clone", "detach", "empty", "zeros", "ones", "lift", "local_scalar", "view", "to_copy")
# From the second step on an optimizer has its state, and every step costs the same.
_MEASURED_UPDATES = 2

_COUNTERS = ("training_flops", "evaluation_flops", "update_flops", "steps", "updates")

Key = tuple[Any, ...]


class ComputeMeter:
    """Counts the FLOPs of a training run: forward, backward and the optimizer's update; evaluation apart.

    Forward and backward are those of ``structprune.count_flops(..., training=True)``: two for each
    multiply-accumulate; a frozen parameter costs no weight gradient, the first layer no gradient of
    its input. The update is counted as its operators run: one for each element that is written, two where a
    factor comes in, three for a fused multiply-add. What was counted once for inputs of some shapes is known.

    Args:
        model: The model that is trained. It is not changed.

    Attributes:
        training_flops: Spent on training steps so far, updates included.
        evaluation_flops: Spent on evaluation so far.
        update_flops: What the last update of the optimizer cost.
        steps: Training steps so far.
        updates: Updates of the optimizer so far.

    Examples:
        >>> import structprune, torch
        >>> from structprune.transfer import ComputeMeter
        >>> model = torch.nn.Linear(100, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> meter = ComputeMeter(model)
        >>> x = torch.randn(32, 100)
        >>> model(x).sum().backward()
        >>> meter.update(optimizer.step)
        >>> meter.step(x)
        >>> meter.training_flops == 2 * (2 * 32 * 100 * 10) + 2 * (100 * 10 + 10)
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[Key, int] = {}
        self.updates = 0
        self.training_flops = 0
        self.evaluation_flops = 0
        self.update_flops = 0
        self.steps = 0

    def step_flops(self, inputs: Any) -> int:
        """Forward and backward of one training step, without the update.

        Args:
            inputs: As ``example_inputs`` of ``structprune.prune_model``; only shapes matter.
        """
        return self._count(inputs, training=True)

    def step(self, inputs: Any) -> None:
        """Add a training step that was made with these inputs, and the last update."""
        self.training_flops += self.step_flops(inputs) + self.update_flops
        self.steps += 1

    def evaluate(self, inputs: Any) -> None:
        """Add a forward that was made to evaluate."""
        self.evaluation_flops += self._count(inputs, training=False)

    def update(self, function: Callable[[], Any]) -> Any:
        """Run the optimizer's step, ``optimizer.step``, and note what it costs.

        Returns:
            What it returns.
        """
        self.updates += 1
        if self.updates > _MEASURED_UPDATES:
            return function()
        with _Counting() as counting:
            result = function()
        self.update_flops = counting.flops
        return result

    def state_dict(self) -> dict[str, int]:
        """What was counted so far."""
        return {name: getattr(self, name) for name in _COUNTERS}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from what ``state_dict`` gave."""
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _count(self, inputs: Any, *, training: bool) -> int:
        leaves = [leaf for call in read_inputs(inputs) for leaf in tree_leaves((call.args, call.kwargs))]
        shapes = tuple((tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else repr(x) for x in leaves)
        trained = tuple(p.requires_grad for p in self._model.parameters()) if training else ()
        key = (training, shapes, trained)
        if key not in self._known:
            self._known[key] = count_flops(self._model, inputs, training=training).flops
        return self._known[key]


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up elementwise FLOPs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        namespace, _, name = func.name().partition("::")
        name = name.partition(".")[0].strip("_").removeprefix("foreach_")
        if namespace == "aten" and not func.is_view and not name.startswith(_FREE):
            scaled = name in ("add", "sub") and kwargs.get("alpha", 1) not in (1, 1.0)
            # An operator on lists writes the first of them, and may return nothing.
            written = tensors_of(out) or tensors_of(args[0])
            elements = sum(t.numel() for t in written if t.is_floating_point())
            self.flops += elements * (2 if scaled else _PER_ELEMENT.get(name, 1))
        return out
