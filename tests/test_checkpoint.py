"""Files: what is saved comes back bit by bit, and what is wrong is refused with nothing changed."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import structprune
from structprune import CheckpointError, Plan, PlanError, StructPruneError
from structprune.checkpoint.contents import DIGEST, PLAN
from structprune.checkpoint.writing import in_place_of
from structprune.meta.replica import named_tensors
from tests.bench import files, sharded
from tests.support.small import IMAGE, Table, TinyResNet, chain
from tests.zoo.families import Network

TOKENS = torch.arange(6)[None]


class Tied(nn.Module):
    """Two names for the embedding, a table that no state_dict has, a bare parameter, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.gain = nn.Parameter(torch.rand(64))
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight
        self.up.requires_grad_(False)
        self.register_buffer("shift", torch.linspace(0, 1, 64), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        return self.head(x + self.down(F.gelu(self.up(x)) * self.gain + self.shift))


class WithState(nn.Module):
    """State that is no tensor of the module's: ``kind`` says as what it is handed over."""

    def __init__(self, kind: Any = None) -> None:
        super().__init__()
        self.first, self.second, self.state = nn.Linear(8, 32), nn.Linear(32, 4), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x)))

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        if state == "refused":
            raise ValueError("not this one")
        self.state = state


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


def pruned_one(build: Callable[[], nn.Module], inputs: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    example = inputs.float() if inputs.is_floating_point() else inputs
    return structprune.prune_model(build(), 0.5, example_inputs=example, round_to=1, keep_representation=False)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "pruned.safetensors"
    structprune.save(pruned_one(TinyResNet, IMAGE), path)
    return path


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


class Headless(nn.Module):
    def __init__(self, pruned: nn.Module) -> None:
        super().__init__()
        self.inner = pruned


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


def _mutations(data: bytes, count: int) -> list[bytes]:
    """Damaged copies: bits, bytes, digits, cuts, insertions, and stretches that move."""
    rng = random.Random(0)
    found = []
    for number in range(count):
        # Half of them in the header, where more can go wrong.
        at = rng.randrange(min(len(data), 9000) if number % 2 else len(data))
        kind = number % 5
        if kind == 0:
            found.append(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        elif kind == 1:
            found.append(data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:])
        elif kind == 2:
            found.append(data[:at] + data[at + rng.randrange(1, 40) :])
        elif kind == 3:
            digits = [i for i, byte in enumerate(data[: at + 4000]) if chr(byte).isdigit()]
            where = rng.choice(digits)
            found.append(data[:where] + str(rng.randrange(10)).encode() + data[where + 1 :])
        else:
            found.append(data[:at] + data[at : at + 30] * 2 + data[at + 60 :])
    return found


def test_a_hundred_damaged_files(saved: Path) -> None:
    model, x = TinyResNet().eval(), torch.randn(1, 3, 16, 16)
    expected = structprune.load(saved, model)(x)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clear = harmless = 0
    for data in _mutations(saved.read_bytes(), 100):
        saved.write_bytes(data)
        try:
            loaded = structprune.load(saved, model)
        except StructPruneError as error:
            assert str(saved) in str(error) and len(str(error)) < 2000
            clear += 1
        else:
            assert torch.equal(loaded(x), expected)
            harmless += 1
        assert saved.read_bytes() == data
    assert clear + harmless == 100 and clear > 80
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_hundred_damaged_plans() -> None:
    model = TinyResNet()
    plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE)
    clear = 0
    for data in _mutations(plan.to_json().encode(), 100):
        try:
            assert Plan.from_json(data.decode(errors="replace")) == plan
        except StructPruneError:
            clear += 1
    assert clear > 80


def _changed(**changes: Any) -> str:
    document = json.loads(structprune.plan_pruning(TinyResNet(), 0.5, example_inputs=IMAGE).to_json())
    del document["checksum"]
    return json.dumps({**document, **changes})


def _attribute(name: str, old: Any, new: Any, module: str = "") -> dict[str, Any]:
    return {"attributes": [{"module": module, "name": name, "old": old, "new": new}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checksum": "0"}, "checksum does not match its contents"),
        ({"version": True}, "version True"),
        ({"params": [10**30, 1]}, "is no size or index"),
        ({"notes": [1]}, "1 is no text"),
        ({"kept": {"stem.weight": {"00": 0}}}, "'00' is no dimension"),
        (_attribute("training", 1, 0), "training is no size that a module holds"),
        (_attribute("weight.ndim", 4, 3, "stem"), "stem.weight.ndim is no size that a module holds"),
        (_attribute("padding", [1, 1], 1, "stem"), "of another kind"),
        (_attribute("padding", [1, 1], [1], "stem"), "of another kind"),
        (_attribute("weight", 1, 2, "stem"), "stem.weight is no size that a module holds"),
        (_attribute("none", 1, 2, "stem"), "stem.none cannot be read"),
        (_attribute("out_channels", 16, 8, "none"), "none.out_channels cannot be read"),
        (_attribute("out_channels", 17, 8, "stem"), "stem.out_channels is 16, the plan expects 17"),
    ],
)
def test_hostile_plans(change: dict[str, Any], message: str) -> None:
    model = TinyResNet()
    with pytest.raises(PlanError, match=message):
        Plan.from_json(_changed(**change)).apply(model, inplace=True)
    assert model.stem.out_channels == 16 and model.training and model.stem.weight.ndim == 4


def test_a_plan_without_a_checksum_is_read() -> None:
    # As plans were written before there was one, and as they are written by hand.
    assert Plan.from_json(_changed()).kept and Plan.from_json(_changed(ratio="added")).kept


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


def test_a_file_that_is_called_a_pickle_is_written_with_a_warning(tmp_path: Path) -> None:
    pruned, path = pruned_one(TinyResNet, IMAGE), tmp_path / "small.pt"
    with pytest.warns(UserWarning, match=r"load does not read: structprune.load does. Call it small.safet") as said:
        structprune.save(pruned, path)
    assert said[0].filename == __file__
    loaded = structprune.load(path, TinyResNet())
    assert torch.equal(loaded.eval()(IMAGE), pruned.eval()(IMAGE))
    structprune.save(pruned, tmp_path / "small.weights")
