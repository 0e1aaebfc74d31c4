"""Fine-tuning for a budget: what is spent, what is stored, and what goes on after an interruption."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from structprune import ModelError, OptionError
from structprune.transfer import LearningCurve, Task, finetune, new_head
from tests.support.halves import BATCH, TASK, data, network


def run(**options: Any) -> LearningCurve:
    torch.manual_seed(0)
    return finetune(network(), TASK, **{"budget_flops": 2e9, "batch_size": BATCH, **options})


def test_a_budget_is_spent_and_not_more() -> None:
    curve = run()
    assert curve.points[0].flops == 0 and math.isnan(curve.points[0].loss)
    assert 2e9 - curve.step_flops < curve.points[-1].flops <= 2e9
    assert curve.points[-1].step == pytest.approx(2e9 / curve.step_flops, abs=1)
    assert curve.final < 0.1 < curve.points[0].metric
    assert [p.flops for p in curve.points] == sorted({p.flops for p in curve.points})
    assert str(LearningCurve.from_dict(json.loads(json.dumps(curve.to_dict())))) == str(curve)
    assert math.isnan(curve.at(3e9)) and curve.at(curve.points[3].flops) == pytest.approx(curve.points[3].metric)


def test_the_same_seed_gives_the_same_curve() -> None:
    one, two, other = run(seed=1), run(seed=1), run(seed=2)
    assert str(one) == str(two) != str(other)


def test_an_interrupted_run_goes_on_to_the_same_curve(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def until(share: float) -> Any:
        def schedule(spent: float) -> float:
            if spent > share:
                raise Stop
            return 1.0

        return schedule

    whole = run(schedule=until(2.0), checkpoint=tmp_path / "whole.ckpt")
    with pytest.raises(Stop):
        run(schedule=until(0.4), checkpoint=tmp_path / "a.ckpt")
    assert str(run(schedule=until(2.0), checkpoint=tmp_path / "a.ckpt")) == str(whole)
    with pytest.raises(OptionError, match=r"is of a run with budget_flops=2e\+09, this one has 1e\+09"):
        finetune(network(), TASK, budget_flops=1e9, checkpoint=tmp_path / "a.ckpt")


@pytest.mark.parametrize("left", [0, 3, 100, 0.5, 0.999, "zeros"])
def test_a_checkpoint_that_was_cut_short_begins_anew(tmp_path: Path, left: Any) -> None:
    path = tmp_path / "a.ckpt"
    whole = run(checkpoint=path, budget_flops=1e8)
    content = path.read_bytes()
    short = content[: int(left * len(content)) if isinstance(left, float) else left] if left != "zeros" else bytes(4096)
    path.write_bytes(short)
    assert str(run(checkpoint=path, budget_flops=1e8)) == str(whole)
    assert path.stat().st_size == len(content)


@pytest.mark.parametrize("other", ["text", {"weight": torch.zeros(2)}, [1]])
def test_a_file_that_is_no_checkpoint_is_left_alone(tmp_path: Path, other: Any) -> None:
    path = tmp_path / "mine"
    path.write_text(other) if isinstance(other, str) else torch.save(other, path)
    content = path.read_bytes()
    with pytest.raises(OptionError, match=r"mine is no checkpoint of finetune.*: give another file"):
        run(checkpoint=path, budget_flops=1e8)
    assert path.read_bytes() == content


def test_the_head_alone() -> None:
    torch.manual_seed(0)
    model = network()
    before = [p.clone() for p in model[:8].parameters()]
    mean = model[1].running_mean.clone()
    curve = finetune(model, TASK, budget_flops=1e9, batch_size=BATCH, head_only=True)
    assert all(torch.equal(a, b) for a, b in zip(before, model[:8].parameters(), strict=True))
    assert torch.equal(mean, model[1].running_mean) and curve.step_flops < run().step_flops / 2
    with pytest.raises(OptionError, match="the task has none"):
        finetune(network(), Task("none", data(0), data(1)), budget_flops=1e9, head_only=True)


class Named(TensorDataset):
    """Inputs by name, as tokenizers make them."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return {"input": x}, y


def test_named_inputs_loaders_and_half_precision() -> None:
    task = Task("named", Named(*data(0).tensors), Named(*data(1).tensors), classes=2)
    options: dict[str, Any] = {"budget_flops": 2e9, "batch_size": BATCH}
    torch.manual_seed(0)
    assert str(finetune(network(), task, **options).points) == str(run().points)
    loader = DataLoader(data(0), BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))
    loaded = Task("loaded", loader, DataLoader(data(1), 10), classes=2)
    assert finetune(network(), loaded, budget_flops=2e9).final < 0.1
    for dtype in (torch.bfloat16, torch.float16):
        assert finetune(network(), TASK, autocast=dtype, **options).final < 0.1
    for none in (data(0, 0), DataLoader(data(0, 0))):
        with pytest.raises(OptionError, match=r"Task 'few' has fewer training samples than a step needs: 1 process, e"):
            finetune(network(), Task("few", none, data(1), classes=2), budget_flops=2e9)


def test_heads_and_errors() -> None:
    model = network()
    assert new_head(model, 3, seed=1) == "8" and model[8].out_features == 3
    with pytest.raises(ModelError, match="has no linear layer"):
        new_head(nn.Sequential(nn.Conv2d(1, 2, 3)), 3)
    with pytest.raises(ModelError, match="is its own head"):
        new_head(nn.Linear(2, 2), 3)
    with pytest.raises(OptionError, match=r"budget_flops=10 does not pay for one training step of"):
        finetune(network(), TASK, budget_flops=10)
    with pytest.raises(OptionError, match="finetune has no option 'epochs'"):
        finetune(network(), TASK, budget_flops=1e9, epochs=3)  # type: ignore[call-arg]
