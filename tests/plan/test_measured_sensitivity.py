"""What a user's own measure says of every group, cut alone."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import structprune
from structprune import OptionError, Plan, PlanError
from structprune.plan.trials_file import TrialsFile
from tests.support.small import IMAGE, TinyResNet, chain

RATIOS = (0.25, 0.5, 0.75)
QUIET: Any = {"ratios": RATIOS, "progress": False}


def _network() -> nn.Sequential:
    """Three hidden layers: nobody reads the second one's channels, and only its bias goes on from there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        model[0].weight.abs_()
        model[4].weight.zero_()
        model[4].bias.uniform_(1, 2)
        model[6].weight.uniform_(1, 2)
    return model


X = torch.rand(5, 4)


def _plan(model: nn.Module, **options: Any) -> Plan:
    options = {"example_inputs": X, "round_to": 1, "keep_representation": False, **options}
    return structprune.plan_pruning(model, 0.5, **options)


def _score_of(model: nn.Module) -> Callable[[nn.Module], float]:
    """Minus the difference that a cut makes, beside 1: 1 where there is none."""
    with torch.no_grad():
        dense = model(X)

    def score(pruned: nn.Module) -> float:
        with torch.no_grad():
            return 1 - float((pruned(X) - dense).abs().mean() / dense.abs().mean())

    return score


class Counted:
    """A score that counts its calls, notes widths, and fails at one of them."""

    def __init__(self, score: Callable[[nn.Module], Any], fails_at: int = 0, error: type[BaseException] = ValueError):
        self._score, self._fails_at, self._error = score, fails_at, error
        self.widths: list[tuple[int, ...]] = []

    def __call__(self, pruned: nn.Module) -> Any:
        if len(self.widths) + 1 == self._fails_at:
            raise self._error("no score")
        self.widths.append(tuple(p.shape[0] for n, p in pruned.named_parameters() if n.endswith("weight")))
        return self._score(pruned)


def test_each_group_is_cut_alone_and_scored() -> None:
    model = _network()
    score = Counted(_score_of(model))
    table = _plan(model).sensitivity(model, score=score, **QUIET)
    assert score.widths == [
        (8, 8, 16, 3),
        *((8 - n, 8, 16, 3) for n in (2, 4, 6)),
        *((8, 8 - n, 16, 3) for n in (2, 4, 6)),
        *((8, 8, 16 - n, 3) for n in (4, 8, 12)),
    ]
    assert table.dense == 1 and list(table.scores) == ["0.weight", "2.weight", "4.weight"]
    # Nothing that is read depends on the first two.
    assert all(table.scores[name] == dict.fromkeys(RATIOS, 1.0) for name in ("0.weight", "2.weight"))
    lost = [1 - table.scores["4.weight"][ratio] for ratio in RATIOS]
    assert 0.1 < lost[0] < lost[1] < lost[2] < 1


def test_the_weakest_channels_go() -> None:
    model = _network()
    seen: list[torch.Tensor] = []

    def score(pruned: Any) -> float:
        seen.append(pruned[0].weight.detach())
        return 0.0

    _plan(model).sensitivity(model, score=score, ratios=[0.5], progress=False)
    strongest = model[0].weight.norm(dim=1).topk(4).indices.sort().values
    assert torch.equal(seen[1], model[0].weight[strongest])


def test_a_plan_can_be_made_from_it() -> None:
    model = _network()
    table = _plan(model).sensitivity(model, score=_score_of(model), **QUIET)
    one = table.scores["4.weight"]
    ratios = table.ratios(at_least=one[0.5])
    assert ratios == {"0.weight": 0.75, "2.weight": 0.75, "4.weight": 0.5}
    plan = structprune.plan_pruning(model, ratios, example_inputs=X, round_to=1, keep_representation=False)
    assert [g.removed for g in plan.groups] == [6, 6, 8, 0]
    assert table.ratios(at_least=0.9999) == {"0.weight": 0.75, "2.weight": 0.75}
    assert table.ratios(at_least=2) == {}


