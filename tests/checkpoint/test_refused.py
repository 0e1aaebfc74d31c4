"""Files that cannot be loaded are refused with a reason, and nothing is changed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import structprune
from structprune import CheckpointError, PlanError
from structprune.checkpoint.contents import DIGEST, PLAN
from tests.support.small import IMAGE, TinyResNet, chain
from tests.support.stored import WithState, pruned_one


def _rewritten(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    """The file with other tensors and metadata, as somebody else would write it: without a digest."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    del metadata[DIGEST]
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def _of(change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        _rewritten(path, lambda tensors, metadata: (change(tensors, metadata), None)[1])

    return spoil


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (Path.unlink, CheckpointError, "no such file"),
        (_folder, CheckpointError, "holds 0 indices .* and 0 safetensors files"),
        (_pipe, CheckpointError, "no such file"),
        (lambda p: p.write_bytes(b""), CheckpointError, "cannot be read as safetensors"),
        (lambda p: p.write_bytes(b"\xff" * 64), CheckpointError, "cannot be read as safetensors"),
        (lambda p: p.write_bytes(pickle.dumps([1])), CheckpointError, "cannot be read as safetensors"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), CheckpointError, "cannot be read as safetensors"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x7f"), CheckpointError, "is damaged: its digest"),
        (_of(lambda t, m: t.pop("fc.bias")), CheckpointError, r"does not fit the model\. It lacks fc.bias"),
        (_of(lambda t, m: t.update(more=t["fc.bias"].clone())), CheckpointError, r"The model has no more[.,]"),
        (_of(lambda t, m: t.update({"fc.bias": torch.zeros(9)})), CheckpointError, r"fc.bias is \[9\], expected"),
        (_of(lambda t, m: t.update({"fc.bias": torch.zeros(10).int()})), CheckpointError, "fc.bias is of torch.int32"),
        (_of(lambda t, m: m.pop(PLAN)), CheckpointError, "there is no plan in it"),
        (_of(lambda t, m: m.update({PLAN: "{"})), PlanError, "cannot be read as a plan"),
        (_of(lambda t, m: m.update({PLAN: "{" * 10**5})), PlanError, "cannot be read as a plan"),
        (_of(lambda t, m: m.update({PLAN: "no base 85"})), CheckpointError, "neither JSON nor compressed"),
        (_of(lambda t, m: m.update({"structprune.more": ""})), CheckpointError, "unknown to this release"),
        (_of(lambda t, m: m.update({"structprune.layouts": "[1]"})), CheckpointError, "expected a JSON object"),
        (
            _of(lambda t, m: m.update({"structprune.layouts": '{"fc.weight": [0, 0]}'})), CheckpointError,
            "no order of dimensions for 'fc.weight'",
        ),
        (_of(lambda t, m: m.update({"structprune.extra_state": '{"fc": 1}'})), CheckpointError, "no extra state"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded(
    spoil: Callable[[Path], object], error: type[Exception], message: str, saved: Path
) -> None:
    spoil(saved)
    with pytest.raises(error, match=message) as raised:
        structprune.load(saved, TinyResNet())
    assert str(saved) in str(raised.value)


def test_a_plan_that_would_unpack_to_gigabytes(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("structprune.checkpoint.contents._LARGEST_PLAN", 1000)
    with pytest.raises(CheckpointError, match="unpacks to more than 1,000 bytes"):
        structprune.load(saved, TinyResNet())


def test_another_architecture(saved: Path) -> None:
    for other, error in ((chain(8, 8), "has no stem.weight"), (pruned_one(TinyResNet, IMAGE), "applied to this model")):
        with pytest.raises(PlanError, match=error):
            structprune.load(saved, other)


def test_extra_state_must_fit(tmp_path: Path) -> None:
    structprune.save(pruned_one(lambda: WithState("refused"), torch.randn(1, 8)), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="the model refuses the extra state of the file: not this one"):
        structprune.load(tmp_path / "a.safetensors", WithState())


def test_files_of_other_kinds_say_how_to_read_them(tmp_path: Path) -> None:
    model = TinyResNet()
    plain, pickled = tmp_path / "plain.safetensors", tmp_path / "model.pt"
    save_file(model.state_dict(), plain)
    torch.save(model.state_dict(), pickled)
    message = (
        r"there is no plan in it.*model\.load_state_dict\(safetensors\.torch\.load_file\('.*plain.safetensors'\)\)"
    )
    with pytest.raises(CheckpointError, match=message):
        structprune.load(plain, model)
    with pytest.raises(CheckpointError, match=r"looks like one of torch.save: model.load_state_dict\(torch.load\(path"):
        structprune.load(pickled, model)
