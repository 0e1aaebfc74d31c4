"""Checkpoints in shards, as the hub has them, pruned from file to file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import structprune
from structprune import CheckpointError
from tests.bench import sharded
from tests.support.small import IMAGE, chain
from tests.support.stored import TOKENS, Tied, on_meta

SMALL = sharded.Size(layers=2, hidden=64, inner=256, heads=4, vocabulary=100)


def test_a_sharded_checkpoint_equals_the_cut_in_memory(tmp_path: Path) -> None:
    source, target = tmp_path / "dense", tmp_path / "pruned"
    assert sharded.make(source, SMALL, 100_000)[1] >= 3
    plan = structprune.prune_checkpoint(source, target, SMALL.build(), 0.5, example_inputs=sharded.INPUTS)
    compared, planned = sharded.compare(source, target, SMALL)
    assert plan == planned and compared == len(SMALL.build().state_dict())
    index = json.loads((target / sharded.INDEX).read_text())
    tensors = {}
    for file in set(index["weight_map"].values()):
        tensors |= load_file(target / file)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert os.listdir(tmp_path).sort() == ["dense", "pruned"].sort()

    with pytest.raises(CheckpointError, match="inv_freq is no part of a state_dict"):
        structprune.load(target, SMALL.build())
    for opened in (target, target / sharded.INDEX):
        loaded = structprune.load(opened, SMALL.build("cpu"))
        assert structprune.plan_of(loaded) == plan
        assert all(torch.equal(t, tensors[n]) for n, t in loaded.state_dict().items())
        assert loaded(**sharded.INPUTS).logits.shape == (1, 12, 100)


def test_pruning_files_takes_the_memory_of_a_tensor(tmp_path: Path) -> None:
    grown, totals = [], []
    for name, size in (("small", SMALL), ("large", sharded.Size(12, 1024, 4096, 8, 100))):
        total, _ = sharded.make(tmp_path / name / "dense", size, 30_000_000)
        grown.append(sharded.prune_in_process(tmp_path / name, size, 1500).grown)
        totals.append(total / 1e6)
        sharded.compare(tmp_path / name / "dense", tmp_path / name / "pruned", size)
    # Tracing takes its memory, for labels of every slice; of the weights a shard and a tensor are there.
    assert totals[1] > 300 and grown[1] - grown[0] < 0.75 * totals[1], grown


@pytest.fixture
def dense_files(tmp_path: Path) -> Path:
    """A checkpoint of two shards, as the hub has them, of the tied network: its second name, too."""
    torch.manual_seed(0)
    model = Tied()
    state = {**model.state_dict(), "head.weight": model.embed.weight.detach().clone()}
    folder = tmp_path / "dense"
    folder.mkdir()
    weight_map = {}
    for number, names in enumerate(
        (["embed.weight", "up.weight", "up.bias"], ["down.weight", "down.bias", "gain", "head.weight"])
    ):
        save_file({n: state[n] for n in names}, folder / f"{number}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, f"{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return spoil


def _shard(number: int, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / f"{number}.safetensors")
        change(tensors)
        save_file(tensors, folder / f"{number}.safetensors")
        weight_map = {n: f.name for f in sorted(folder.glob("*.safetensors")) for n in load_file(f)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return spoil


def test_a_second_name_of_a_tied_tensor(dense_files: Path, tmp_path: Path) -> None:
    # Once in the files, once not, once under the second name only; the outputs are the same.
    model = Tied()
    model.load_state_dict({n: t for f in dense_files.glob("*.safetensors") for n, t in load_file(f).items()})
    expected = structprune.prune_model(model, 0.5, example_inputs=TOKENS)(TOKENS)
    changes = [
        lambda t: None,
        lambda t: t.pop("head.weight"),
        lambda t: t.update({"head.weight": model.embed.weight.detach().clone()}),
    ]
    for number, change in enumerate(changes):
        _shard(1, change)(dense_files)
        if number == 2:
            _shard(0, lambda t: t.pop("embed.weight"))(dense_files)
        target = tmp_path / str(number)
        structprune.prune_checkpoint(dense_files, target, on_meta(Tied), 0.5, example_inputs=TOKENS)
        assert torch.equal(structprune.load(target, Tied())(TOKENS), expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_index(lambda m: m.update({"up.bias": "1.safetensors"})), "disagree on where 'up.bias' is"),
        (_index(lambda m: m.update({"up.bias": "../0.safetensors"})), "expected a .safetensors file beside it"),
        (_index(lambda m: m.update({"up.bias": "/etc/passwd"})), "expected a .safetensors file beside it"),
        (_index(lambda m: m.update({"up.bias": 3})), "expected a .safetensors file beside it"),
        (_index(lambda m: m.update({"up.bias": "2.safetensors"})), "2.safetensors: no such file"),
        (_index(lambda m: m.clear()), "has no weight_map"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[" * 10**5), "is no JSON"),
        (lambda f: (f / "b.safetensors.index.json").write_text("{}"), "holds 2 indices"),
        (lambda f: (f / "1.safetensors").write_bytes(b"no"), "cannot be read as safetensors"),
        (_shard(1, lambda t: t.pop("gain")), "It lacks gain"),
        (_shard(1, lambda t: t.update({"up.weigth": t["gain"].clone()})), "The model has no up.weigth, did you mean"),
        (_shard(1, lambda t: t.update({"gain": torch.zeros(3)})), r"gain is \[3\], expected \[64\]"),
        (_shard(1, lambda t: t.update({"gain": torch.zeros(64).long()})), "gain is of torch.int64"),
        (lambda f: (f.parent / "pruned").write_text("here"), "pruned is there"),
        (lambda f: (f.parent / "pruned" / "a").mkdir(parents=True), "pruned is there"),
    ],
)
def test_checkpoints_that_cannot_be_pruned(spoil: Callable[[Path], object], message: str, dense_files: Path) -> None:
    spoil(dense_files)
    target = dense_files.parent / "pruned"
    before = sorted(dense_files.parent.rglob("*"))
    with pytest.raises(CheckpointError, match=message):
        structprune.prune_checkpoint(dense_files, target, on_meta(Tied), 0.5, example_inputs=TOKENS)
    assert sorted(dense_files.parent.rglob("*")) == before


def test_shards_belong_together(dense_files: Path, tmp_path: Path) -> None:
    for ratio in (0.5, 0.25):
        structprune.prune_checkpoint(dense_files, tmp_path / str(ratio), on_meta(Tied), ratio, example_inputs=TOKENS)
    with pytest.raises(CheckpointError, match="was pruned already"):
        structprune.prune_checkpoint(tmp_path / "0.5", tmp_path / "again", on_meta(Tied), 0.5)
    (tmp_path / "0.25" / "0.safetensors").replace(tmp_path / "0.5" / "0.safetensors")
    with pytest.raises(CheckpointError, match="its shards have different plans"):
        structprune.load(tmp_path / "0.5", Tied())


def test_ties_that_the_file_does_not_keep(dense_files: Path, tmp_path: Path) -> None:
    _shard(1, lambda t: t.update({"head.weight": t["head.weight"] + 1}))(dense_files)
    structprune.prune_checkpoint(dense_files, tmp_path / "pruned", on_meta(Tied), 0.5, example_inputs=TOKENS)
    with pytest.raises(CheckpointError, match=r"head.weight and embed.weight are one tensor in the model"):
        structprune.load(tmp_path / "pruned", Tied())


def test_one_file_is_pruned_too(tmp_path: Path) -> None:
    model = chain(16, 16).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    plan = structprune.prune_checkpoint(
        tmp_path / "model.safetensors", tmp_path / "pruned", on_meta(lambda: chain(16, 16)), 0.5, example_inputs=IMAGE
    )
    assert os.listdir(tmp_path / "pruned") == ["model.safetensors"]
    loaded = structprune.load(tmp_path / "pruned", chain(16, 16).eval())
    assert torch.equal(loaded(IMAGE), plan.apply(model)(IMAGE))


@pytest.mark.parametrize(
    "options", [{"compensate": True}, {"calibrate": [TOKENS]}, {"importance": "error"}], ids=lambda o: next(iter(o))
)
def test_what_runs_the_network_would_run_it_with_other_weights(
    options: dict[str, Any], dense_files: Path, tmp_path: Path
) -> None:
    model = Tied()  # has weights of its own, which are not those of the file
    with pytest.raises(structprune.OptionError, match="the network would have to run with the weights of the files"):
        structprune.prune_checkpoint(dense_files, tmp_path / "out", model, 0.5, example_inputs=TOKENS, **options)
    assert not (tmp_path / "out").exists()


def test_a_target_is_met_by_magnitude(dense_files: Path, tmp_path: Path) -> None:
    plan = structprune.prune_checkpoint(dense_files, tmp_path / "out", Tied(), params=0.7, example_inputs=TOKENS)
    took = {name: plan.settings[name] for name in ("importance", "scope", "compensate")}
    assert took == {"importance": "l2", "scope": "local", "compensate": False} and not plan.shifts
