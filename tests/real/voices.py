"""Resemblyzer, which tells speakers apart, judged on voices that are made here."""

from __future__ import annotations

import importlib

import numpy as np
import torch

from tests.real.subject import Subject, Tensor, contrast, cosine_loss, split, without_init

RATE = 16_000
WINDOW = 400
STEP = 160
FRAMES = 160
BANDS = 40
LOUDNESS = 10 ** (-30 / 20)


def resemblyzer() -> Subject:
    """Three layers of an LSTM and a linear one, with the weights that Resemblyzer ships."""
    without_init("resemblyzer", audio=None)
    # It loads with torch.load, which runs nothing from the file since PyTorch 2.6.
    model = importlib.import_module("resemblyzer.voice_encoder").VoiceEncoder("cpu", verbose=False)
    judging = voices(320, seed=1)
    return Subject(
        name="Resemblyzer",
        model=model.eval(),
        example=judging[:1],
        calibration=split(voices(160, seed=0)),
        judging=split(judging),
        loss=cosine_loss,
        measures=lambda output, dense: {"cosine": float(1 - cosine_loss(output, dense).mean())},
        objective=contrast,
        # There is nothing else to cut.
        options={"keep_representation": False},
    )


def voices(count: int, seed: int) -> Tensor:
    """Mel spectrograms (count, frames, bands) of voices that say syllables."""
    random = np.random.default_rng(seed)
    return torch.stack([mel(torch.from_numpy(_voice(random)).float()) for _ in range(count)])


def mel(wave: Tensor) -> Tensor:
    """The mel spectrogram that Resemblyzer has from librosa: power, Hann window, Slaney's scale and norm."""
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(wave, WINDOW, STEP, window=window, pad_mode="constant", return_complex=True)
    return (_filters() @ spectrum.abs().square()).T[:FRAMES].contiguous()


def _filters() -> Tensor:
    """Triangles (bands, frequencies) of area one."""
    edges = _hertz(torch.linspace(0, 45.245640471924965, BANDS + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    heights = torch.minimum(rising, falling).clamp_min(0) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return heights.float()


def _hertz(mels: Tensor) -> Tensor:
    """Slaney's scale: linear up to 1000 Hz, which are 15 mels, then logarithmic; 8000 Hz are 45.2456."""
    return torch.where(mels < 15, mels * (200 / 3), 1000 * torch.exp((mels - 15) * (np.log(6.4) / 27)))


def _voice(random: np.random.Generator) -> np.ndarray:
    """A speaker of one pitch and throat, with a vowel of its own for every syllable."""
    length = FRAMES * STEP
    times = np.arange(length) / RATE
    pitch = np.exp(random.uniform(np.log(80), np.log(300)))
    throat = random.uniform(0.85, 1.2)
    drift = random.uniform(0.02, 0.15) * np.sin(2 * np.pi * random.uniform(0.4, 3) * times + random.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch * (1 + drift)) / RATE
    number = np.arange(1, int(5000 / pitch))
    wave = np.zeros(length)
    start = 0
    while start < length:
        stop = min(length, start + int(RATE * random.uniform(0.1, 0.35)))
        loud = _vowel(random, number * pitch, throat)
        swell = np.hanning(stop - start) ** random.uniform(0.3, 1) * random.uniform(0.3, 1)
        wave[start:stop] = swell * (loud @ np.sin(number[:, None] * phase[start:stop]))
        start = stop + int(RATE * random.uniform(0, 0.08))
    wave += random.standard_normal(length) * wave.std() * 10 ** (-random.uniform(10, 40) / 20)
    return np.asarray(wave * LOUDNESS / np.sqrt(np.mean(wave**2)))


def _vowel(random: np.random.Generator, frequencies: np.ndarray, throat: float) -> np.ndarray:
    """How loud the harmonics are: three formants above a falling slope."""
    formants = throat * np.array([random.uniform(300, 850), random.uniform(900, 2300), random.uniform(2300, 3300)])
    widths = np.array([80.0, 120.0, 180.0])
    peaks = 1 / (1 + ((frequencies[:, None] - formants) / widths) ** 2)
    return np.asarray((peaks @ np.array([1.0, 0.6, 0.3]) + 0.01) / frequencies**0.5)
