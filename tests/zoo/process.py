"""A judge in a process of its own, under limits; what it found before it was stopped is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

# A judge reports a part of its result; parts of one name are merged.
Emit = Callable[[dict[str, Any]], None]

_MARK = "zoo-result "  # networks print, too


class Limits(NamedTuple):
    """What one process may take."""

    seconds: int
    gigabytes: int


def run(side: str, key: str, limits: Limits) -> dict[str, Any]:
    """Judge a network; under ``error`` why the result is not complete, if it is not."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.zoo.worker", side, key, str(limits.gigabytes)]
    problem = ""
    try:
        done = subprocess.run(command, capture_output=True, timeout=limits.seconds, check=False)
        output = done.stdout
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            problem = said[-1][:400] if said else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as stopped:
        output = stopped.stdout or b""
        problem = f"took longer than {limits.seconds} s"
    result = merged(output.decode(errors="replace"))
    doing = result.pop("doing", "start")
    if problem:
        result["error"] = f"{problem} ({doing})"
    return result


def emit(part: dict[str, Any]) -> None:
    """Report a part of the result to the parent."""
    print(f"\n{_MARK}{json.dumps(part)}", flush=True)


def described(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


def merged(output: str) -> dict[str, Any]:
    """The parts that a judge reported, put together."""
    result: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith(_MARK) and line.endswith("}"):
            for name, value in json.loads(line.removeprefix(_MARK)).items():
                if isinstance(value, dict) and isinstance(result.get(name), dict):
                    result[name].update(value)
                else:
                    result[name] = value
    return result