def test_losses_are_to_be_small() -> None:
    model = _network()
    score = _score_of(model)
    table = _plan(model).sensitivity(model, score=lambda pruned: 1 - score(pruned), **QUIET)
    assert table.ratios(at_most=table.scores["4.weight"][0.25])["4.weight"] == 0.25
    assert "4.weight" not in table.ratios(at_most=0.0001)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "Give one of at_least"),
        ({"at_least": 1, "at_most": 1}, "Give one of at_least"),
        ({"at_most": float("nan")}, "at_most is nan; expected a finite number"),
        ({"at_least": "0.9"}, "at_least is '0.9'"),
    ],
)
def test_limits_are_checked(limits: Any, message: str) -> None:
    model = _network()
    table = _plan(model).sensitivity(model, score=lambda _: 1, ratios=[0.5], progress=False)
    with pytest.raises(OptionError, match=message):
        table.ratios(**limits)


def test_it_prints() -> None:
    model = _network()
    table = _plan(model).sensitivity(model, score=_score_of(model), ratios=(0.05, 0.125, 0.5), progress=False)
    assert repr(table) == "<MeasuredSensitivity of 3 groups at 3 ratios, dense 1>"
    head, dense, first, *_, last = str(table).splitlines()
    assert head.split() == ["channels", "5", "%", "12.5", "%", "50", "%"] and dense.split() == ["dense", "1"]
    # Of 8 channels 5 % is none.
    assert first.split() == ["0.weight", "8", "-", "1", "1"]
    assert last.split()[:3] == ["4.weight", "16", "-"] and len(head) == len(last)


def test_the_settings_of_the_plan_hold() -> None:
    model = TinyResNet()
    options: Any = {"example_inputs": IMAGE, "ignore": ["stem", "block1"], "round_to": 4}
    plan = structprune.plan_pruning(model, {"block2.conv1": 0.5}, **options)
    score = Counted(lambda _: 1.0)
    table = plan.sensitivity(model, score=score, ratios=(0.25, 0.3, 0.5), progress=False)
    # The ratio of the plan does not matter; a ratio that cuts no other channels is not scored again.
    assert list(table.scores) == ["block2.conv1.weight", "block2.conv2.weight"] and len(score.widths) == 1 + 2 * 2
    assert table.scores["block2.conv1.weight"] == {0.25: 1.0, 0.3: 1.0, 0.5: 1.0}
    channel = structprune.plan_pruning(model, 0.5, "channel", example_inputs=IMAGE, keep_representation=False)
    assert "block1.downsample.0.weight" in channel.sensitivity(model, score=score, **QUIET).scores


def test_a_limit_holds() -> None:
    model = _network()
    score = Counted(lambda _: 1.0)
    _plan(model, max_ratio={"0": 0.25}).sensitivity(model, score=score, ratios=(0.25, 0.75), progress=False)
    assert min(widths[0] for widths in score.widths) == 6 and min(widths[1] for widths in score.widths) == 2


def test_what_is_tied_is_cut_together() -> None:
    model = chain(8, 8, 16)
    plan = structprune.plan_pruning(model, 0.5, uniform=True, round_to=1, example_inputs=IMAGE)
    score = Counted(lambda _: 1.0)
    table = plan.sensitivity(model, score=score, ratios=[0.5], progress=False)
    assert [widths[:4:2] + widths[4:5] for widths in score.widths][1] == (4, 4, 16)
    assert table.scores == {"0.weight": {0.5: 1.0}, "3.weight": {0.5: 1.0}}
    again = structprune.plan_pruning(model, table.ratios(at_least=1), uniform=True, round_to=1, example_inputs=IMAGE)
    assert [g.removed for g in again.groups] == [4, 4, 0, 0]


