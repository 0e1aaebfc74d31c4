"""Opens hostile files, each in a process of its own, and writes the table.

``python -m tests.hostile --count 300 --markdown docs/hostile-files.md``
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import structprune
from tests.hostile.harmful import HARMFUL
from tests.hostile.headers import small
from tests.hostile.kinds import KINDS
from tests.hostile.page import page
from tests.hostile.process import Limits, Outcome, baseline_of, judged

for _part in ("calls", "floods", "tensors", "archives", "programs", "headers"):
    importlib.import_module(f"tests.hostile.{_part}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Open the files; 0 if each was refused, or nothing came of it."""
    options = _options(arguments)
    # A pool of threads does not survive a fork.
    torch.set_num_threads(1)
    # What a command loads on its way is loaded once, before the first process begins: memory is counted above it.
    importlib.import_module("structprune.report.cli")
    structprune.prune_model(small(), 0.5, example_inputs=torch.zeros(1, 8))
    limits = Limits(options.seconds, int(options.gigabytes * 1e9))
    table = HARMFUL if options.harmful else KINDS
    kinds = [kind for name, kind in table.items() if not options.only or options.only in name]
    baseline = baseline_of(limits)
    outcomes: list[Outcome] = []
    for number in range(options.count or len(kinds)):
        outcome = judged(kinds[number % len(kinds)], options.seed + number // len(kinds), limits, baseline)
        outcomes.append(outcome)
        if outcome.wrong or options.verbose:
            said = outcome.said if options.verbose else outcome.said[-2000:]
            print(f"{outcome.kind} (seed {outcome.seed}): {outcome.wrong or 'well'} {outcome.seconds:.1f} s "
                  f"{outcome.memory / 1e6:.0f} MB\n{said!r:.1500}", flush=True)  # fmt: skip
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    print(f"{len(outcomes)} files of {len(kinds)} kinds, {len(wrong)} not as they should be")
    if options.markdown:
        options.markdown.write_text(page(outcomes, limits, baseline), encoding="utf-8")
    return 1 if wrong else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--count", type=int, default=0, help="how many files; default one of each kind")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--seconds", type=float, default=20, help="for one file, default 20")
    parser.add_argument("--gigabytes", type=float, default=2, help="beyond the weights, default 2")
    parser.add_argument("--markdown", type=Path, help="write the table")
    parser.add_argument("--harmful", action="store_true", help="files that are trusted and do harm, to see it noticed")
    parser.add_argument("--verbose", action="store_true", help="print what was said to each")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
