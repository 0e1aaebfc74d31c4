"""Counts the work of a network on the meta device: nothing is computed and no weight is copied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from structprune.compat import tree_leaves
from structprune.errors import InputError, ModelError, brief
from structprune.inputs import Invocations, infer_inputs, read_inputs
from structprune.ir.registry import Registry, read_rules
from structprune.measure.counting import CountingMode, Tally, counting_modules
from structprune.measure.quantities import scaled
from structprune.meta.caches import undisturbed
from structprune.meta.costs import nbytes
from structprune.meta.forward import not_inferred, running, way_on
from structprune.meta.given import check_module
from structprune.meta.replica import device_of, meta_replica, to_meta
from structprune.meta.surroundings import ordinary_tensors
from structprune.meta.watch import Watch


@dataclass(frozen=True)
class ModuleCost:
    """What one module costs, the modules inside it included.

    Attributes:
        name: Its path in the model, ``""`` for the model itself.
        kind: Its class name.
        macs: Multiply-accumulates of its contractions.
        params: Parameters; one that is shared counts where it is named first.
        activation_bytes: Bytes that its operators write to new memory.
        moved_bytes: Bytes that its operators read and write, weights included, if every operand comes from memory.
        children: The modules inside, in the order of their registration.
    """

    name: str
    kind: str
    macs: int
    params: int
    activation_bytes: int
    moved_bytes: int
    children: tuple[ModuleCost, ...] = ()

    def __repr__(self) -> str:
        parts = f", {len(self.children)} inside" if self.children else ""
        return f"<ModuleCost {self.name or self.kind}: {scaled(self.macs)} MACs, {self.params:,} parameters{parts}>"

    def walk(self) -> Iterator[ModuleCost]:
        """This module and all modules inside, depth first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class FlopCount:
    """The work of one call of a model with its example inputs, the batch included.

    Attributes:
        macs: Multiply-accumulates of the contractions: convolutions, matrix products, attention.
            Everything else counts 0, by the field's convention. Half of ``flops``.
        flops: Two for each multiply-accumulate. With ``training``, forward and backward.
        params: Parameters, a shared one once.
        param_bytes: Bytes of the parameters in their own dtypes.
        activation_bytes: Bytes that the operators write to new memory, views excluded.
        peak_activation_bytes: The most of it that is alive at one time, the inputs included.
        by_module: The same as a tree.
        by_operator: MACs by operator name, the largest first.
        uncounted: Operators without a formula that are not known to be free, with the number of calls.
        training: Whether the backward is counted too.
        inputs: What the model was called with, as text.
    """

    macs: int
    flops: int
    params: int
    param_bytes: int
    activation_bytes: int
    peak_activation_bytes: int
    by_module: ModuleCost
    by_operator: dict[str, int]
    uncounted: dict[str, int]
    training: bool
    inputs: str

    def __repr__(self) -> str:
        return (
            f"<FlopCount of {self.by_module.kind}: {scaled(self.macs)} MACs, {self.params:,} parameters, {self.inputs}>"
        )

    def __str__(self) -> str:
        what = "a training step (forward and backward)" if self.training else "a forward"
        lines = [
            f"{self.by_module.kind}, {what} with {self.inputs}",
            f"  parameters {self.params:,} ({scaled(self.param_bytes, 'B')})",
            f"  MACs {scaled(self.macs)}, FLOPs {scaled(self.flops)} (two for each MAC)",
            f"  activations written {scaled(self.activation_bytes, 'B')}, "
            f"at most {scaled(self.peak_activation_bytes, 'B')} at one time",
        ]
        if self.macs:
            for module in filter(lambda part: part.macs, self.by_module.children):
                share = module.macs / self.macs
                lines.append(f"  {module.name:<24} {scaled(module.macs):>9} MACs {share:6.1%}")
        if self.uncounted:
            named = ", ".join(f"{name} ({n} times)" for name, n in self.uncounted.items())
            lines.append(f"  not counted: {named}")
        return "\n".join(lines)


