"""A hundred damaged files and a hundred damaged plans: a clear error, or what was saved."""

from __future__ import annotations

import random
from pathlib import Path

import torch

import structprune
from structprune import Plan, StructPruneError
from tests.support.small import IMAGE, TinyResNet


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
