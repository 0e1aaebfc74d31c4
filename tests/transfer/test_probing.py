"""Probes: what can be told of a task by one forward pass of each network."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import structprune
from structprune import ModelError, OptionError
from structprune.transfer import Cut, Probe, Task, probe
from structprune.transfer.probing import nearest_mean_error

DENSE, HALF, MOST = Cut(0.0, "dense"), Cut(0.5, "filter"), Cut(0.75, "filter")


def by_hand(features: np.ndarray, targets: list[int]) -> float:
    """One sample after the other, its class without it."""
    deviation = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / (deviation + 1e-6)
    wrong = 0
    for row, target in enumerate(targets):
        distances = {}
        for label in set(targets):
            members = [scaled[i] for i, own in enumerate(targets) if own == label and i != row]
            distances[label] = np.linalg.norm(scaled[row] - np.mean(members, axis=0)) if members else np.inf
        wrong += min(distances, key=distances.__getitem__) != target
    return wrong / len(targets)


@given(seed=st.integers(0, 10**6), samples=st.integers(4, 30), width=st.integers(1, 5), classes=st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_the_nearest_mean_by_hand(seed: int, samples: int, width: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Numbers need not begin at 0, nor be all there.
    targets = torch.randint(classes, (samples,), generator=generator) * 2 + 3
    features = torch.randn(samples, width, generator=generator) + 0.3 * targets[:, None]
    expected = by_hand(features.double().numpy(), targets.tolist())
    assert nearest_mean_error(features, targets) == pytest.approx(expected)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(16, 16, 3),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def images(separable: bool, count: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    pixels, labels = torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 2
    if separable:
        pixels[labels == 1] *= 4
    return TensorDataset(pixels, labels)


def test_what_can_be_told_is_told_and_the_model_is_as_it_was() -> None:
    model = network().train()
    model[4].weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    tasks = [Task(name, images(name == "loud"), images(False), classes=2) for name in ("loud", "noise")]
    example = torch.zeros(1, 1, 8, 8)
    loud, noise = probe(model, tasks, [DENSE, (0.5, "filter")], example_inputs=example)
    assert loud.task == "loud" and list(loud.errors) == [DENSE, HALF]
    assert loud.errors[DENSE] < 0.1 and noise.errors[DENSE] > 0.3
    assert model.training and not model[4].weight.requires_grad and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [loud] == probe(model, tasks[:1], [DENSE, HALF], example_inputs=example)  # dropout is off
    assert Probe.from_dict(json.loads(json.dumps(loud.to_dict()))) == loud


def test_batch_norms_take_the_statistics_of_the_samples() -> None:
    model, task = network(), Task("a", images(True), images(True), classes=2)
    stale = copy.deepcopy(model)
    stale[1].running_mean.fill_(1000)  # behind it nothing would be left
    assert probe(stale, [task], [DENSE]) == probe(model, [task], [DENSE])


def test_flops_of_a_probe_are_those_of_one_forward_pass_of_each_network() -> None:
    task, example = Task("a", images(True), images(True), classes=2), torch.zeros(1, 1, 8, 8)
    (own,) = probe(network(), [task], [DENSE, HALF], samples=20, example_inputs=example)
    networks = [network(), structprune.prune_model(network(), 0.5, example_inputs=example)]
    assert own.flops == sum(structprune.count_flops(net, example.expand(20, 1, 8, 8)).flops for net in networks)


class Spatial(nn.Module):
    """Its head is a convolution, before the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixels)).mean((2, 3))


