"""The core suite on several versions of PyTorch, one environment after the other: ``make compat``.

Wheels for Linux bring CUDA: each environment takes gigabytes, and is removed when its tests have run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
NEWEST = "newest"
FLOOR = "2.6.0"
# With the oldest PyTorch the oldest of everything that is declared.
LOWEST = ("numpy==1.26.0", "rich==13.0.0", "typing-extensions==4.10.0", "safetensors==0.8.0")
CORE_SUITE = ["-m", "pytest", "--core", "-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider"]
VERSIONS = (FLOOR, "2.9.1", "2.11.0", NEWEST)


def main() -> int:
    """Test every version that is asked for and write the page; 0 if all are green."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help=f"such as 2.9.1, or {NEWEST!r}")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environments")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write from the stored results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures" / "versions.json")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    stored: dict[str, dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for version in () if options.report_only else options.versions:
        folder = ROOT / "build" / "versions" / version
        try:
            result = tested(version, folder, options.python)
        finally:
            if not options.keep:
                shutil.rmtree(folder, ignore_errors=True)
        print(f"torch {result['torch']}: {counted(result)}", flush=True)
        stored[f"{result['torch']}, Python {result['python'].rpartition('.')[0]}"] = result
        options.out.write_text(json.dumps(dict(sorted(stored.items(), key=_by_versions)), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(page(stored))
    return 0 if all(not result["failed"] for result in stored.values()) else 1


def tested(version: str, folder: Path, python: str) -> dict[str, Any]:
    """Make an environment with a version of PyTorch and run the core suite in it."""
    interpreter = made(version, folder, python)
    report = folder / "report.xml"
    subprocess.run(
        [interpreter, *CORE_SUITE, f"--junitxml={report}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    suite = ElementTree.parse(report).getroot()[0]
    about = [interpreter, "-c", _ABOUT]
    names = json.loads(subprocess.run(about, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    bad = [
        f"{case.get('classname', '').removeprefix('tests.')}.{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = int(suite.get("skipped", 0))
    return {
        **names,
        "passed": int(suite.get("tests", 0)) - skipped - len(bad),
        "skipped": skipped,
        "failed": bad,
        "date": datetime.date.today().isoformat(),
    }


_ABOUT = """
import json, platform, numpy, torch
print(json.dumps({"torch": torch.__version__.split("+")[0], "python": platform.python_version(),
                  "numpy": numpy.__version__}))
"""


def made(version: str, folder: Path, python: str) -> Path:
    """An environment with a version of PyTorch, structprune and what its core suite needs; its interpreter."""
    wanted = ["torch" if version == NEWEST else f"torch=={version}", *(LOWEST if version == FLOOR else ())]
    # PyTorch first, so that what follows takes it as it is.
    interpreter = environment(folder, python, *wanted)
    install(interpreter, *wanted, "--editable", f"{ROOT}[core-test]")
    return interpreter


def environment(folder: Path, python: str, *packages: object) -> Path:
    """An environment with these packages; its interpreter."""
    if not folder.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    interpreter = folder / ("Scripts" if platform.system() == "Windows" else "bin") / "python"
    install(interpreter, *packages)
    return interpreter


def install(python: Path, *packages: object) -> None:
    """Install packages into an environment."""
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *map(str, packages)], check=True)


def counted(result: dict[str, Any]) -> str:
    """A result in a few words."""
    failed = f", {len(result['failed'])} failed ({'; '.join(result['failed'][:5])})" if result["failed"] else ""
    return f"{result['passed']:,} passed, {result['skipped']:,} skipped{failed}"


def page(stored: dict[str, dict[str, Any]]) -> str:
    """``docs/versions.md``: what is not green comes first."""
    bad = [f"{name} ({counted(result)})" for name, result in stored.items() if result["failed"]]
    verdict = f"Not green: {'; '.join(bad)}." if bad else "All versions in the table are green."
    lines = [
        "# Versions",
        "",
        "Generated by `make compat`; no number here is typed by hand.",
        "",
        f"structprune asks for PyTorch {FLOOR.rpartition('.')[0]} or newer and Python 3.10 or newer. {verdict}",
        "",
        "Each row is the core suite (`pytest --core`: all tests that need no other library) in an environment of its",
        "own. What is skipped needs a library that the environment does not have, or an accelerator. With the oldest",
        "PyTorch the oldest numpy, rich, typing-extensions and safetensors that are declared are installed.",
        "",
        "| PyTorch | Python | numpy | passed | skipped | failed | date |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for result in stored.values():
        lines.append(
            f"| {result['torch']} | {result['python']} | {result['numpy']} | {result['passed']:,} "
            f"| {result['skipped']:,} | {len(result['failed'])} | {result['date']} |"
        )
    failed = sorted({f"- {names}: `{test}`" for names, result in stored.items() for test in result["failed"]})
    return "\n".join([*lines, *(["", "## Failed", "", *failed] if failed else [])]) + "\n"


def _by_versions(item: tuple[str, dict[str, Any]]) -> list[int]:
    torch, python = item[1]["torch"], item[1]["python"]
    return [int(part) for part in f"{torch}.{python}".split(".") if part.isdigit()]


if __name__ == "__main__":
    sys.exit(main())
