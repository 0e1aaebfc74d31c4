"""The sizes that modules hold: those of torch.nn's own layers follow by a table, others are found and named here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from structprune.compat import Convolution, NormWithStatistics
from structprune.ir.record import SizeHeld, Stretch, Tie
from structprune.ir.slices import Mask
from structprune.meta.replica import walk
from structprune.surgery.cut import AttributeChange, Cut
from structprune.tracing.groups import DependencyGraph
from structprune.tracing.layers import StoredNames

# Objects within objects are looked into this far: a config in a config.
_DEEPEST = 3
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Smaller numbers equal a width by chance: kernels, strides, counts of blocks.
_WIDE = 8
_HELD: dict[type[nn.Module], frozenset[str]] = {
    Convolution: frozenset(("in_channels", "out_channels", "groups")),
    nn.Linear: frozenset(("in_features", "out_features")),
    NormWithStatistics: frozenset(("num_features",)),
    nn.LayerNorm: frozenset(("normalized_shape",)),
    nn.RMSNorm: frozenset(("normalized_shape",)),
    nn.GroupNorm: frozenset(("num_groups", "num_channels")),
    nn.PReLU: frozenset(("num_parameters",)),
    nn.Embedding: frozenset(("embedding_dim",)),
}


def layer_changes(model: nn.Module, graph: DependencyGraph, present: Mask) -> tuple[AttributeChange, ...]:
    """The attributes of torch.nn's layers that the cut changes.

    The rules say which sizes each operator was given (``Call.size``); the layer that ran the
    operator holds them.
    """
    modules = dict(walk(model))
    changes: dict[tuple[str, str], AttributeChange] = {}
    for record in graph.records:
        for node in record.nodes:
            names = _held_by(type(modules[node.module])) if node.sizes else ()
            for size in node.sizes:
                if size.name in names:
                    held = getattr(modules[node.module], size.name)
                    known = changes.get((node.module, size.name))
                    new = _followed(held, known.new if known else held, size, present)
                    if new is not None and new != held:
                        changes[node.module, size.name] = AttributeChange(node.module, size.name, held, new)
    stored = StoredNames(model)
    for path, module in modules.items():
        for name, (tensor, dim, slices) in _sizes_by_axes(module).items():
            axes = graph.space.by_tensor.get(stored.of(module, path, tensor) or "")
            old = read_held(module, name)
            if axes is None or axes[dim].size != old * slices:
                continue  # computed in a way of its own: the trial says whether it can shrink
            new = int(present[axes[dim].ids].sum()) // slices
            if new != old:
                changes[path, name] = AttributeChange(path, name, old, new)
    return tuple(changes.values())


def _sizes_by_axes(module: nn.Module) -> dict[str, tuple[str, int, int]]:
    """Sizes that no operator is given by name: the parameter's dimension that each counts, and its slices a piece."""
    if isinstance(module, nn.MultiheadAttention):
        packed = module.in_proj_weight is not None
        query, key, value = ["in_proj_weight"] * 3 if packed else [f"{name}_proj_weight" for name in "qkv"]
        return {
            "embed_dim": (query, 1, 1),
            "kdim": (key, 1, 1),
            "vdim": (value, 1, 1),
            "num_heads": (query, 0, module.head_dim * (3 if packed else 1)),
            "out_proj.in_features": ("out_proj.weight", 1, 1),
            "out_proj.out_features": ("out_proj.weight", 0, 1),
        }
    if isinstance(module, nn.RNNBase):
        sizes = {"input_size": ("weight_ih_l0", 1, 1), "hidden_size": ("weight_hh_l0", 1, 1)}
        if module.proj_size:
            sizes |= {"hidden_size": ("weight_hr_l0", 1, 1), "proj_size": ("weight_hr_l0", 0, 1)}
        return sizes
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": ("weight_ih", 1, 1), "hidden_size": ("weight_hh", 1, 1)}
    if isinstance(module, nn.Transformer):
        return {"d_model": ("decoder.layers.0.self_attn.in_proj_weight", 1, 1)}
    return {}


def layer_ties(model: nn.Module) -> tuple[Tie, ...]:
    """Widths that torch.nn's own layers take for equal: attention reshapes to the width of its query."""
    ties = []
    for path, module in walk(model):
        if isinstance(module, nn.MultiheadAttention):
            name = "in_proj_weight" if module.in_proj_weight is not None else "q_proj_weight"
            tensor, width = f"{path}.{name}" if path else name, module.embed_dim
            ties.append(Tie(Stretch(tensor, 0, width), Stretch(tensor, 1, width)))
    return tuple(ties)


def _held_by(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset().union(*(names for base, names in _HELD.items() if issubclass(kind, base)))


def _followed(held: Any, so_far: Any, size: SizeHeld, present: Mask) -> Any:
    """The new value of an attribute, or ``None`` if it does not count these slices."""
    if size.entry is not None:
        entries = list(so_far)
        entries[size.entry] = int(present[size.ids].sum())
        return tuple(entries)
    if held == len(size.ids):
        return int(present[size.ids].sum())
    if isinstance(held, int) and held and len(size.ids) % held == 0:
        # Instance norm hands (1, batch * channels) on: the channels come once per sample.
        return int(present[size.ids[:held]].sum())
    return None


@dataclass(frozen=True, slots=True)
class HeldSize:
    """An integer that a module holds: an attribute, an entry of one, or one of an object that it holds.

    ``name`` is written as code would: ``num_heads``, ``config.hidden_size``; the keys of a dict like attributes.
    """

    module: str
    name: str
    entry: int | None
    value: int


def held_sizes(model: nn.Module) -> list[HeldSize]:
    """The integers above one that a model's own modules hold; torch.nn's layers have the table above.

    An object that several modules share (a config) is found once, at the first of them.
    """
    found: list[HeldSize] = []
    seen: set[int] = set()
    for path, module in walk(model):
        # Other layers of torch.nn have the table above, and a kernel size equals a width by chance; this one hands its
        # shape to no operator.
        if not type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.RMSNorm):
            _sizes_in(path, "", vars(module), found, seen, 0)
    return found