class Tokens(nn.Module):
    """Its head sees every token; inputs go in by name."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, *, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(tokens)).mean(1)


def by_name(pixels: torch.Tensor, labels: torch.Tensor) -> list[Any]:
    return [({"tokens": image[0]}, label) for image, label in zip(pixels, labels, strict=True)]


@pytest.mark.parametrize("of", ["convolution", "tokens"])
def test_features_of_many_positions_are_averaged(of: str) -> None:
    pixels, labels = images(True).tensors
    if of == "convolution":
        model, data, features = Spatial(), images(True), lambda own: own.features(pixels).mean((2, 3))
    else:
        model, data = Tokens(), by_name(pixels, labels)
        features = lambda own: own.features(pixels[:, 0]).mean(1)  # noqa: E731
    (own,) = probe(model, [Task("a", data, data, classes=2)], [DENSE])  # type: ignore[arg-type]
    with torch.no_grad():
        assert own.errors[DENSE] == nearest_mean_error(features(model), labels)


def test_a_loader_gives_its_batches_as_they_come() -> None:
    """Up to the one with the last sample that is asked for; statistics are those of each."""
    pixels, labels = images(True).tensors
    loader = DataLoader(images(True), batch_size=10)
    model = network()
    (own,) = probe(model, [Task("a", loader, loader, classes=2)], [DENSE], samples=24)
    model.eval()
    model[1].train()
    model[5].train()
    with torch.no_grad():
        features = torch.cat([model[:-1](pixels[first : first + 10]) for first in (0, 10, 20)])
    assert own.errors[DENSE] == nearest_mean_error(features, labels[:30])


def test_a_dataset_gives_samples_at_random() -> None:
    pixels, labels = images(True).tensors
    order = labels.argsort()
    (own,) = probe(
        network(), [Task("a", TensorDataset(pixels[order], labels[order]), images(True))], [DENSE], samples=16
    )
    assert own.errors[DENSE] < 0.3


def test_the_same_probe_each_time_and_the_random_state_stays() -> None:
    def remade(model: nn.Module, task: Task) -> nn.Module:
        model[4] = nn.Conv2d(16, 16, 3)  # type: ignore[index]
        return model

    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image + torch.randn_like(image), label

    shuffled = Task("a", DataLoader(images(True), batch_size=16, shuffle=True), images(True), classes=2)
    noisy = Task("b", Noisy(*images(True).tensors), images(True), classes=2)
    model = network()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = probe(model, [shuffled, noisy], [DENSE], samples=32, prepare=remade)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert one == probe(model, [noisy, shuffled], [DENSE], samples=32, prepare=remade)[::-1]


def test_the_options_of_the_sweep_are_those_of_the_probe() -> None:
    def silenced(model: nn.Module, task: Task) -> nn.Module:
        assert task.name == "a"
        nn.init.zeros_(model[0].weight)  # type: ignore[index]
        return model

    task, options = Task("a", images(True), images(True), classes=2), {"example_inputs": torch.zeros(1, 1, 8, 8)}
    (plain,) = probe(network(), [task], [DENSE, HALF], **options)  # type: ignore[arg-type]
    (less,) = probe(network(), [task], [(0.0, "filter"), HALF], pruning={"keep_representation": False}, **options)  # type: ignore[arg-type]
    assert less.errors.keys() == plain.errors.keys() and less.flops < plain.flops
    (silent,) = probe(network(), [task], [DENSE], prepare=silenced)
    assert silent.errors[DENSE] > 0.3 > plain.errors[DENSE]


class Idle(nn.Module):
    """It does not call its head; or twice, or with rows of another number."""

    def __init__(self, calls: int = 0, folded: bool = False) -> None:
        super().__init__()
        self.head, self.calls, self.folded = nn.Linear(8, 5), calls, folded

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        rows = pixels.flatten(0, 2) if self.folded else pixels[:, 0]
        for _ in range(self.calls):
            self.head(input=rows)
        return pixels


def test_what_cannot_be_probed_is_refused() -> None:
    pixels, labels = images(True).tensors
    for targets, said in (
        (labels.float(), "'a' has targets that are no class numbers"),
        (labels[:, None], "'a' has targets that are no class numbers"),
        (torch.arange(64), "64 training samples of 64 classes do not tell classes apart"),
        (torch.full((64,), -100), "64 training samples of 1 classes do not tell .* a DataLoader should shuffle"),
    ):
        with pytest.raises(OptionError, match=said):
            probe(network(), [Task("a", TensorDataset(pixels, targets), images(True))], [DENSE])
    task = Task("a", images(True), images(True))
    with pytest.raises(OptionError, match="samples=1 are too few"):
        probe(network(), [task], [DENSE], samples=1)
    with pytest.raises(OptionError, match="0 training samples of 0 classes"):
        probe(network(), [Task("a", DataLoader([]), images(True))], [DENSE])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="has no linear layer that a new head could take the place of"):
        probe(nn.Sequential(nn.Conv2d(1, 4, 3)), [task], [DENSE])
    for model, said in (
        (Idle(0), "head, the last layer of Idle, is given nothing for 64 samples"),
        (Idle(2), r"is given \[\(64, 8, 8\), \(64, 8, 8\)\] for 64 samples: a probe needs one tensor"),
        (Idle(1, folded=True), r"is given \[\(512, 8\)\] for 64 samples"),
    ):
        with pytest.raises(ModelError, match=said):
            probe(model, [task], [DENSE])
    broken = network()
    nn.init.constant_(broken[4].bias, torch.nan)
    with pytest.raises(ModelError, match="features that are not finite"):
        probe(broken, [task], [DENSE])
    assert probe(Idle(1), [task], [DENSE])[0].task == "a"