class TiedDecoder(nn.Module):
    """A weight that produces channels of two groups: it is read once as it is, and once transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.encoder, self.head = nn.Linear(6, 4), nn.Linear(4, 8), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.inner(x).relu()).relu() @ self.encoder.weight)


def test_groups_that_no_name_tells_apart_are_cut_together() -> None:
    model, options = TiedDecoder(), {**_options(), "example_inputs": torch.zeros(2, 6)}
    plan = structprune.plan_pruning(model, 0.5, "channel", **options)
    assert ["encoder.weight" in group.producers for group in plan.groups] == [True, True, False]
    score = Counted(lambda _: 1.0)
    table = plan.sensitivity(model, score=score, ratios=[0.5], progress=False)
    assert score.widths == [(4, 8, 2), (2, 4, 2)] and len(table.scores) == 2
    again = structprune.plan_pruning(model, table.ratios(at_least=1), "channel", **options)
    assert [g.removed for g in again.groups] == [g.removed for g in plan.groups]


def test_a_name_with_brackets_is_no_pattern() -> None:
    model = nn.Sequential()
    model.add_module("in[0]", nn.Linear(4, 8))
    model.add_module("out", nn.Linear(8, 2))
    plan = _plan(model)
    table = plan.sensitivity(model, score=lambda _: 1, ratios=[0.5], progress=False)
    assert table.scores == {"in[0].weight": {0.5: 1.0}}
    assert table.ratios(at_least=1) == {glob.escape("in[0].weight"): 0.5}
    assert structprune.plan_pruning(model, table.ratios(at_least=1), **_options()).groups[0].removed == 4


def _options() -> Any:
    return {"example_inputs": X, "round_to": 1, "keep_representation": False}


def test_the_model_is_not_changed_and_a_copy_comes_in_its_mode() -> None:
    model = chain(8, 8).train()
    model[4].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes: list[list[bool]] = []

    def score(pruned: nn.Module) -> float:
        modes.append([m.training for m in pruned.modules()])
        pruned.train()
        pruned(torch.randn(4, 3, 8, 8))
        with torch.no_grad():
            for parameter in pruned.parameters():
                parameter.fill_(7)
        return 1.0

    own = [m.training for m in model.modules()]
    plan = structprune.plan_pruning(model, 0.5, example_inputs=IMAGE)
    plan.sensitivity(model, score=score, **QUIET)
    assert all(mode == own for mode in modes) and [m.training for m in model.modules()] == own
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert before.keys() == model.state_dict().keys() and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("fails_at", [1, 2, 6])
def test_it_goes_on_where_it_stopped(tmp_path: Path, fails_at: int, error: type[BaseException]) -> None:
    model, path = _network(), tmp_path / "trials.json"
    plan = _plan(model)
    whole = plan.sensitivity(model, score=_score_of(model), **QUIET)
    first = Counted(_score_of(model), fails_at, error)
    with pytest.raises(error, match="no score"):
        plan.sensitivity(model, score=first, path=path, **QUIET)
    held = json.loads(path.read_text())
    assert len(held["trials"]) == max(0, fails_at - 2) and (held["dense"] is None) == (fails_at == 1)
    second = Counted(_score_of(model))
    table = Plan.from_json(plan.to_json()).sensitivity(model, score=second, path=str(path), example_inputs=X, **QUIET)
    assert len(second.widths) == 10 - (fails_at - 1)
    assert table.scores == whole.scores and table.dense == whole.dense and str(table) == str(whole)
    third = Counted(_score_of(model))
    assert plan.sensitivity(model, score=third, path=path, **QUIET).scores == whole.scores and not third.widths
    assert [p.name for p in tmp_path.iterdir()] == ["trials.json"]


def _other_width() -> tuple[nn.Module, Any, Any]:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), {}, QUIET


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (_other_width, r"of another model \(a Sequential with other parameters or shapes\): give another path"),
        (lambda: (chain(8), {"example_inputs": IMAGE}, QUIET), "of another model"),
        (lambda: (TinyResNet(), {"example_inputs": IMAGE}, QUIET), r"of another model \(a Sequential, this is a Tiny"),
        (lambda: (_network(), {"round_to": 2}, QUIET), r"with other settings \(round_to 1, now 2\): give another path"),
        (lambda: (_network(), {}, {"ratios": [0.5]}), r"at other ratios \(\[0.25, 0.5, 0.75\], now \[0.5\]\)"),
    ],
)
def test_a_file_of_other_trials_is_refused(tmp_path: Path, other: Any, message: str) -> None:
    path = tmp_path / "trials.json"
    model = _network()
    _plan(model).sensitivity(model, score=_score_of(model), path=path, **QUIET)
    text = path.read_text()
    model, options, asked = other()
    with pytest.raises(OptionError, match=message):
        _plan(model, **options).sensitivity(model, score=lambda _: 1, path=path, **asked)
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "structprune.plan", "version": 1}', "[" * 100_000])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trials.json"
    path.write_text(text)
    model = _network()
    with pytest.raises(OptionError, match=r"trials.json' is no file of trials"):
        _plan(model).sensitivity(model, score=lambda _: 1, path=path, **QUIET)
    assert path.read_text() == text


def test_a_score_in_a_file_that_is_no_number_is_refused(tmp_path: Path) -> None:
    model, path = _network(), tmp_path / "trials.json"
    _plan(model).sensitivity(model, score=lambda _: 1, path=path, **QUIET)
    path.write_text(path.read_text().replace('"dense": 1.0', '"dense": NaN'))
    with pytest.raises(OptionError, match="is no file of trials"):
        _plan(model).sensitivity(model, score=lambda _: 1, path=path, **QUIET)


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.json"
    TrialsFile(path, "Model", {}, {}, RATIOS).keep_dense(1.0)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "version": document["version"] + 1}))
    with pytest.raises(OptionError, match=r"is no file of trials .* version 1"):
        TrialsFile(path, "Model", {}, {}, RATIOS)


def test_a_write_that_fails_leaves_the_file_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trials.json"
    file = TrialsFile(path, "Model", {}, {}, RATIOS)
    file.keep_dense(1.0)
    before = path.read_text()
    write = Path.write_text

    def interrupted(self: Path, text: str, **options: Any) -> int:
        write(self, text[: len(text) // 2], **options)
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(OptionError, match=r"cannot be written \(disk full"):
        file.keep(("a.weight",), 0.25, 0.5)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_the_file_changes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written beside it takes its place whole: nobody reads half a file."""
    path, seen = tmp_path / "trials.json", []
    file = TrialsFile(path, "Model", {}, {}, RATIOS)
    before, replace = path.read_text(), os.replace

    def looked_at(source: Any, target: Any) -> None:
        seen.append((path.read_text() == before, json.loads(Path(source).read_text())["dense"]))
        replace(source, target)

    monkeypatch.setattr(os, "replace", looked_at)
    file.keep_dense(2.0)
    assert seen == [(True, 2.0)] and json.loads(path.read_text())["dense"] == 2.0


