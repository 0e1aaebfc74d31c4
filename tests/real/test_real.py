"""One small trained network of ``make real``, if its package is there; and the page's own arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.real.measure import measured
from tests.real.methods import structprune_methods
from tests.real.networks import NETWORKS
from tests.real.page import page
from tests.real.results import Results
from tests.real.subject import Unavailable


def test_what_a_trained_network_knows_is_kept_best_by_calibration() -> None:
    try:
        subject = NETWORKS["crepe-tiny"].build()
    except Unavailable as reason:
        pytest.skip(f"{reason}: make real installs it")
    methods = {method.key.partition(": ")[2]: method for method in structprune_methods()}
    loss = {name: measured(subject, methods[name], 0.8)["loss"] for name in ("calibrate", "default", "l2, local")}
    assert 1.5 * loss["calibrate"] < loss["default"] < 0.7 * loss["l2, local"]


def test_the_page_is_what_the_stored_results_say() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert page(Results(docs / "figures" / "quality.json")) == (docs / "quality.md").read_text()


def _record(losses: list[float], data: bool = False) -> dict[str, Any]:
    return {
        "data": data,
        "seconds": 1.0,
        "macs": 0.9,
        "measures": {},
        "loss": sum(losses) / len(losses),
        "losses": losses,
    }


def test_the_page_says_first_where_others_are_ahead(tmp_path: Path) -> None:
    near, far = [1.0, 1.1, 0.9, 1.0] * 20, [2.0, 2.1, 1.9, 2.0] * 20
    networks = {
        "lite0": {"structprune: default": {"0.90": _record(near)}, "torch-pruning: x": {"0.90": _record(far)}},
        "minilm": {"structprune: default": {"0.90": _record(far)}, "torch-pruning: x": {"0.90": _record(near)}},
    }
    path = tmp_path / "quality.json"
    path.write_text(json.dumps({"networks": networks, "skipped": {}, "versions": {}}))
    text = page(Results(path))
    assert "is ahead at 1 of 2 points:\n\n- minilm at 0.90: torch-pruning: x\n\nAt 1 its loss is below" in text
    assert text.index("**The default") < text.index("## lite0") < text.index("## minilm")
