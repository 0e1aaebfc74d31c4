"""Whether a measurement had the machine to itself."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

# An idle machine shows 1 to 5 % here, one busy process on two cores 60 %.
_MOST_WAITING = 0.15
_MOST_STOLEN = 0.05
# Blocks of an idle machine spread by 2 to 10 %.
_MOST_SPREAD = 0.25


class Watch:
    """Looks at how long threads of this process wait for a core while something is measured.

    On Linux the scheduler counts that per thread (``/proc/self/task/*/schedstat``, see the kernel's
    ``sched-stats`` documentation), and the time that a hypervisor takes away (``/proc/stat``, *steal*).
    Elsewhere the load average has to do.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = _waited()
        self._stolen = _stolen()

    def verdict(self, samples: Sequence[float]) -> str:
        """Why the timings cannot be trusted, or ``""``.

        Args:
            samples: The timings, in seconds, of something that takes the same time whenever it is done.
        """
        seconds = time.perf_counter() - self._start
        waited, stolen = _waited(), _stolen()
        if waited is not None and self._waited is not None:
            share = (waited - self._waited) / seconds
            if share > _MOST_WAITING:
                return f"its threads waited for a core {share:.2f} s in every second: other programs use the CPU"
        elif (load := _foreign_load()) > 0.5:
            return f"the load of other programs is {load:.1f} cores"
        if stolen is not None and self._stolen is not None:
            share = (stolen - self._stolen) / seconds / (os.cpu_count() or 1)
            if share > _MOST_STOLEN:
                return f"the hypervisor took {share:.0%} of the CPU time away"
        low, middle, high = np.percentile(np.asarray(samples), (25, 50, 75))
        if len(samples) >= 4 and (high - low) / middle > _MOST_SPREAD:
            return (
                f"the timings spread by {(high - low) / middle:.0%} between their quartiles: other load, or a clock "
                "that changes (throttling, power saving)"
            )
        return ""


def _waited() -> float | None:
    """Seconds that the threads of this process were ready to run and had no core."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return None
    total = 0
    for task in tasks.iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[1])
        except (OSError, IndexError):
            # A thread that has ended; a kernel without these numbers leaves the total at 0.
            continue
    return total / 1e9 if total else None


def _stolen() -> float | None:
    """Seconds that a hypervisor ran something else on this machine's cores."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def _foreign_load() -> float:
    """Cores that other programs use, by the load average of the last minute, where there is one."""
    if not hasattr(os, "getloadavg"):
        return 0.0
    return os.getloadavg()[0] - torch.get_num_threads()


def device_name(device: torch.device) -> str:
    """The name of an accelerator or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return _cpu_name()
    return str(device)


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "CPU"
