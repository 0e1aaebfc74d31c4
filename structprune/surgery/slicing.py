"""The only code that changes a model: slices its tensors, then the sizes that modules hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from structprune.compat import gradient_hooks
from structprune.errors import PlanError
from structprune.ir.slices import Ids
from structprune.meta.replica import Model, TensorMap, duplicate, held_tensors, is_kept_by_device, like_parameter, walk
from structprune.surgery.attributes import read_held, write_held
from structprune.surgery.cut import AttributeChange, Cut
from structprune.surgery.graphs import check_unused
from structprune.surgery.optimizer_state import cut_states
from structprune.surgery.selection import sliced

_NO_CUT: Mapping[int, Ids] = {}


def cut_values(name: str, tensor: torch.Tensor, cut: Cut) -> torch.Tensor:
    """What a tensor holds after a cut."""
    if name in cut.values:
        return cut.values[name].to(tensor, copy=True)
    values = sliced(tensor, cut.kept.get(name, _NO_CUT))
    if name in cut.scales:
        values.mul_(torch.from_numpy(cut.scales[name]).to(values))
    if name in cut.shifts:
        values.add_(torch.from_numpy(cut.shifts[name]).to(values))
    return _with_row_scales(name, values, cut)


def equal_values(name: str, tensor: torch.Tensor, cut: Cut) -> torch.Tensor:
    """What a tensor holds after a cut that only leaves channels out, and compensates nothing."""
    return _with_row_scales(name, sliced(tensor, cut.kept.get(name, _NO_CUT)), cut)


def _with_row_scales(name: str, values: torch.Tensor, cut: Cut, power: int = 1) -> torch.Tensor:
    """Rows times their scales; gradients are divided by it."""
    if name in cut.row_scales:
        row_scale = torch.from_numpy(cut.row_scales[name] ** power)
        values.mul_(row_scale.to(values).reshape(-1, *[1] * (values.ndim - 1)))
    return values


def cut_copy(model: Model, cut: Cut) -> Model:
    """A cut copy of a model; the tensors of the original are copied only as far as they stay."""

    def cut_tensor(name: str, tensor: torch.Tensor) -> torch.Tensor:
        kept = cut.kept.get(name, _NO_CUT)
        made = like_parameter(tensor, cut_values(name, tensor, cut))
        if not tensor.is_leaf:
            return made  # computed by a forward, and kept as an attribute
        if tensor.grad is not None:
            made.grad = _with_row_scales(name, sliced(tensor.grad, kept), cut, -1)
        _copy_hooks(tensor, made)
        return made

    copied = duplicate(model, cut_tensor, _cloned)
    set_attributes(copied, cut.attributes)
    return copied


def filled_copy(model: Model, attributes: Iterable[AttributeChange], value: TensorMap) -> Model:
    """A copy of a model with the sizes of a cut one, whose tensors, cut already, come from elsewhere.

    Args:
        model: The dense model; its values are not read.
        attributes: The sizes that follow the cut.
        value: Gives the new tensor for a name and the dense one.
    """

    def fill(name: str, tensor: torch.Tensor) -> torch.Tensor:
        made = like_parameter(tensor, value(name, tensor))
        if tensor.is_leaf:
            _copy_hooks(tensor, made)
        return made

    copied = duplicate(model, fill, _cloned)
    set_attributes(copied, attributes)
    return copied


def _cloned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def cut_in_place(
    model: nn.Module,
    cut: Cut,
    optimizer: torch.optim.Optimizer | None = None,
    marks: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Cut a model itself, and the state of its optimizer. The parameters stay the same objects.

    All or nothing: wherever it is interrupted, the model and the optimizer are as they were, or cut whole.

    Args:
        model: The model.
        cut: What goes, and what changes besides.
        optimizer: The optimizer that trains the model.
        marks: Attributes that the cut model gets.
    """
    tensors, modules = held_tensors(model), dict(walk(model))
    states = cut_states(optimizer, tensors, cut) if optimizer is not None else []
    check_unused(tensors[name] for name in cut.changed)
    # All that can fail for want of memory happens before the first change.
    new = {name: cut_values(name, tensors[name], cut) for name in cut.changed}
    grads = {
        name: _with_row_scales(name, sliced(grad, cut.kept.get(name, _NO_CUT)), cut, -1)
        for name in cut.changed
        if tensors[name].is_leaf and (grad := tensors[name].grad) is not None
    }
    plain = _plain_attributes(modules.values())
    tables = [table for module in modules.values() for table in vars(module).values() if is_kept_by_device(table)]
    # How to take back each change: noted before it is made.
    undo: list[Callable[[], Any]] = []
    try:
        for name, data in new.items():
            tensor = tensors[name]
            for held, attribute in plain.get(id(tensor), ()):
                undo.append(partial(held.__setitem__, attribute, tensor))
                held[attribute] = data
            if id(tensor) not in plain:
                undo.append(partial(_replace, tensor, tensor.data, tensor.grad))
                _replace(tensor, data, grads.get(name))
        for change in cut.attributes:
            module = module_at(model, modules, change.module)
            undo.append(partial(write_held, module, change.name, read_held(module, change.name)))
            _set_attribute(module, change)
        for state, key, value in states:
            undo.append(partial(state.__setitem__, key, state[key]))
            state[key] = value
        for table in tables:
            undo.append(partial(table.update, dict(table)))
            table.clear()
        for mark, said in marks.items():
            before = vars(model).get(mark)
            undo.append(partial(setattr, model, mark, before) if before else partial(vars(model).pop, mark, None))
            setattr(model, mark, said)
    except BaseException:
        for take_back in reversed(undo):
            take_back()
        raise


