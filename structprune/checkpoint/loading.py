"""``structprune.load``: the pruned model out of a file and a freshly built dense one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from structprune.checkpoint.contents import (
    EXTRA_STATE,
    KEYS,
    LAYOUTS,
    PLAN,
    laid_out,
    raw_bytes,
    read_json,
    read_layouts,
    unpacked_plan,
)
from structprune.checkpoint.names import Names, check_shapes, own_states, same_kind
from structprune.checkpoint.reading import TensorFiles
from structprune.errors import CheckpointError, PlanError
from structprune.meta.replica import Model, is_kept_by_device, walk
from structprune.meta.surroundings import ordinary_tensors
from structprune.plan.plan import CARRIED, Plan
from structprune.surgery.selection import sliced
from structprune.surgery.slicing import filled_copy
from structprune.tracing.checks import check_model


@ordinary_tensors()
def load(path: str | os.PathLike[str], model: Model) -> Model:
    """Read a pruned model from a file of ``structprune.save`` or a folder of ``structprune.prune_checkpoint``.

    Nothing in the file is run, and nothing is unpickled. Its contents are held against the digest
    that structprune wrote.

    Args:
        path: A ``.safetensors`` file, a ``.safetensors.index.json``, or a folder with one of them.
        model: The dense model, freshly built: on any device, the meta device too. It is not changed,
            and its weights are not read.

    Returns:
        The pruned model, with the saved values and dtypes, on the devices of ``model`` (from the meta
        device: on the CPU), in its training mode and with its ``requires_grad``.

    Raises:
        CheckpointError: A file is missing, damaged, or does not fit the model.
        PlanError: The plan in it cannot be read, or is for another architecture.

    Examples:
        >>> import torch, structprune
        >>> with torch.device("meta"):
        ...     dense = structprune.demo.resnet50()
        >>> small = structprune.load("small.safetensors", dense)  # doctest: +SKIP
    """
    check_model(model)
    files = TensorFiles(path)
    try:
        plan = _read_plan(files)
        plan.check_fits(model)
        pruned = _filled(files, plan, model)
    except (CheckpointError, PlanError) as error:
        if str(error).startswith(str(files.path)):
            raise
        raise type(error)(f"{files.path}: {error}") from error
    if plan.kept:
        setattr(pruned, CARRIED, plan.to_json())
    return pruned


def _read_plan(files: TensorFiles) -> Plan:
    newer = {key for texts in files.metadata.values() for key in texts if key.startswith("structprune.")} - {*KEYS}
    if newer:
        raise CheckpointError(f"the metadata have {sorted(newer)[0]!r:.100}, unknown to this release of structprune.")
    texts = {metadata.get(PLAN) for metadata in files.metadata.values()}
    text = texts.pop()
    if texts:
        raise CheckpointError("its shards have different plans: they are not of one checkpoint.")
    if text is None:
        raise CheckpointError(
            "there is no plan in it, so it is no pruned model that structprune.save wrote. Plain weights of the dense "
            f"model: model.load_state_dict(safetensors.torch.load_file({str(files.path)!r})). Those of a pruned one: "
            f"give them to Plan.apply(model).load_state_dict, or put Plan.to_json() into the metadata under {PLAN!r}."
        )
    return unpacked_plan(text)


def _filled(files: TensorFiles, plan: Plan, model: Model) -> Model:
    """Everything is checked by its header before the first value is read."""
    names, states = Names(model), own_states(model)
    handed = {f"{path}._extra_state" if path else "_extra_state": path for path in states}
    meant = names.match((n for n in files if n not in handed), "what it holds")
    source = _sources(meant)
    _check_headers(files, plan, meant, names, plan.free_buffers(model))
    _check_values_known(model, names, source)
    orders, plain = _beside(files)
    _check_states(states.keys(), plain, {handed[n] for n in files if n in handed})
    cut = plan.cut

    def value(name: str, dense: torch.Tensor) -> torch.Tensor:
        if name not in source:
            return sliced(dense, cut.kept.get(name, {}))
        tensor = laid_out(files[source[name]], orders.get(source[name]))
        return tensor if dense.is_meta else tensor.to(dense.device)

    pruned = filled_copy(model, plan.attributes, value)
    _check_ties(files, meant, source)
    given = {path: files[name] for name, path in handed.items() if name in files}
    files.verify()
    _hand_over(pruned, {**plain, **given})
    return pruned


def _beside(files: TensorFiles) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Orders of dimensions by tensor, and extra state by module, from the metadata of all files."""
    ranks = {name: len(entry.shape) for name, entry in files.entries.items()}
    orders: dict[str, list[int]] = {}
    states: dict[str, Any] = {}
    for metadata in files.metadata.values():
        orders |= read_layouts(metadata.get(LAYOUTS, "{}"), ranks)
        states |= read_json(metadata.get(EXTRA_STATE, "{}"), EXTRA_STATE)
    return orders, states


