"""``structprune.prune_checkpoint``: files in, smaller files out, one tensor at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from structprune.checkpoint.contents import KEYS, PLAN, packed_plan
from structprune.checkpoint.names import Names, check_shapes, own_states, same_kind
from structprune.checkpoint.reading import TensorFiles
from structprune.checkpoint.writing import Entry, in_place_of, write_tensors
from structprune.errors import CheckpointError, OptionError
from structprune.meta.replica import held_tensors
from structprune.plan.plan import Plan
from structprune.planning import make_plan
from structprune.select.options import Granularity, PruningOptions, Ratio, read_settings
from structprune.surgery.slicing import cut_values
from structprune.tracing.checks import check_model


def prune_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    model: nn.Module,
    ratio: Ratio | None = None,
    granularity: Granularity = "filter",
    *,
    example_inputs: Any = None,
    **options: Unpack[PruningOptions],
) -> Plan:
    """Prune weights from file to file, without the memory that the model would take.

    At no time more than one tensor of the checkpoint is in memory, and what is cut out of it.

    Args:
        source: A ``.safetensors.index.json`` as the hub has them, a folder that holds one, or a single
            ``.safetensors`` file.
        target: A folder that is new or empty. It gets files of the same names, each with the plan in its
            metadata; ``structprune.load`` reads it. Other files of the source are not copied.
        model: The architecture; on the meta device is enough. It is not changed.
        ratio: As for ``structprune.prune_model``; so are the rest.
        granularity: ``"filter"`` or ``"channel"``.
        example_inputs: What the model takes.
        **options: See ``PruningOptions``.

    Returns:
        The plan: what ``structprune.plan_pruning`` would have made of the model with these weights.

    Raises:
        CheckpointError: A file is missing, damaged, or does not fit the model; the target is as it was.
        StructPruneError: Another subclass says what else was wrong.

    Examples:
        >>> import torch, structprune
        >>> with torch.device("meta"):
        ...     dense = structprune.demo.resnet50()
        >>> plan = structprune.prune_checkpoint("dense/", "pruned/", dense, 0.5)  # doctest: +SKIP
    """
    check_model(model)
    folder = Path(target)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder} is there: give a folder that is new or empty.")
    files, names = TensorFiles(source), Names(model)
    states = {f"{path}._extra_state" if path else "_extra_state" for path in own_states(model)}
    meant = names.match((name for name in files if name not in states), files.path)
    _check_dense(files, meant, names)
    # What runs the network, to predict errors or to make up for means, has not these weights: they are in the files.
    running = [name for name in ("compensate", "calibrate") if options.get(name)]
    running += ["importance='error'"] if options.get("importance") == "error" else []
    if running:
        raise OptionError(
            f"{' and '.join(running)}: the network would have to run with the weights of the files, and those are read "
            "one at a time. Load the model, and use prune_model."
        )
    settings = read_settings(ratio, granularity, model, {"importance": "l2", "compensate": False, **options})
    plan = make_plan(model, _Weights(files, meant, held_tensors(model)), settings, example_inputs)
    with in_place_of(folder) as partial:
        partial.mkdir()
        _write(files, meant, plan, partial)
    return plan


class _Weights(Mapping[str, torch.Tensor]):
    """The values of a model's tensors, out of the files; what no file holds, from the model."""

    def __init__(self, files: TensorFiles, meant: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> None:
        self._files = files
        self._stored = {first: stored for stored, first in meant.items()}
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[self._stored[name]] if name in self._stored else self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _check_dense(files: TensorFiles, meant: Mapping[str, str], names: Names) -> None:
    if any(PLAN in metadata for metadata in files.metadata.values()):
        raise CheckpointError(
            f"{files.path} was pruned already. Prune the dense checkpoint further, or load this one and "
            "prune the model."
        )
    expected = {stored: tuple(names.tensors[first].shape) for stored, first in meant.items()}
    check_shapes(expected, {n: files.entries[n].shape for n in meant}, f"{files.path} is not of this architecture")
    for stored, first in meant.items():
        dtype, dense = files.entries[stored].dtype, names.tensors[first].dtype
        if not same_kind(dtype, dense):
            raise CheckpointError(f"{files.path}: {stored} is of {dtype}, the model's is of {dense}.")


def _write(files: TensorFiles, meant: Mapping[str, str], plan: Plan, folder: Path) -> None:
    """Every file again, its tensors cut, then the index."""
    cut, entries = plan.cut, dict(files.entries)
    changed = set(cut.changed)
    for stored, first in meant.items():
        entries[stored] = Entry(entries[stored].dtype, plan.shape_left(first))
    sizes = {file: sum(entries[n].nbytes for n, f in files.file_of.items() if f == file) for file in files.metadata}
    text = packed_plan(plan.to_json(), min(sizes.values()))

    def value(name: str) -> torch.Tensor:
        own = meant.get(name, "")
        return cut_values(own, files[name], cut) if own in changed else files[name]

    for file, metadata in files.metadata.items():
        own = {name: entries[name] for name, where in files.file_of.items() if where == file}
        rest = {key: text for key, text in metadata.items() if key not in KEYS}
        write_tensors(folder / file.name, own, value, {**rest, PLAN: text})
    if files.index is not None:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file.name for name, file in sorted(files.file_of.items())},
        }
        (folder / files.index.name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
