"""Images that need no download: scikit-learn's digits, which are real; glyphs, shapes and textures are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from structprune.transfer import Task

SIDE = 16
TESTED = 500
Tensor = torch.Tensor
Labelled = tuple[Tensor, Tensor]

SEEN_SHAPES = ("disc", "ring", "square", "plus", "triangle")
NEW_SHAPES = ("frame", "cross", "bar", "half", "corner")
# Angle in radians and frequency of a grating.
SEEN_TEXTURES = ((0.0, 6.0), (0.8, 6.0), (1.6, 6.0), (2.4, 6.0))
NEW_TEXTURES = ((0.4, 9.0), (1.2, 9.0), (2.0, 9.0), (2.8, 9.0), (0.4, 13.0), (2.0, 13.0))
SEEN_GLYPHS, NEW_GLYPHS = 80, 12
# Upright and bright on dark, of the kinds that were seen: told before anything was run.
NEAR = ("unseen digits", "occluded digits", "coarse digits", "new glyphs")
# Tasks of one source, in the stream and to develop on. Those of digits are made of the same images.
KINDS = [
    ["unseen digits", "occluded digits", "coarse digits", "rotated digits", "inverted digits", "sums of two digits",
     "mirrored digits"],
    ["new glyphs", "other letters"],
    ["new shapes", "both shapes"],
    ["new textures"],
]  # fmt: skip


def digits() -> Labelled:
    """The 1797 digits, ``(n, 1, 8, 8)`` in [0, 1], and their labels."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def enlarged(images: Tensor) -> Tensor:
    """Twice the size, as all networks here see digits."""
    return F.interpolate(images, SIDE, mode="bilinear", align_corners=False)


def alphabet(letters: int, seed: int) -> Tensor:
    """Letters of an invented script: control points of three quadratic curves each, ``(letters, 3, 3, 2)``."""
    generator = torch.Generator().manual_seed(seed)
    points = 0.9 * (2 * torch.rand(letters, 3, 3, 2, generator=generator) - 1)
    joined = torch.rand(letters, 2, 1, generator=generator) < 0.6  # a curve begins where the one before ends
    for curve in (1, 2):
        points[:, curve, 0] = torch.where(joined[:, curve - 1], points[:, curve - 1, 2], points[:, curve, 0])
    return points


def glyphs(letters: Tensor, count: int, seed: int) -> Labelled:
    """Letters as many hands would write them: other proportions, slant, place and pen every time, with noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    labels = torch.randint(len(letters), (count,), generator=generator)
    hand = torch.eye(2) + 0.15 * normal(2, 2)
    points = (letters[labels] + 0.14 * normal(3, 3, 2)).flatten(1, 2) @ hand + 0.12 * normal(1, 2)
    t = torch.linspace(0, 1, 12)
    curves = torch.einsum(
        "tk,nskd->nstd", torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1), points.view(-1, 3, 3, 2)
    )
    line = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    pixels = torch.cartesian_prod(line, line)
    distance = torch.cat([torch.cdist(pixels, part).amin(2) for part in curves.flatten(1, 2).split(500)])
    pen = 0.12 + 0.05 * torch.rand(count, 1, generator=generator)
    ink = (1.5 - distance / pen).clamp(0, 1) * (0.7 + 0.3 * torch.rand(count, 1, generator=generator))
    return (ink.view(count, 1, SIDE, SIDE) + 0.12 * normal(1, SIDE, SIDE)).clamp(0, 1), labels


def shapes(kinds: Sequence[str], count: int, seed: int) -> Labelled:
    """Drawn shapes of random place, size and brightness, with noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = _grid(generator, count)
    size = 0.45 + 0.35 * torch.rand(count, 1, 1, generator=generator)
    distance, square, thin = (x**2 + y**2).sqrt(), torch.maximum(x.abs(), y.abs()), 0.18
    drawn = {
        "disc": distance < size,
        "ring": (distance - size).abs() < thin,
        "square": square < 0.8 * size,
        "frame": (square - size).abs() < thin,
        "plus": (torch.minimum(x.abs(), y.abs()) < thin) & (square < size),
        "cross": (torch.minimum((x - y).abs(), (x + y).abs()) < 1.4 * thin) & (square < size),
        "triangle": (y > -size) & (y < 2 * x.abs().neg() + size),
        "bar": (y.abs() < thin) & (x.abs() < size),
        "half": (distance < size) & (y > 0),
        "corner": ((x + size).abs() < thin) & (y.abs() < size) | ((y - size).abs() < thin) & (x.abs() < size),
    }
    labels = torch.randint(len(kinds), (count,), generator=generator)
    images = torch.stack([drawn[kind].float() for kind in kinds])[labels, torch.arange(count)]
    images = images * (0.5 + 0.5 * torch.rand(count, 1, 1, generator=generator))
    return (images + 0.15 * torch.randn(images.shape, generator=generator))[:, None].clamp(0, 1), labels


