"""Fixtures of the report's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.report.files import plain


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(plain(), path)
    return path