def _plain_attributes(modules: Iterable[nn.Module]) -> dict[int, list[tuple[dict[str, Any], str]]]:
    """Where modules hold tensors as plain attributes, by tensor: others may hold it too, so that it is not written."""
    found: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in modules:
        held = vars(module)
        for name, value in held.items():
            if type(value) is torch.Tensor:
                found.setdefault(id(value), []).append((held, name))
    return found


def set_attributes(model: nn.Module, changes: Any) -> None:
    """Give modules the sizes of the cut network; a list stays a list."""
    modules = dict(walk(model))
    for change in changes:
        _set_attribute(module_at(model, modules, change.module), change)


def module_at(model: nn.Module, modules: Mapping[str, nn.Module], path: str) -> nn.Module:
    """``get_submodule``, by what ``walk`` found: from the root down for every size would take as long as a cut.

    A shared module has a second path, which ``walk`` does not know.
    """
    module = modules.get(path)
    return model.get_submodule(path) if module is None else module


def _set_attribute(module: nn.Module, change: AttributeChange) -> None:
    is_list = isinstance(read_held(module, change.name), list)
    try:
        write_held(module, change.name, list(change.new) if is_list else change.new)
    except Exception as error:  # a module may forbid it in any way
        raise PlanError(f"{change} cannot be set: {type(error).__name__}: {error}") from error


def _replace(tensor: torch.Tensor, data: torch.Tensor, grad: torch.Tensor | None) -> None:
    tensor.grad = None
    tensor.data = data
    tensor.grad = grad


def _copy_hooks(tensor: torch.Tensor, made: torch.Tensor) -> None:
    """``deepcopy`` drops the hooks of parameters: register them again."""
    # A hook registers only while the tensor requires a gradient, and may outlive that.
    made.requires_grad_(bool(gradient_hooks(tensor)) or tensor.requires_grad)
    for hook in gradient_hooks(tensor):
        made.register_hook(hook)  # type: ignore[no-untyped-call]
    for hook in (getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values():
        made.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    made.requires_grad_(tensor.requires_grad)
