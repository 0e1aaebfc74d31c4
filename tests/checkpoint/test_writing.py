"""Writing: what cannot be saved is refused, and a file is there whole or as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune import CheckpointError, StructPruneError
from structprune.checkpoint.writing import in_place_of
from tests.support.small import IMAGE, TinyResNet
from tests.support.stored import WithState, pruned_one


def _grown(model: Any) -> Any:
    model.extra = nn.Linear(2, 2)
    return model


def _complex(model: Any) -> Any:
    model.fc.bias.data = model.fc.bias.data.to(torch.complex128)
    return model


def _new_head(model: Any) -> Any:
    model.fc = nn.Linear(64, 3)
    return model


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: TinyResNet(), "TinyResNet carries no plan: it was not pruned by structprune"),
        (_grown, r"extra.bias is new in this TinyResNet since it was pruned"),
        (_new_head, r"changed since it was pruned: fc.weight is \[3, 64\], expected \[10, 64\]"),
        (lambda m: m.to("meta"), "stem.weight is on the meta device and has no values to save"),
        (_complex, "is of torch.complex128, which safetensors files do not know"),
    ],
)
def test_what_cannot_be_saved(spoil: Callable[[Any], nn.Module], message: str, saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(StructPruneError, match=message):
        structprune.save(spoil(pruned_one(TinyResNet, IMAGE)), saved)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("state", [(1, 2), {1: 2}, object(), {"a": torch.zeros(1)}])
def test_extra_state_that_only_pickle_could_hold(state: Any, tmp_path: Path) -> None:
    model = WithState(None)
    pruned: Any = pruned_one(lambda: model, torch.randn(1, 8))
    pruned.state = state
    with pytest.raises(CheckpointError, match="which only pickle could hold"):
        structprune.save(pruned, tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []


def test_an_error_while_writing_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left"):
        structprune.save(pruned_one(TinyResNet, IMAGE), saved)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]
    monkeypatch.undo()
    for path in (saved.parent / "none" / "a", saved.parent, Path(os.devnull)):
        with pytest.raises(CheckpointError):
            structprune.save(pruned_one(TinyResNet, IMAGE), path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="tells the names of open files by Linux's table")
@pytest.mark.parametrize("folder", [False, True])
def test_what_takes_a_place_is_on_the_disk_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    """After a loss of power a file is whole, the old or the new one: contents, then the name, then the folder."""
    events: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.split(".")[-1])
        sync(handle)

    def replaced(source: Any, target: Any) -> None:
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with in_place_of(tmp_path / "made") as partial:
        if folder:
            partial.mkdir()
            (partial / "1.part").write_text("one")
            (partial / "2.part").write_text("two")
        else:
            partial.write_text("all")
    inside = ["part", "part"] if folder else []
    assert events == [*inside, "partial", "replace", tmp_path.name]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_file_that_is_called_a_pickle_is_written_with_a_warning(tmp_path: Path) -> None:
    pruned, path = pruned_one(TinyResNet, IMAGE), tmp_path / "small.pt"
    with pytest.warns(UserWarning, match=r"load does not read: structprune.load does. Call it small.safet") as said:
        structprune.save(pruned, path)
    assert said[0].filename == __file__
    loaded = structprune.load(path, TinyResNet())
    assert torch.equal(loaded.eval()(IMAGE), pruned.eval()(IMAGE))
    structprune.save(pruned, tmp_path / "small.weights")
