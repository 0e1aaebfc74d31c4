"""Networks and files that the tests of the report share."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from structprune.report.cli import main

ROOT = Path(__file__).parents[2]
QUICK = ["--no-latency"]


class Small(nn.Sequential):
    """A network of this test's own, which no list of known classes holds."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def plain() -> nn.Module:
    """The same of torch's own classes alone."""
    return nn.Sequential(*Small())


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    return code, *capsys.readouterr()
