"""Fixtures of the tests of files."""

from __future__ import annotations

from pathlib import Path

import pytest

import structprune
from tests.support.small import IMAGE, TinyResNet
from tests.support.stored import pruned_one


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "pruned.safetensors"
    structprune.save(pruned_one(TinyResNet, IMAGE), path)
    return path
