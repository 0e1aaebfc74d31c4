"""The page."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import structprune
from structprune.report.page import page
from structprune.report.study import Prunable, RatioResult, Report, Timing
from tests.report.files import QUICK, run


def a_report() -> Report:
    """A report with everything in it, and a name that would break a page which does not escape."""
    stages = [
        structprune.Stage(n, 2_000_000, 1_000_000, 0.002, 0.0015) for n in ("stem", "stages.0", "stages.1", "head")
    ]
    results = [
        RatioResult(
            ratio, "filter", 1000, 500, 2.0, batch, 0.01, 1.5, (1.4, 1.6), "faster", "", ["one <cause>"], list(stages)
        )
        for ratio in (0.25, 0.5, 0.75)
        for batch in (1, 32)
    ]
    return Report(
        model="Net<script>alert(1)</script>",
        source="a/very/long/path/" * 6 + "model.pt",
        inputs="(float32[1, 3, 32, 32])",
        params=1000,
        macs=1000,
        flops=2000,
        device="cpu",
        circumstances="cpu (a CPU), 2 threads",
        latency=[Timing(1, 0.01, 0.009, 0.011, ""), Timing(32, 0.1, 0.09, 0.11, "busy")],
        ratios=results,
        groups=[Prunable("stages.0.conv.weight", 64, 32, "inside a block")],
        frozen={"head.weight": "is a dimension of the model's output"},
        uncounted={"aten::_fft_r2c": 2},
        verdict="It is faster.",
    )


def test_page_is_self_contained_and_escaped() -> None:
    text = page(a_report())
    assert "<script>alert" not in text
    assert "Net&lt;script&gt;" in text
    outside = [part.split('"')[0] for part in text.split('href="')[1:] + text.split('src="')[1:]]
    assert [link for link in outside if not link.startswith(("#", "data:"))] == []
    assert "@import" not in text
    assert text.count("<svg") == 3
    assert "#010203" not in text
    assert "one &lt;cause&gt;" in text


def test_page_of_what_is_known_so_far() -> None:
    report = Report(model="Net", source="x.pt", interrupted=True)
    assert "Interrupted" in page(report)
    report = Report(model="Net", source="x.pt", nothing="Nothing can go.", verdict="Nothing can go.")
    assert "Nothing can go." in page(report)


def test_html_is_written(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "page.html"
    assert run(capsys, saved, "--input-size", "3,32,32", "--html", target, *QUICK)[0] == 0
    assert "5.45 k" in target.read_text()


def test_without_the_extra_it_says_so_before_the_work(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run(capsys, "--demo", "--html", "x.html")
    assert (code, out) == (2, "")
    assert "pip install 'structprune[html]'" in err


@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(width: int, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine: install Debian's chromium to run this test")
    target = tmp_path / "page.html"
    probe = "<script>document.title = [document.documentElement.scrollWidth, innerWidth].join(' ')</script></body>"
    target.write_text(page(a_report()).replace("</body>", probe))
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"),
            *(f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", target.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=1800,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    scrolled, inner = map(int, title.split())
    # Nothing is wider than the window, but what scrolls in itself.
    assert scrolled <= inner <= max(width, 500)
    assert "In pictures" in done.stdout