def test_a_path_that_cannot_be_written_is_known_before_the_first_score(tmp_path: Path) -> None:
    model = _network()
    score = Counted(lambda _: 1.0)
    with pytest.raises(OptionError, match=r"path='.*missing.*' cannot be written"):
        _plan(model).sensitivity(model, score=score, path=tmp_path / "missing" / "trials.json", **QUIET)
    assert not score.widths


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "0.9", torch.zeros(2), torch.tensor(1j)])
def test_a_score_is_a_finite_number(tmp_path: Path, bad: Any) -> None:
    model, path = _network(), tmp_path / "trials.json"

    def score(pruned: Any) -> Any:
        return bad if pruned[2].out_features == 4 else 1.0

    with pytest.raises(OptionError, match=r"score returned .* for the group 2.weight at 0.5; expected a finite number"):
        _plan(model).sensitivity(model, score=score, path=path, **QUIET)
    assert len(json.loads(path.read_text())["trials"]) == 4
    with pytest.raises(OptionError, match=r"score returned .* for the dense model"):
        _plan(model).sensitivity(model, score=lambda _: bad, **QUIET)


def test_a_score_may_be_a_tensor_of_one_number() -> None:
    model = _network()
    loss = torch.tensor([0.5], requires_grad=True)
    table = _plan(model).sensitivity(model, score=lambda _: loss, ratios=[0.5], progress=False)
    assert table.dense == 0.5 and type(table.dense) is float


def _ends_first(group: structprune.Group) -> Any:
    return range(group.width, 0, -1)


def test_a_criterion_that_the_plan_does_not_keep_is_asked_for() -> None:
    model = _network()
    plan = _plan(model, importance=_ends_first)
    with pytest.raises(OptionError, match=r"made with importance=_ends_first, .* give it again, importance="):
        plan.sensitivity(model, score=lambda _: 1, **QUIET)
    seen: list[torch.Tensor] = []

    def score(pruned: Any) -> float:
        seen.append(pruned[0].weight.detach())
        return 1.0

    plan.sensitivity(model, score=score, importance=_ends_first, ratios=[0.5], progress=False)
    assert torch.equal(seen[1], model[0].weight[:4])