def _sources(meant: Mapping[str, str]) -> dict[str, str]:
    """The name to read every tensor from: its first, or another one of the same tensor."""
    source: dict[str, str] = {}
    for stored, first in meant.items():
        source[first] = first if stored == first else source.get(first, stored)
    return source


def _check_headers(files: TensorFiles, plan: Plan, meant: Mapping[str, str], names: Names, free: set[str]) -> None:
    checked = {stored: first for stored, first in meant.items() if first not in free}
    expected = {stored: plan.shape_left(first) for stored, first in checked.items()}
    check_shapes(expected, {n: files.entries[n].shape for n in meant}, "what it holds is not what its plan leaves")
    for stored, first in checked.items():
        dtype, dense = files.entries[stored].dtype, names.tensors[first].dtype
        if not same_kind(dtype, dense):
            raise CheckpointError(f"{stored} is of {dtype}, the model's is of {dense}.")


def _check_values_known(model: nn.Module, names: Names, source: Mapping[str, str]) -> None:
    """What no file holds must have values in the model."""
    empty = [name for name in names.non_persistent - source.keys() if names.tensors[name].is_meta]
    loose = [
        f"{path}.{name}" if path else name
        for path, module in walk(model)
        for name, held in vars(module).items()
        if name not in ("_parameters", "_buffers", "_modules") and _holds_meta(held)
    ]
    for found, why in ((empty, "is no part of a state_dict and not in it"), (loose, "is neither parameter nor buffer")):
        if found:
            raise CheckpointError(
                f"{sorted(found)[0]} {why}, and in the model it is on the meta device: build the model on the CPU, "
                "so that its constructor computes the values."
            )


def _holds_meta(held: Any) -> bool:
    if isinstance(held, torch.Tensor):
        return held.is_meta and not isinstance(held, nn.Parameter)
    if is_kept_by_device(held):
        return False
    entries = held.values() if isinstance(held, dict) else held if isinstance(held, (list, tuple)) else ()
    return any(isinstance(entry, torch.Tensor) and _holds_meta(entry) for entry in entries)


def _check_ties(files: TensorFiles, meant: Mapping[str, str], source: Mapping[str, str]) -> None:
    for stored, first in meant.items():
        if stored != source[first] and raw_bytes(files[stored]) != raw_bytes(files[source[first]]):
            raise CheckpointError(
                f"{stored} and {source[first]} are one tensor in the model, and differ in what it holds."
            )


def _check_states(wanted: Any, plain: Mapping[str, Any], given: set[str]) -> None:
    for path in sorted(wanted ^ (plain.keys() | given)):
        what = "has extra state, which is not in it" if path in wanted else "has no extra state, but it holds some"
        raise CheckpointError(f"{path!r:.200} of the model {what}.")


def _hand_over(pruned: nn.Module, states: Mapping[str, Any]) -> None:
    for path, state in states.items():
        try:
            pruned.get_submodule(path).set_extra_state(state)
        except Exception as error:  # the module's own code
            raise CheckpointError(f"{path or 'the model'} refuses the extra state of the file: {error}") from error