def textures(kinds: Sequence[tuple[float, float]], count: int, seed: int) -> Labelled:
    """Gratings, an angle and a frequency for each class, of random phase, with noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = _grid(generator, count)
    labels = torch.randint(len(kinds), (count,), generator=generator)
    angles, frequencies = torch.tensor(kinds)[labels].unbind(1)
    angles = angles + 0.12 * torch.randn(count, generator=generator)
    phase = 6.3 * torch.rand(count, 1, 1, generator=generator)
    wave = torch.cos(angles)[:, None, None] * x + torch.sin(angles)[:, None, None] * y
    images = 0.5 + 0.4 * torch.sin(frequencies[:, None, None] * wave + phase)
    return (images + 0.25 * torch.randn(images.shape, generator=generator))[:, None].clamp(0, 1), labels


def pairs(count: int, seed: int) -> Labelled:
    """Two digits side by side, in their own size; the label is their sum."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = digits()
    left, right = torch.randint(len(images), (2, count), generator=generator)
    both = F.pad(torch.cat([images[left], images[right]], dim=3), (0, 0, 4, 4))
    return both, labels[left] + labels[right]


def pretraining(samples: int) -> Labelled:
    """Digits 0 to 4, shapes, textures and glyphs: ``(n, 1, 16, 16)`` in [-1, 1].

    Glyphs are most of it: with few classes of easy images most channels have nothing to do, and what is taken
    away costs nothing, which is not so in networks that people transfer from.

    Args:
        samples: Of shapes, of textures, and a tenth of it of every glyph.
    """
    images, labels = digits()
    seen = labels < 5
    parts = [
        (enlarged(images[seen]), labels[seen]),
        shapes(SEEN_SHAPES, samples, seed=1),
        textures(SEEN_TEXTURES, samples, seed=2),
        glyphs(alphabet(SEEN_GLYPHS, seed=3), samples // 10 * SEEN_GLYPHS, seed=4),
    ]
    return torch.cat([part for part, _ in parts]) * 2 - 1, torch.cat(
        [own + first for (_, own), first in zip(parts, (0, 5, 10, 14), strict=True)]
    )


def stream(train: int) -> list[Task]:
    """Nine tasks, from near to far."""
    small, labels = digits()
    images, unseen = enlarged(small), labels >= 5
    return [
        _task("unseen digits", (images[unseen], labels[unseen]), min(train, 500)),
        _task("occluded digits", (_occluded(images), labels), train),
        _task("coarse digits", (F.interpolate(F.avg_pool2d(images, 4), SIDE, mode="nearest"), labels), train),
        _task("new glyphs", glyphs(alphabet(NEW_GLYPHS, seed=15), train + TESTED, seed=16), train),
        _task("rotated digits", (images.rot90(1, (2, 3)), labels), train),
        _task("inverted digits", (1 - images, labels), train),
        _task("new shapes", shapes(NEW_SHAPES, train + TESTED, seed=11), train),
        _task("new textures", textures(NEW_TEXTURES, train + TESTED, seed=12), train),
        _task("sums of two digits", pairs(train + TESTED, seed=13), train),
    ]


def development(train: int) -> list[Task]:
    """Three tasks to choose learning rates on, two near and one far; none is in the stream."""
    images, labels = digits()
    return [
        _task("other letters", glyphs(alphabet(NEW_GLYPHS, seed=17), train + TESTED, seed=18), train),
        _task("mirrored digits", (enlarged(images).flip(3), labels), train),
        _task("both shapes", shapes(SEEN_SHAPES[:3] + NEW_SHAPES[:3], train + TESTED, seed=14), train),
    ]


def _task(name: str, data: Labelled, train: int) -> Task:
    """A task of labels from 0 on: ``train`` samples to train on, of the others at most 500 to test with."""
    images, labels = data
    classes, labels = labels.unique(return_inverse=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    own, held_out = order[:train], order[train : train + TESTED]
    images = images * 2 - 1
    parts = [TensorDataset(images[chosen], labels[chosen]) for chosen in (own, held_out)]
    return Task(name, parts[0], parts[1], len(classes))


def _occluded(images: Tensor) -> Tensor:
    """A dark square of 6 x 6 pixels at random on every image."""
    generator, images = torch.Generator().manual_seed(5), images.clone()
    corners = torch.randint(0, SIDE - 6, (len(images), 2), generator=generator)
    for image, (top, left) in zip(images, corners.tolist(), strict=True):
        image[:, top : top + 6, left : left + 6] = 0
    return images


def _grid(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Coordinates in [-1, 1] of every pixel, shifted at random: ``(count, 16, 16)`` each."""
    line = torch.linspace(-1, 1, SIDE)
    shift = (torch.rand(2, count, 1, 1, generator=generator) - 0.5) * 0.6
    return line[None, :, None] + shift[0], line[None, None, :] + shift[1]