def stale_sizes(model: nn.Module, cut: Cut, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Sizes that modules hold, that the cut leaves alone, and that equal a width which it changes right there.

    No operator that was traced is given them; other code may read them. One line a class and attribute.
    """
    changed = {(c.module, c.name) for c in cut.attributes}
    widths: dict[str, dict[int, int]] = {}
    for tensor, dims in cut.kept.items():
        module = tensor.rpartition(".")[0]
        for around in {module, module.rpartition(".")[0]}:
            widths.setdefault(around, {}).update({shapes[tensor][d]: len(kept) for d, kept in dims.items()})
    classes = {path: type(module).__name__ for path, module in walk(model)}
    found: dict[tuple[str, str, int, int], list[str]] = {}
    for size in held_sizes(model):
        left = widths.get(size.module, {}).get(size.value)
        if left is not None and size.value >= _WIDE and (size.module, size.name) not in changed:
            found.setdefault((classes[size.module], size.name, size.value, left), []).append(size.module)
    return [
        f"{kind}.{name} stays {value} beside widths that become {left} ({modules[0] or 'the model'}"
        + (f" and {len(modules) - 1} more" if len(modules) > 1 else "")
        + "): no operator that was traced is given it"
        for (kind, name, value, left), modules in found.items()
    ]


def _sizes_in(path: str, prefix: str, names: dict[str, Any], found: list[HeldSize], seen: set[int], depth: int) -> None:
    for key, value in names.items():
        name = f"{prefix}.{key}" if prefix else key
        if not isinstance(key, str) or key in _OF_EVERY_MODULE or not key.isidentifier():
            continue
        if _is_size(value):
            found.append(HeldSize(path, name, None, value))
        elif type(value) in (list, tuple) and all(type(v) is int or _is_size(v) for v in value):
            found += [HeldSize(path, name, i, v) for i, v in enumerate(value) if _is_size(v)]
        elif depth < _DEEPEST and id(value) not in seen:
            inside = _attributes_of(value)
            if inside:
                seen.add(id(value))
                _sizes_in(path, name, inside, found, seen, depth + 1)


def _attributes_of(value: Any) -> dict[str, Any]:
    """What a plain object or a dict holds; nothing for what is code, a tensor or a module, or cannot be changed."""
    if type(value) is dict:
        return value
    if isinstance(value, (nn.Module, torch.Tensor, type, ModuleType, Mapping)) or callable(value):
        return {}
    if getattr(getattr(value, "__dataclass_params__", None), "frozen", False):
        return {}
    held = getattr(value, "__dict__", None)
    return held if type(held) is dict else {}


def replace_size(model: nn.Module, size: HeldSize, value: int) -> None:
    """Put another integer in the place of one that was found."""
    module = model.get_submodule(size.module)
    new: Any = value
    if size.entry is not None:
        old = read_held(module, size.name)
        new = type(old)(value if i == size.entry else v for i, v in enumerate(old))
    write_held(module, size.name, new)


def read_held(module: Any, name: str) -> Any:
    """The value of an attribute, or of one of an object or dict that the module holds.

    Raises:
        AttributeError: There is none.
    """
    value: Any = module
    for step in name.split("."):
        try:
            value = value[step] if type(value) is dict else getattr(value, step)
        except KeyError:
            raise AttributeError(f"{type(module).__name__} holds no {name!r}") from None
    return value


def holds_size(module: nn.Module, name: str) -> bool:
    """Whether an attribute that is there is an integer or a row of them, in the module or in plain data of its own.

    A plan may come from anywhere: it must not reach flags, nor the insides of tensors, functions or classes.
    """
    value: Any = module
    for depth, step in enumerate(name.split(".")):
        # A layer's own layer holds sizes too: the output projection of attention.
        own = vars(value) if isinstance(value, nn.Module) else _attributes_of(value)
        if depth and step not in own:
            return False
        value = read_held(value, step)
    entries = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(entry, int) and not isinstance(entry, bool) for entry in entries)


def write_held(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute, or one of an object or dict that the module holds."""
    outer, _, last = name.rpartition(".")
    owner = read_held(module, outer) if outer else module
    if type(owner) is dict:
        owner[last] = value
    elif isinstance(owner, nn.Module):
        setattr(owner, last, value)
    else:
        # Past a setter that would check or derive: the object holds the size under this name.
        vars(owner)[last] = value
    if _is_made_of_its_state(module):
        _make_again(module)


def _is_made_of_its_state(module: nn.Module) -> bool:
    """Whether a module without tensors says itself what it is made of, and makes the rest of that (einops' layers)."""
    ours = all(getattr(type(module), n, None) is not getattr(nn.Module, n, None) for n in _STATE)
    return ours and not (module._parameters or module._buffers or module._modules)


_STATE = ("__getstate__", "__setstate__")


def _make_again(module: nn.Module) -> None:
    """Compute what a module derives from its sizes anew, its hooks and its mode aside."""
    fresh = object.__new__(type(module))
    fresh.__setstate__(module.__getstate__())  # type: ignore[no-untyped-call]
    vars(module).update({name: value for name, value in vars(fresh).items() if name not in _OF_EVERY_MODULE})


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and type(value) is not bool and value > 1
