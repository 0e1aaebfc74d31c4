"""The package as a user gets it: ``make package`` builds wheel and sdist and tests them outside the repository.

A clean environment gets a PyTorch first, then the wheel, which must leave that PyTorch alone. The core suite of the
unpacked sdist runs on the installed package, and the sdist installs the same files.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.versions.__main__ import CORE_SUITE, FLOOR, ROOT, environment, install

_TORCH = "import torch; print(torch.__version__)"
_FILES = """
import hashlib, pathlib, structprune
folder = pathlib.Path(structprune.__file__).parent
for path in sorted(folder.rglob("*")):
    if path.is_file() and path.suffix != ".pyc":
        print(path.relative_to(folder), hashlib.sha256(path.read_bytes()).hexdigest())
"""


def main() -> int:
    """Build, check, install and test; 0 if all is right."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions.package", description=__doc__)
    parser.add_argument("--torch", default=FLOOR, help="the version that is there already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="structprune-package-") as made:
        folder = Path(made)
        tools = environment(folder / "tools", sys.executable, "build", "twine")
        _run(tools, "-m", "build", "--outdir", folder / "dist", ROOT)
        (wheel,) = (folder / "dist").glob("*.whl")
        (sdist,) = (folder / "dist").glob("*.tar.gz")
        _run(tools, "-m", "twine", "check", "--strict", wheel, sdist)

        python = environment(folder / "clean", sys.executable, f"torch=={options.torch}")
        before = _said(python, _TORCH, folder)
        install(python, wheel)
        after = _said(python, _TORCH, folder)
        print(f"torch before and after the wheel: {before} {after}")
        if before != after:
            print("the wheel changed PyTorch")
            return 1
        _run(python, "-m", "structprune.report.cli", "--demo", cwd=folder)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder)
        (source,) = folder.glob("structprune-*")
        (source / "structprune").rename(source / "not-imported")
        install(python, f"{wheel}[core-test]")
        files = _said(python, _FILES, folder)
        _run(python, *CORE_SUITE, cwd=source, env={**os.environ, "OMP_NUM_THREADS": "1"})
        install(python, "--force-reinstall", "--no-deps", sdist)
        same = files == _said(python, _FILES, folder)
        print(f"wheel and sdist install {'the same' if same else 'different'} files ({len(files.splitlines())})")
        return 0 if same else 1


def _run(python: Path, *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    subprocess.run([python, *map(str, arguments)], check=True, cwd=cwd, env=env)


def _said(python: Path, code: str, cwd: Path) -> str:
    return subprocess.run([python, "-c", code], check=True, cwd=cwd, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