@ordinary_tensors()
def count_flops(
    model: nn.Module, example_inputs: Any = None, *, training: bool = False, rules: Registry | None = None
) -> FlopCount:
    """Count the multiply-accumulates, parameters and activations of a model.

    The model runs on the meta device: nothing is computed, no weight is copied, and the model is
    not touched. Operators are counted where they arrive at ATen, so functional calls, ``@``,
    ``einsum`` and subclassed layers count like ``nn.Linear`` and ``nn.Conv2d``. The formulas are those
    of ``torch.utils.flop_counter``, with faults mended: attention never takes its fast path (which it
    does not see), and the backward of a grouped convolution costs two forwards.

    Args:
        model: Any module.
        example_inputs: A tensor, a tuple of arguments, a dict of keyword arguments, a list of such
            calls (their counts add up), or a callable ``model -> output``. Inferred if not given.
        training: Count a forward in training mode and the backward of it. Frozen parameters need no
            gradient, the first layer computes none for its input.
        rules: What you know of operators, as for ``prune_model``: their ``flops`` are counted.

    Returns:
        The counts, for the whole batch of the example inputs.

    Raises:
        InputError: The model does not run with the inputs, or none could be inferred.
        ModelError: The model cannot be copied, or its parameters are not made yet.

    Examples:
        >>> import structprune
        >>> structprune.count_flops(structprune.demo.resnet50()).macs
        4089184256
    """
    return counted(model, example_inputs, training=training, rules=read_rules(rules))[0]


def counted(
    model: nn.Module, example_inputs: Any = None, *, training: bool = False, rules: Registry | None = None
) -> tuple[FlopCount, Invocations]:
    """Count a model, and return the calls that were counted too: they may have been inferred."""
    check_module(model)
    _check_initialised(model)
    given = example_inputs is not None
    refused: list[str] = []
    for calls in [read_inputs(example_inputs)] if given else infer_inputs(model):
        try:
            # Called under inference mode there would be no backward to count.
            with torch.inference_mode(False):
                return _count(model, calls, training, rules), calls
        except (ModelError, InputError):
            raise
        except Exception as error:
            refused.append(f"{', '.join(map(str, calls))}: {brief(error)}")
            if given:
                raise InputError(
                    f"{type(model).__name__} does not run with the example inputs {refused[-1]}. {way_on(error, calls)}"
                ) from error
    raise InputError(not_inferred(model, refused))


def _check_initialised(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise ModelError(f"{name} is not initialised: run one forward, so that lazy modules take their shapes.")


def _count(model: nn.Module, calls: Invocations, training: bool, rules: Registry | None) -> FlopCount:
    # A forward may change what a model holds: every count gets its own copy.
    replica = meta_replica(model)
    mode = CountingMode(replica, rules)
    on_meta = [call.mapped(to_meta) for call in calls]
    with (
        running(replica, training),
        undisturbed(replica),
        counting_modules(replica, mode.stack, training),
        torch.set_grad_enabled(training),
        Watch(lambda: mode.ran, device_of(model), mode.refuse),
        mode,
    ):
        for call in on_meta:
            mode.hold([leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, torch.Tensor)])
            out = call(replica)
            if training:
                _backward(out, replica)
    return _summed(replica, mode, training, ", ".join(map(str, calls)))


def _backward(out: Any, replica: nn.Module) -> None:
    """The backward of a loss that reads every floating-point output."""
    ends = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad]
    if ends:
        torch.autograd.backward(ends, [torch.ones_like(t) for t in ends])
    elif isinstance(replica, torch.jit.ScriptModule) or any(p.requires_grad for p in replica.parameters()):
        raise InputError(
            f"The backward of {type(replica).__name__} cannot be counted: no tensor among its outputs depends on its "
            "parameters. Give the Python module, and example_inputs as a callable that returns the tensors."
        )


def _summed(replica: nn.Module, mode: CountingMode, training: bool, inputs: str) -> FlopCount:
    seen: set[int] = set()

    def cost(path: str, module: nn.Module) -> ModuleCost:
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        params = sum(p.numel() for p in own)
        children = []
        for name, child in module.named_children():
            child_path = f"{path}.{name}" if path else name
            children.append(cost(child_path, child))
        tally = mode.tallies.get(path, Tally())
        return ModuleCost(
            path,
            type(module).__name__,
            tally.flops // 2 + sum(c.macs for c in children),
            params + sum(c.params for c in children),
            tally.written + sum(c.activation_bytes for c in children),
            tally.moved + sum(c.moved_bytes for c in children),
            tuple(children),
        )

    tree = cost("", replica)
    flops = sum(mode.by_operator.values())
    return FlopCount(
        macs=flops // 2,
        flops=flops,
        params=tree.params,
        param_bytes=sum(nbytes(p) for p in replica.parameters()),
        activation_bytes=tree.activation_bytes,
        peak_activation_bytes=mode.alive.peak,
        by_module=tree,
        by_operator={name: n // 2 for name, n in mode.by_operator.most_common()},
        uncounted=dict(mode.uncounted.most_common()),
        training=training,
        inputs=inputs,
    )
