"""Prunes random networks of the code that people write, judges each, and writes the table.

A network that is not right is named by its seed: ``python -m tests.wild --seeds 17`` runs it alone.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.support.wild.judge import Verdict, judge_seeds
from tests.wild.page import line, page

CHUNK = 25


def main() -> int:
    """Judge the networks; 0 if none is wrong, none crashes and nine of ten are cut."""
    options = _options()
    seeds = options.seeds or list(range(options.start, options.start + options.count))
    chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
    verdicts: list[Verdict] = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for found in pool.map(judge_seeds, chunks):
            verdicts += found
            for verdict in found:
                if verdict.outcome != "right":
                    print(line(verdict), flush=True)
            print(f"[{len(verdicts)}/{len(seeds)}]", flush=True)
    text = page(verdicts)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    bad = sum(v.outcome in ("wrong", "foreign") for v in verdicts)
    return 0 if not bad and sum(v.removed > 0 for v in verdicts) >= 0.9 * len(verdicts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.wild", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="how many networks")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, nargs="+", help="these networks instead")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
