"""The documentation builds, is complete, and every block of Python in it does what it says."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import structprune
from structprune import transfer
from tests.bench import accelerator
from tests.support import timing, vision

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Public, and no single object of the reference.
MODULES = {"demo", "rules", "transfer"}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TOOLS = sorted((DOCS / "tools").glob("*.md"))
_PAGES = [page for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if page.exists()]


def _blocks(page: Path) -> list[tuple[str, str, int]]:
    """Language, text and line of every fenced block; a ``text`` block right behind one is its output."""
    text = page.read_text()
    return [(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in _FENCE.finditer(text)]


def _runnable(page: Path) -> list[tuple[str, str | None, int]]:
    """Every Python block with the output that the page shows for it."""
    blocks = [*_blocks(page), ("", "", 0)]
    return [
        (code, after if next_language == "text" else None, line)
        for (language, code, line), (next_language, after, _) in pairwise(blocks)
        if language == "python"
    ]


@pytest.mark.parametrize("page", [p for p in _PAGES if _runnable(p)], ids=lambda p: p.name)
def test_python_blocks_run_and_print_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A page may ask for a speed-up, and says nothing of how long things take here.
    timing.given(monkeypatch.setattr)
    assert run_blocks(page) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", _TOOLS, ids=lambda p: p.name)
@pytest.mark.filterwarnings("ignore")
def test_blocks_on_tools(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that warn, write files and start threads."""
    import torch._inductor.config

    monkeypatch.chdir(tmp_path)
    vision.torchvision()
    with torch._inductor.config.patch(compile_threads=1):
        assert run_blocks(page) == []
    assert _runnable(page)


def run_blocks(page: Path) -> list[tuple[int, str, str]]:
    """Run a page from top to bottom in one namespace; line, page and output where the two differ."""
    differing = []
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for code, expected, line in _runnable(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # Padding makes the line numbers of a traceback those of the page.
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
        if expected is not None and printed.getvalue().rstrip() != expected.rstrip():
            differing.append((line, expected, printed.getvalue()))
    return differing


def test_public_names_are_documented() -> None:
    documented = set(re.findall(r"^::: structprune\.(\S+)", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert set(structprune.__all__) - MODULES - documented == set()
    assert {f"transfer.{name}" for name in transfer.__all__} - documented == set()


def test_resnet50_table_has_the_planned_numbers() -> None:
    model = structprune.demo.resnet50()
    page = (DOCS / "granularities.md").read_text()
    table = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("|")]
    rows = {cells[1]: cells[3:-1] for cells in table}
    options = [("filter", True), ("channel", True), ("channel", False)]
    plans = [
        structprune.plan_pruning(model, 0.5, granularity, keep_representation=keep, round_to=1)
        for granularity, keep in options
    ]
    widths = [{name: str(g.width - g.removed) for g in plan.groups for name in g.producers} for plan in plans]
    blocks = ("layer1.0", "layer2.0", "layer3.0", "layer4.0")

    def of(*names: str) -> list[str]:
        return [", ".join(left[f"{name}.weight"] for name in names) for left in widths]

    assert rows["`conv1` (the stem)"][1:] == of("conv1")
    assert rows["`conv1`, `conv2` of every bottleneck"][1:] == of(*(f"{b}.conv1" for b in blocks))
    assert rows["`conv1`, `conv2` of every bottleneck"][1:] == of(*(f"{b}.conv2" for b in blocks))
    assert rows["`conv3` and `downsample`, stages 1 to 3"][1:] == of(*(f"{b}.conv3" for b in blocks[:3]))
    assert rows["`conv3` and `downsample`, stage 4"][1:] == of("layer4.0.conv3")
    assert rows["`fc`"][1:] == of("fc")
    assert rows["Parameters"] == [f"{plans[0].params[0]:,}", *(f"{plan.params[1]:,}" for plan in plans)]
    assert rows["GMACs at 224 x 224"] == [f"{n / 1e9:.3f}" for n in (plans[0].macs[0], *(p.macs[1] for p in plans))]


def test_the_readme_counts_the_zoo_as_it_is() -> None:
    zoo = (ROOT / "docs" / "zoo.md").read_text()
    networks = next(line for line in zoo.splitlines() if line.startswith("| networks |")).split("|")[-2].strip()
    table = zoo.partition("## Not right, and why")[2].partition("\n## ")[0].splitlines()
    wrong = {tuple(line.split("|")[1:3]) for line in table if line.startswith("| ") and " model " not in line}
    right = int(networks) - len(wrong)
    said = " ".join((ROOT / "README.md").read_text().split())
    assert f"has {networks} of them one by one: {right} are pruned in both granularities" in said


def test_what_is_said_of_an_accelerator_was_measured_there() -> None:
    stored = json.loads(accelerator.STORED.read_text())
    assert accelerator.section(stored).strip() in (DOCS / "benchmarks.md").read_text()
    resnet = {r["granularity"]: r["speedup"] for r in stored["rows"] if r["batch"] == 256 and not r["captured"]
              and r["network"] == "resnet50"}  # fmt: skip
    said = " ".join((ROOT / "README.md").read_text().split())
    assert f"these cuts give {resnet['filter']:.2f} and {resnet['channel']:.2f}" in said


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    config = DOCS / "config" / "mkdocs.yml"
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", site]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert built.returncode == 0, built.stderr
    api = (site / "api.html").read_text()
    assert [n for n in structprune.__all__ if n not in MODULES and f'id="structprune.{n}"' not in api] == []
    assert (site / "figures" / "residual-block.svg").exists()
    assert not (site / "config").exists()


def test_the_first_lines_of_the_readme_do_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    code = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    said = re.search(r"print\(structprune.prove\(model, small\)\)  # .*: (proved: .*)$", code, re.MULTILINE)
    assert said is not None and capsys.readouterr().out.startswith(said[1])
    assert "# (1, 1000)" in code and names["small"](torch.randn(1, 3, 224, 224)).shape == (1, 1000)
    assert not any("not verified" in note for note in structprune.plan_of(names["small"]).notes)
    assert sum(p.numel() for p in names["small"].parameters()) < sum(p.numel() for p in names["model"].parameters())


def test_the_readme_counts_the_hostile_files_as_they_were_tried() -> None:
    tried = re.search(r"\*\*(\d+) of \1 were right", (DOCS / "hostile-files.md").read_text())
    counted = re.search(r"\[(\d+) hostile files\]", (ROOT / "README.md").read_text())
    assert tried is not None and counted is not None and tried[1] == counted[1]