def test_rules_that_the_json_leaves_out_are_asked_for() -> None:
    model, rules = _network(), structprune.rules.Registry()
    rules.opaque(nn.Bilinear)
    plan = _plan(model, rules=rules)
    assert plan.sensitivity(model, score=lambda _: 1, **QUIET).scores
    with pytest.raises(OptionError, match=r"made with rules \(Bilinear\), which its JSON leaves out"):
        Plan.from_json(plan.to_json()).sensitivity(model, score=lambda _: 1, **QUIET)


def test_compensation_without_data_is_part_of_a_trial() -> None:
    model = chain(8, 8).eval()
    seen: dict[bool, list[torch.Tensor]] = {}
    for compensate in (True, False):
        plan = structprune.plan_pruning(model, 0.5, compensate=compensate, round_to=1, example_inputs=IMAGE)

        def score(pruned: Any, compensate: bool = compensate) -> float:
            seen.setdefault(compensate, []).append(torch.cat([pruned[3].bias.detach(), pruned[4].running_mean]))
            return 1.0

        plan.sensitivity(model, score=score, ratios=[0.5], progress=False)
    # The dense model, and the cut of what the second convolution reads.
    assert torch.equal(seen[True][0], seen[False][0]) and not torch.equal(seen[True][1], seen[False][1])


@pytest.mark.parametrize("option", ["compensate", "calibrate"])
def test_batches_are_not_kept_in_a_plan(option: str) -> None:
    model = _network()
    plan = _plan(model, **{option: [X]})
    with pytest.raises(OptionError, match=rf"made with batches \({option}=...\), which it does not keep"):
        plan.sensitivity(model, score=lambda _: 1, **QUIET)


def test_a_plan_for_a_target_says_what_may_go() -> None:
    model = chain(8, 8).eval()
    plan = structprune.plan_pruning(model, params=0.8, example_inputs=IMAGE)
    assert plan.settings["importance"] == "error"
    assert plan.sensitivity(model, score=lambda _: 1, **QUIET).scores.keys() == {"0.weight"}


def _ask(model: nn.Module, **options: Any) -> Any:
    return _plan(_network()).sensitivity(model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "score is missing; expected a function"),
        ({"score": 0.5}, "score is 0.5; expected a function"),
        ({"score": len, "ratios": 0.5}, r"ratios is 0.5; expected shares in \(0, 1\)"),
        ({"score": len, "ratios": []}, r"ratios is \[\]"),
        ({"score": len, "ratios": [0.5, 1]}, r"ratios is \[0.5, 1\]"),
        ({"score": len, "path": 3}, "path is 3; expected the name of a JSON file"),
        ({"score": len, "ratio": [0.5]}, "no option 'ratio', did you mean 'ratios'"),
        ({"score": len, "importance": "l3"}, "importance is 'l3', did you mean"),
    ],
)
def test_options_are_checked(options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        _ask(_network(), **options)


def test_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="does not fit this Sequential"):
        _ask(chain(8), score=lambda _: 1)


def test_without_a_model_it_is_what_it_was() -> None:
    model = _network()
    plan = _plan(model)
    assert isinstance(plan.sensitivity(), structprune.Sensitivity)
    with pytest.raises(OptionError, match="give it first"):
        plan.sensitivity(score=lambda _: 1)  # type: ignore[call-overload]


def test_progress_is_shown_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    model = _network()
    for progress in (None, False, True):
        _plan(model).sensitivity(model, score=lambda _: 1, ratios=[0.5], progress=progress)
        said = capsys.readouterr()
        assert said.out == "" and ("4/4" in said.err) == (progress is True)


def test_the_model_is_traced_once() -> None:
    model = _network()
    calls = 0

    def example(own: nn.Module) -> Any:
        nonlocal calls
        calls += 1
        return own(X.to(next(own.parameters()).device))

    plan = _plan(model)
    counts = []
    for ratios in ([0.5], [0.25, 0.3, 0.5, 0.75]):
        calls = 0
        plan.sensitivity(model, score=lambda _: 1, ratios=ratios, progress=False, example_inputs=example)
        counts.append(calls)
    # For each plan two more, in both modes: they try its cut on the meta device.
    assert counts[1] - counts[0] == 2 * 3 * 3
