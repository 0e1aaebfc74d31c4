"""Runs the command on one file in a process of its own, and watches it.

The process is forked from one that has loaded structprune, so that three hundred of them take minutes:
what it starts with is the same for all, and is what memory is counted above.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from tests.hostile.kinds import Kind, Place, Sample

_PAGE = os.sysconf("SC_PAGE_SIZE")
_QUICK = ("--no-latency", "--ratio", "0.5")
_CONTROL = re.compile(r"[^\n -~\u00a1-\u200a\u2010-\u2027\u2030-\u205f\u2070-\uffff]")


@dataclass(frozen=True)
class Limits:
    """What a process may take: seconds, and bytes above the baseline and the file's own values."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Outcome:
    """What came of a file.

    Attributes:
        kind: The kind's name.
        seed: Which of its files.
        code: The exit code; ``None`` if the process was stopped.
        seconds: How long it ran.
        memory: Bytes above the baseline and the file's own values, at most.
        said: What it printed.
        wrong: What should not be, empty if all is well.
    """

    kind: str
    seed: int
    code: int | None
    seconds: float
    memory: int
    said: str
    wrong: str


@dataclass(frozen=True)
class Baseline:
    """What a process takes and writes that studies a good file whose values weigh nothing."""

    memory: int
    written: frozenset[Path]


def judged(kind: Kind, seed: int, limits: Limits, baseline: Baseline) -> Outcome:
    """Make the file of a seed, open it, and judge what happened."""
    home = Path(mkdtemp(prefix="hostile-"))
    folder, temporary, outside = (home / name for name in ("here", "tmp", "outside"))
    for made in (folder, temporary, outside):
        made.mkdir()
    try:
        place = Place(folder, outside / "marker")
        sample = _made(kind, seed, place)
        before = _files(home)
        expected = baseline.memory + sample.weights
        code, seconds, peak = _watched(lambda: _command(sample, folder, temporary), limits, expected)
        said = "".join((outside / name).read_text(errors="surrogateescape") for name in ("stdout", "stderr"))
        written = _files(home) - before - baseline.written
        memory = max(peak - expected, 0)
        return Outcome(kind.name, seed, code, seconds, memory, said, _wrong(kind, code, memory, said, written, limits))
    finally:
        shutil.rmtree(home)


def _wrong(kind: Kind, code: int | None, memory: int, said: str, written: frozenset[Path], limits: Limits) -> str:
    told = said.count("structprune-report: ")
    faults = {
        "did not end within its limits": code is None,
        f"took {memory / 1e9:.1f} GB": memory > limits.memory,
        f"wrote {', '.join(map(str, written))}": bool(written),
        "sent control characters": _CONTROL.search(said) is not None,
        "printed a traceback": "Traceback (most recent" in said,
        f"exit code {code}": code is not None and code not in kind.codes,
        f"{told} messages for a refusal": code == 2 and told != 1,
    }
    return "; ".join(fault for fault, is_so in faults.items() if is_so)


def _files(home: Path) -> frozenset[Path]:
    return frozenset(path.relative_to(home) for path in home.rglob("*") if "__pycache__" not in path.parts)


def baseline_of(limits: Limits) -> Baseline:
    """Run the process that the others are compared with."""
    from tests.hostile.writing import network, saved

    home = Path(mkdtemp(prefix="hostile-"))
    try:
        for name in ("here", "tmp", "outside"):
            (home / name).mkdir()
        sample = Sample(saved(home / "here" / "model.pt", network()))
        code, _, peak = _watched(lambda: _command(sample, home / "here", home / "tmp"), limits, 0)
        said = (home / "outside" / "stderr").read_text()
        written = _files(home)
        assert code in (0, 3), f"the good file was not opened: {code} {said}"
        return Baseline(peak, written)
    finally:
        shutil.rmtree(home)


def _made(kind: Kind, seed: int, place: Place) -> Sample:
    """Make a file, in a process too: some are made of gigabytes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with _last_resort(), os.fdopen(writer, "w") as out:
            sample = kind.sample(seed, place)
            json.dump([str(sample.path), sample.arguments, sample.weights], out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as given:
        text = given.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"{kind.name}, seed {seed}: cannot be made"
    path, arguments, weights = json.loads(text)
    return Sample(Path(path), tuple(arguments), weights)


def _command(sample: Sample, folder: Path, temporary: Path) -> int:
    """``python -m structprune`` on a file, from its folder."""
    import tempfile

    from structprune.report.cli import main

    os.chdir(folder)
    sys.path.insert(0, "")
    os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = str(temporary)
    outside = folder.parent / "outside"
    with (outside / "stdout").open("w") as out, (outside / "stderr").open("w") as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                return main([str(sample.path), *sample.arguments, *_QUICK])
            except SystemExit as left:
                return left.code if isinstance(left.code, int) else 1
            except BaseException:
                traceback.print_exc(file=err)
                return 1


def _watched(work: Callable[[], int], limits: Limits, expected: int) -> tuple[int | None, float, int]:
    """Exit code, seconds and peak memory of a process that does something; it is stopped beyond its limits."""
    gc.collect()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        with _last_resort():
            os._exit(work())
    peak = 0
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        seconds = time.monotonic() - start
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code, seconds, max(peak, usage.ru_maxrss * 1024)
        with contextlib.suppress(OSError, IndexError):
            peak = max(peak, int(Path(f"/proc/{child}/statm").read_text().split()[1]) * _PAGE)
        # The baseline is not known while it is measured.
        if seconds > limits.seconds or (expected and peak > expected + 2 * limits.memory):
            os.kill(child, 9)
            os.waitpid(child, 0)
            return None, seconds, peak
        time.sleep(0.02)


@contextlib.contextmanager
def _last_resort():  # type: ignore[no-untyped-def]
    """A child never goes on as if it were its parent."""
    try:
        yield
    except BaseException:
        traceback.print_exc(file=io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True))
        os._exit(70)
