"""Advice for a task that was not run: probes, likeness, and the recommendation that comes of them."""

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
from structprune.transfer import Cut, Frontier, LearningCurve, Point, Probe, Task, probe
from structprune.transfer.advice import Advisor
from structprune.transfer.likeness import Likeness
from structprune.transfer.probing import nearest_mean_error

DENSE, HALF, MOST = Cut(0.0, "dense"), Cut(0.5, "filter"), Cut(0.75, "filter")


# The probe.


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


# Likeness.


@given(seed=st.integers(0, 10**6), tasks=st.integers(3, 7), cuts=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_weights_are_those_of_a_gaussian_process(seed: int, tasks: int, cuts: int) -> None:
    """Held against scikit-learn's, for the length and the noise that were chosen, around the mean of all tasks."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    random = np.random.default_rng(seed)
    probes, errors, new = random.random((tasks, cuts)), random.random((2, tasks, cuts)), random.random(cuts)
    likeness = Likeness(probes, errors)
    weights = likeness.weights(new)
    assert weights.sum() == pytest.approx(1)
    # Apart by the root mean square over cuts.
    kernel = RBF(likeness._length * cuts**0.5, "fixed")
    values = errors.transpose(1, 0, 2).reshape(tasks, -1)
    fitted = GaussianProcessRegressor(kernel, alpha=likeness._noise, optimizer=None)
    fitted.fit(probes, values - values.mean(axis=0))
    assert weights @ values == pytest.approx(fitted.predict(new[None])[0] + values.mean(axis=0), abs=1e-8)
    assert np.diag(likeness.held_out) == pytest.approx(0) and likeness.held_out.sum(axis=1) == pytest.approx(1)
    # A task that is like none gets the mean of all.
    assert likeness.weights(new + 100) == pytest.approx(np.full(tasks, 1 / tasks))


def test_length_and_noise_are_those_that_tell_most() -> None:
    random = np.random.default_rng(0)
    probes = random.random((30, 2))
    told = np.stack([np.sin(9 * probes), np.cos(9 * probes)])  # by budget, task and cut
    local, idle = Likeness(probes, told), Likeness(probes, random.random((2, 30, 2)))
    new = probes[3] + 0.01
    assert local._length <= 0.4 and local._noise <= 0.03 and idle._noise >= 1
    assert local.weights(new) @ told[0] == pytest.approx(np.sin(9 * new), abs=0.1)
    assert idle.weights(new) == pytest.approx(np.full(30, 1 / 30), abs=0.05)


# The advice.


def made(task: str, cut: Cut, metrics: list[float], seed: int = 0) -> LearningCurve:
    points = [Point(10**i if i else 0, m, 0.0, i, 0) for i, m in enumerate([0.9, *metrics])]
    return LearningCurve(task, tuple(points), 10, 1, {**cut._asdict(), "seed": seed})


KINDS = {"known": (0.05, 0.6), "strange": (0.5, 0.55)}
ERRORS = {
    "known": {DENSE: [0.3, 0.1, 0.05], MOST: [0.5, 0.4, 0.3]},
    "strange": {DENSE: [0.8, 0.6, 0.5], MOST: [0.6, 0.4, 0.3]},
}


def world(probed: int = 6, flops: int = 1) -> Frontier:
    """Two kinds of tasks: what one knows goes with the cut, the other has nothing to lose and learns by steps."""
    curves, probes = [], []
    for number in range(6):
        kind = list(KINDS)[number % 2]
        own, shift = f"{kind} {number}", 0.01 * number
        curves += [made(own, cut, [e + shift for e in errors]) for cut, errors in ERRORS[kind].items()]
        errors = dict(zip((DENSE, MOST), KINDS[kind], strict=True))
        probes.append(Probe(own, {c: e + shift for c, e in errors.items()}, flops))
    return Frontier(curves, probes=probes[:probed])


def new(kind: str, *cuts: Cut) -> Probe:
    errors = dict(zip((DENSE, MOST), KINDS[kind], strict=True))
    return Probe("new", {cut: errors[cut] + 0.005 for cut in cuts or (DENSE, MOST)}, 1)


def test_a_probe_tells_which_tasks_to_go_by() -> None:
    frontier = world()
    blind = frontier.recommend(100)
    known, strange = (frontier.recommend(100, probe=new(kind)) for kind in KINDS)
    assert (known.cut, strange.cut) == (DENSE, MOST) and known.dense == known.metric < blind.dense
    assert known.metric == pytest.approx(0.1 + 0.02, abs=0.03) and strange.metric == pytest.approx(0.4 + 0.03, abs=0.03)
    assert known.interval[0] < known.metric < known.interval[1]
    weights = frontier.likeness(new("known"))
    assert sum(weights.values()) == pytest.approx(1)
    assert sum(weights[f"known {n}"] for n in (0, 2, 4)) == pytest.approx(1, abs=0.1)
    # Of the tasks that are named alone, and of one granularity.
    strangers = [f"strange {n}" for n in (1, 3, 5)]
    assert frontier.recommend(100, probe=new("known"), tasks=strangers).metric > 0.3
    channels = [made(c.task, Cut(0.5, "channel"), [0.0] * 3) for c in frontier.curves if c.cut == DENSE]
    wider = Frontier([*frontier.curves, *channels], probes=frontier.probes)
    assert wider.recommend(100, probe=new("known")).granularity == "channel"
    assert wider.recommend(100, "filter", probe=new("known")).cut == DENSE
    again = Frontier.from_json(frontier.to_json())
    assert again.probes == frontier.probes and again.recommend(100, probe=new("known")) == known
    stored = json.loads(frontier.to_json())
    del stored["probes"]  # as they were stored before there were probes
    assert Frontier.from_json(json.dumps(stored)).probes == ()


def test_regret_by_probes() -> None:
    """Half of the tasks are advised what the other half needs; a probe tells them apart."""
    frontier = world()
    blind = Frontier(frontier.curves)
    assert blind.regret() > 0.3 and frontier.regret() == frontier.regret("known 0") == 0
    assert frontier.regret(["known 0", "strange 1"]) == 0
    # What it took is more than some budgets, or than all.
    late = [b for b in frontier.budgets if b >= 100]
    dear = world(flops=100)
    assert dear.regret(budgets=late) == 0 < dear.regret() < world(flops=10**9).regret() == blind.regret()
    # Of one kind alone there is little to learn for the other.
    strangers = ["strange 1", "strange 3", "strange 5"]
    assert frontier.regret("known 0", tasks=strangers) == 1 > frontier.regret("strange 1", tasks=strangers) == 0
    with pytest.raises(OptionError, match="No run is on a task 'other'"):
        frontier.regret("known 0", tasks=["other"])
    with pytest.raises(OptionError, match="needs runs on another one"):
        frontier.regret("known 0", tasks=["known 0"])


def test_who_is_held_out_does_not_advise() -> None:
    """Regret is that of what a frontier without the task, and without its probe, would have advised."""
    curves = list(world().curves)
    for row, curve in enumerate(curves):
        if curve.task == "known 2":  # its probe is that of a task of the other kind
            curves[row] = made(curve.task, curve.cut, ERRORS["strange"][curve.cut])
    frontier = Frontier(curves, probes=world().probes)
    for held_out in frontier.probes:
        without = Frontier(
            [curve for curve in curves if curve.task != held_out.task],
            probes=[own for own in frontier.probes if own != held_out],
        )
        lost = gap = 0.0
        for budget in frontier.budgets:
            values = {cut: frontier.metric(cut, budget, tasks=[held_out.task]) for cut in frontier.cuts}
            lost += values[without.recommend(budget, probe=held_out).cut] - min(values.values())
            gap += max(values.values()) - min(values.values())
        assert frontier.regret(held_out.task) == pytest.approx(lost / gap)
    assert frontier.regret("known 2") == 1


def test_what_a_prediction_typically_misses() -> None:
    """Each known task predicted from the others by scikit-learn, with the length and the noise that were chosen."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    frontier = world()
    probes = np.array([[own.errors[cut] for cut in (DENSE, MOST)] for own in frontier.probes])
    errors = np.array([frontier.metric(MOST, 100, tasks=[own.task]) for own in frontier.probes])
    likeness = Advisor(frontier, frontier.cuts, frontier.tasks)._likeness
    off = []
    for row in range(6):
        others = np.arange(6) != row
        fitted = GaussianProcessRegressor(
            RBF(likeness._length * 2**0.5, "fixed"), alpha=likeness._noise, optimizer=None
        ).fit(probes[others], errors[others] - errors[others].mean())
        off.append(fitted.predict(probes[row][None])[0] + errors[others].mean() - errors[row])
    best = frontier.recommend(100, probe=new("strange"))
    assert best.cut == MOST and best.interval[1] - best.metric == pytest.approx(np.sqrt(np.mean(np.square(off))))


def test_a_prediction_is_no_better_nor_worse_than_any_known_task() -> None:
    """Near an error of 0 the weighted sum may be negative: it chooses, and is not shown."""
    curves, probes = [], []
    for number in range(5):
        curves += [made(f"{number}", DENSE, [0.01 + 0.1 * number] * 3), made(f"{number}", MOST, [0.6] * 3)]
        probes.append(Probe(f"{number}", {DENSE: 0.1 + 0.1 * number}, 1))
    frontier = Frontier(curves, probes=probes)
    easier = Probe("easier", {DENSE: 0.05}, 1)
    assert Advisor(frontier, frontier.cuts, frontier.tasks).expected(easier, 100)[DENSE] < 0
    best = frontier.recommend(100, probe=easier)
    assert best.cut == DENSE and best.metric == best.dense == pytest.approx(0.01)


def test_beyond_the_budgets_there_is_no_advice_by_a_probe() -> None:
    frontier = world()
    for budget in (1e5, 1.0):
        with pytest.raises(OptionError, match=r"for budgets that were run, 10 to 1\.000 kFLOPs"):
            frontier.recommend(budget, probe=new("known"))
    assert frontier.recommend(1e5).cut in frontier.cuts
    dense = Frontier([c for c in frontier.curves if c.cut == DENSE])
    with pytest.raises(OptionError, match="needs runs of pruned networks"):
        dense.recommend(1e5)
    for own in (frontier, world(probed=0)):
        with pytest.raises(OptionError, match="No run of these cuts reaches a budget"):
            own.regret(budgets=[1e5])


def test_advice_that_cannot_be_given() -> None:
    said = "needs 3 tasks that were probed, by the same cuts, and run with every cut; of 6 tasks {} are"
    for probed in (2, 0):
        with pytest.raises(OptionError, match=said.format(probed)):
            world(probed).recommend(100, probe=new("known"))
    with pytest.raises(OptionError, match=r"The probe of 'new' lacks filter 0\.75"):
        world().recommend(100, probe=new("known", DENSE))
    # With too few probes regret goes without them.
    assert world(probed=3).regret() == world(probed=0).regret() > 0.3


def test_tasks_that_lack_a_run_or_a_part_of_the_probe_are_not_gone_by() -> None:
    frontier = world()
    partly = Frontier([c for c in frontier.curves if (c.task, c.cut) != ("known 0", MOST)], probes=frontier.probes)
    assert "known 0" not in partly.likeness(new("known")) and len(partly.likeness(new("known"))) == 5
    assert partly.recommend(100, probe=new("known")).cut == DENSE
    first, *others = frontier.probes
    thin = Frontier(frontier.curves, probes=[Probe(first.task, {DENSE: 0.1}, 1), *others])
    assert "known 0" not in thin.likeness(new("known")) and len(thin.likeness(new("known"))) == 5
    # Nobody advises the one whose own probe lacks a part, as without probes.
    assert thin.regret("known 0") == Frontier(frontier.curves).regret("known 0") > 0
    with pytest.raises(OptionError, match="Each task has one probe"):
        Frontier(frontier.curves, probes=[first, *frontier.probes])


@pytest.mark.parametrize("probed", [6, 0])
def test_a_task_is_advised_of_what_was_run_on_it(probed: int) -> None:
    """A third cut is the best on all other tasks, and was not run on this one: the next best is judged, and fails."""
    third = Cut(0.25, "filter")
    best = [made(c.task, third, [0.0] * 3) for c in world().curves if c.cut == DENSE and c.task != "known 0"]
    worse = {DENSE: [0.3] * 3, MOST: [0.1] * 3}
    own = [made(c.task, c.cut, worse[c.cut]) if c.task == "known 0" else c for c in world().curves]
    frontier = Frontier([*own, *best], probes=world(probed).probes)
    # The others' means, and of those that are like it, are least for the dense network from 100 on.
    assert frontier.regret("known 0", tasks=["known 2", "known 4", "strange 1"], budgets=[1000]) == 1
    assert frontier.regret("known 2", budgets=[1000]) == 0
