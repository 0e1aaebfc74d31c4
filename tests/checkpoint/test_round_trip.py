"""What is saved comes back bit by bit, whoever wrote the file and whoever reads it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import structprune
from structprune import CheckpointError, Plan
from structprune.checkpoint.contents import PLAN
from structprune.meta.replica import named_tensors
from tests.bench import files
from tests.support.small import IMAGE, Table, TinyResNet, chain
from tests.support.stored import TOKENS, Tied, WithState, on_meta, pruned_one
from tests.zoo.families import Network


def weight_normed() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Linear(8, 32)), nn.ReLU(), norm(nn.Linear(32, 4)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, Callable[[nn.Module], object]]] = {
    "residual": (TinyResNet, IMAGE, nn.Module.eval),
    "training": (TinyResNet, torch.randn(2, 3, 16, 16), nn.Module.train),
    "tied": (Tied, TOKENS, nn.Module.eval),
    "bfloat16": (Tied, TOKENS, nn.Module.bfloat16),
    "half": (lambda: chain(16, 16), IMAGE.half(), nn.Module.half),
    "double": (lambda: chain(16, 16), IMAGE.double(), nn.Module.double),
    "channels last": (lambda: chain(16, 16), IMAGE, lambda m: m.to(memory_format=torch.channels_last)),  # type: ignore[call-overload]
    "parametrised": (weight_normed, torch.randn(2, 8), nn.Module.eval),
    "cached": (Table, torch.randn(1, 3, 12, 12), lambda m: m(torch.randn(1, 3, 9, 9))),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_saved_comes_back(network: str, device: str, tmp_path: Path) -> None:
    build, inputs, change = NETWORKS[network]
    pruned = pruned_one(build, inputs)
    change(pruned)
    if network != "training":
        pruned.eval()
    structprune.save(pruned, tmp_path / "a.safetensors")
    with torch.device(device):
        dense = build().train(pruned.training)
    before = {name: tensor.clone() for name, tensor in named_tensors(dense).items()}
    loaded = structprune.load(tmp_path / "a.safetensors", dense)

    ours, theirs = named_tensors(pruned), named_tensors(loaded)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        again = theirs[name]
        assert again.dtype == tensor.dtype and again.stride() == tensor.stride() and torch.equal(again, tensor), name
        assert again.requires_grad == tensor.requires_grad and type(again) is type(tensor), name
    assert structprune.plan_of(loaded) == structprune.plan_of(pruned)
    assert torch.equal(pruned(inputs), loaded(inputs))
    assert loaded.training == dense.training and type(loaded) is type(dense)
    for name, tensor in named_tensors(dense).items():
        assert tensor.device.type == device and (device == "meta" or torch.equal(tensor, before[name]))


@pytest.mark.parametrize("key", ["torchvision:shufflenet_v2_x1_0", "timm:mobilenetv3_small_050", "timm:levit_128s"])
def test_networks_of_the_zoo(key: str, tmp_path: Path) -> None:
    share, same = files.round_trip(Network.of(key), tmp_path / "a.safetensors")
    assert same == {"cpu": True, "meta": True} and 1 < share <= 1.01


def test_ties_and_proof_after_loading(tmp_path: Path) -> None:
    dense = Tied()
    pruned = structprune.prune_model(dense, 0.5, example_inputs=TOKENS)
    structprune.save(pruned, tmp_path / "a.safetensors")
    loaded: Any = structprune.load(tmp_path / "a.safetensors", on_meta(Tied))
    assert loaded.head.weight is loaded.embed.weight
    assert structprune.prove(dense, loaded, TOKENS).proved


def test_other_readers_read_the_file(saved: Path) -> None:
    pruned = pruned_one(TinyResNet, IMAGE)
    state = pruned.state_dict()
    tensors = load_file(saved)
    assert tensors.keys() == state.keys() and all(torch.equal(t, state[n]) for n, t in tensors.items())
    with safe_open(saved, framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def test_a_state_dict_and_its_plan_are_enough(tmp_path: Path) -> None:
    pruned = pruned_one(TinyResNet, IMAGE).eval()
    state, text = pruned.state_dict(), structprune.plan_of(pruned).to_json()
    again = Plan.from_json(text).apply(TinyResNet()).eval()
    again.load_state_dict(state)
    save_file(state, tmp_path / "a.safetensors", metadata={PLAN: text})
    loaded = structprune.load(tmp_path / "a.safetensors", on_meta(TinyResNet).eval())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(pruned(x), again(x)) and torch.equal(pruned(x), loaded(x))


def test_what_a_state_dict_lacks_comes_from_a_model_with_values(tmp_path: Path) -> None:
    pruned = pruned_one(Tied, TOKENS)
    state = {name: tensor for name, tensor in pruned.state_dict().items() if name != "embed.weight"}
    save_file(state, tmp_path / "a.safetensors", metadata={PLAN: structprune.plan_of(pruned).to_json()})
    loaded = structprune.load(tmp_path / "a.safetensors", Tied())
    assert torch.equal(pruned(TOKENS), loaded(TOKENS))
    with pytest.raises(CheckpointError, match=r"shift is no part of a state_dict .* build the model on the CPU"):
        structprune.load(tmp_path / "a.safetensors", on_meta(Tied))


@pytest.mark.parametrize("state", [{"step": 3, "names": ["a", None]}, "text", torch.arange(5)])
def test_extra_state(state: Any, tmp_path: Path) -> None:
    pruned = pruned_one(lambda: WithState(state), torch.randn(1, 8))
    structprune.save(pruned, tmp_path / "a.safetensors")
    loaded: Any = structprune.load(tmp_path / "a.safetensors", on_meta(WithState))
    assert torch.equal(loaded.state, state) if isinstance(state, torch.Tensor) else loaded.state == state


def test_no_pickle(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    for owner, names in ((pickle, ("load", "loads", "Unpickler", "dumps", "dump")), (torch, ("load", "save"))):
        for name in names:
            monkeypatch.setattr(owner, name, refuse)
    assert structprune.load(saved, on_meta(TinyResNet))
    package = Path(structprune.__file__).parent / "checkpoint"
    assert [p.name for p in package.glob("*.py") if "import pickle" in p.read_text()] == []
