"""What a cut keeps: everything about the model but the slices that go."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import structprune
from tests.support.small import IMAGE, TinyResNet, chain


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtype(dtype: torch.dtype) -> None:
    small = structprune.prune_model(TinyResNet().to(dtype), 0.5, example_inputs=IMAGE.to(dtype))
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_values_are_bit_identical_slices() -> None:
    model = TinyResNet()
    plan = structprune.plan_pruning(model, 0.5, "channel", example_inputs=IMAGE, round_to=1)
    small = plan.apply(model).state_dict()
    for name, tensor in model.state_dict().items():
        for dim, kept in plan.kept.get(name, {}).items():
            tensor = tensor.index_select(dim, torch.tensor(kept))
        assert torch.equal(tensor, small[name]), name


def test_device_meta_plan_applies() -> None:
    plan = structprune.plan_pruning(TinyResNet(), 0.5, example_inputs=IMAGE)
    small = plan.apply(TinyResNet().to("meta"))
    assert {p.device.type for p in small.parameters()} == {"meta"}


def test_memory_format() -> None:
    model = TinyResNet().to(memory_format=torch.channels_last)
    small: Any = structprune.prune_model(model, 0.5, example_inputs=IMAGE, round_to=1)
    weight = small.block1.conv2.weight
    assert weight.shape[0] == 8 and weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


@pytest.mark.parametrize("inplace", [False, True])
def test_requires_grad_gradients_and_hooks(inplace: bool) -> None:
    model = TinyResNet()
    model.stem.weight.requires_grad_(False)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    calls: list[str] = []
    model.block1.conv1.weight.register_hook(lambda g: calls.append("gradient"))
    model.block1.conv2.weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    model.block1.register_forward_hook(lambda m, i, o: calls.append("forward"))
    gradient = model.block1.conv2.weight.grad.clone()  # type: ignore[union-attr]
    plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE, round_to=1)
    small: Any = plan.apply(model, inplace=inplace)
    calls.clear()
    assert not small.stem.weight.requires_grad and small.fc.weight.requires_grad
    kept = plan.kept["block1.conv2.weight"]
    expected = gradient.index_select(0, torch.tensor(kept[0])).index_select(1, torch.tensor(kept[1]))
    assert torch.equal(small.block1.conv2.weight.grad, expected)
    small.zero_grad()
    small(torch.randn(2, 3, 16, 16)).sum().backward()
    assert sorted(calls) == ["accumulated", "forward", "gradient"]


@pytest.mark.parametrize("training", [True, False])
def test_training_mode(training: bool) -> None:
    model = TinyResNet().train(training)
    model.block1.bn1.eval()
    small: Any = structprune.prune_model(model, 0.5, example_inputs=IMAGE)
    assert small.training is training and small.block1.bn1.training is False
    assert model.training is training and model.block1.bn1.training is False


def test_in_place_keeps_the_parameter_objects() -> None:
    model = TinyResNet()
    before = dict(model.named_parameters())
    assert structprune.prune_model(model, 0.5, example_inputs=IMAGE, inplace=True) is model
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert model.block1.conv1.out_channels == 8
    optimizer = torch.optim.SGD(before.values(), lr=0.1)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    assert model.block1.conv1.weight.grad is not None


def test_the_dense_model_is_bit_identical_afterwards() -> None:
    model = TinyResNet()
    before, attributes = state(model), {n: dict(vars(m)) for n, m in model.named_modules()}
    small = structprune.prune_model(model, 0.5, "channel", example_inputs=IMAGE)
    structprune.prove(model, small, IMAGE)
    structprune.trace(model, IMAGE)
    assert_same_state(model, before)
    for name, module in model.named_modules():
        assert vars(module).keys() == attributes[name].keys()
        assert not module._forward_hooks and not module._forward_pre_hooks
    small.stem.weight.data.zero_()  # type: ignore[union-attr]
    assert_same_state(model, before)


def test_random_state_and_flags() -> None:
    class Chance(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if random.random() + np.random.rand() + float(torch.rand(1)) > 1.5 else x

    model = nn.Sequential(Chance(), chain(16, 16), nn.Dropout())
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    rng = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    flags = torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()
    small = structprune.prune_model(model, 0.5, example_inputs=IMAGE)
    structprune.prove(model, small, IMAGE)
    assert torch.equal(torch.get_rng_state(), rng[0]) and random.getstate() == rng[1]
    assert (np.random.get_state()[1] == rng[2]).all()  # type: ignore[index]
    assert flags == (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype())


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(8, 16)
            self.b.weight = self.a.weight
            self.c = nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(self.a(x)) + self.b(x))

    for inplace in (False, True):
        small: Any = structprune.prune_model(
            Tied(), 0.5, inplace=inplace, example_inputs=torch.randn(2, 8), keep_representation=False
        )
        assert small.a.weight is small.b.weight and small.a.weight.shape == (8, 8)
        assert small.b.out_features == 8


def test_reused_modules_and_plain_tensors() -> None:
    class Reuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 16)
            self.alias = self.inner
            self.outer = nn.Linear(16, 3)
            self.table = torch.arange(3.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outer(self.alias(torch.relu(self.inner(x)))) + self.table

    model = Reuse()
    with pytest.raises(structprune.NothingToPruneError, match="fixed size"):
        # The reused layer reads the input and itself.
        structprune.prune_model(model, 0.5, example_inputs=torch.randn(2, 16), keep_representation=False)
    assert model.table.device.type == "cpu"


def test_a_copy_and_a_pickle_keep_the_plan_and_need_no_structprune(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    small = structprune.prune_model(model, 0.5, example_inputs=IMAGE, keep_representation=False)
    assert structprune.plan_of(copy.deepcopy(small)) == structprune.plan_of(small)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(small))
    code = (
        "import sys, pickle, torch; sys.modules['structprune'] = None; "
        f"m = pickle.load(open({str(tmp_path / 'model.pickle')!r}, 'rb')); print(tuple(m[0].weight.shape))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(8, 3, 3, 3)"


def test_weight_norm_of_both_kinds() -> None:
    for wrap in (nn.utils.parametrizations.weight_norm, _old_weight_norm):
        model = nn.Sequential(
            wrap(nn.Conv2d(3, 16, 3)), nn.ReLU(), wrap(nn.Conv2d(16, 8, 3)), nn.Flatten(), nn.LazyLinear(4)
        )
        model(IMAGE)
        small = structprune.prune_model(model, 0.5, example_inputs=IMAGE, keep_representation=False)
        assert small(IMAGE).shape == (1, 4)
        assert small[0].weight.shape == (8, 3, 3, 3)  # type: ignore[index]
        assert structprune.prove(model, small, IMAGE)


def _old_weight_norm(module: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(module)


def test_no_second_copy_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that tracing and planning make on the CPU is small; applying makes the pruned ones."""
    model = chain(256, 256, 256)
    largest = max(p.numel() for p in model.parameters())
    own = {p.data_ptr() for p in model.parameters()}
    seen: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (list, tuple)) else [out]:
                if isinstance(tensor, torch.Tensor) and not tensor.is_meta and tensor.data_ptr() not in own:
                    seen.append(tensor.numel())
            return out

    gc.collect()
    with Watch():
        plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE)
    assert max(seen) < largest / 4
    seen.clear()
    with Watch():
        small = plan.apply(model)
    assert max(seen) <= largest / 2
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters()) / 2


def test_large_tensors_are_cut_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    from structprune.surgery import selection

    tensor = torch.randn(40, 30, 3)
    kept = {0: np.arange(1, 40, 2), 1: np.arange(0, 30, 3)}
    whole = selection.sliced(tensor, kept)
    monkeypatch.setattr(selection, "_STRETCH", 500)
    assert torch.equal(selection.sliced(tensor, kept), whole)
    assert torch.equal(whole, tensor[1::2, ::3])
