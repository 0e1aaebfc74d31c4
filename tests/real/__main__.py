"""Measures pruning methods on trained networks and writes the page: ``make real``.

Results are stored as they come, so that a run which was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.real.measure import measured, methods
from tests.real.methods import Method
from tests.real.networks import NETWORKS
from tests.real.page import page
from tests.real.results import Results
from tests.real.subject import Subject, Unavailable

POINTS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)


def main() -> int:
    """Measure what has no result yet and write the page."""
    options = _options()
    results = Results(options.out)
    for pattern in options.again:
        results.forget(pattern)
    if not options.report_only:
        torch.set_num_threads(1)
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        chosen = [m for m in methods() if any(fnmatch.fnmatchcase(m.key, p) for p in options.methods)]
        names = [n for n in NETWORKS if any(fnmatch.fnmatchcase(n, p) for p in options.networks)]
        if not chosen or not names:
            print("no method or no network matches", file=sys.stderr)
            return 2
        for name in names:
            _run(name, chosen, options.points, results)
    if options.markdown:
        options.markdown.write_text(page(results))
    return 0


def _run(name: str, chosen: Sequence[Method], points: Sequence[float], results: Results) -> None:
    """One network; it is loaded only if something is missing."""
    missing = [(m, share) for m in chosen for share in points if not results.has(name, m.key, share)]
    if not missing:
        return
    try:
        subject = NETWORKS[name].build()
    except Unavailable as reason:
        print(f"{name}: skipped, {reason}", flush=True)
        results.skip(name, str(reason))
        return
    for number, (method, share) in enumerate(missing, start=1):
        print(f"[{number}/{len(missing)}] {name} {share:.2f} {method.key}: ", end="", flush=True)
        print(_one(name, subject, method, share, results), flush=True)


def _one(name: str, subject: Subject, method: Method, share: float, results: Results) -> str:
    """Measure and store; what happened, in a line."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            record = measured(subject, method, share)
        except Unavailable as reason:
            results.skip(method.key.partition(":")[0], str(reason))
            return f"skipped, {reason}"
    results.add(name, method.key, share, record)
    if "refused" in record:
        return f"refused: {record['refused']}"
    figures = " ".join(f"{name} {value:g}" for name, value in record["measures"].items())
    return f"loss {record['loss']:.4g} {figures} macs {record['macs']:.3f} in {record['seconds']} s"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.real", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["*"], metavar="PATTERN", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--methods", nargs="+", default=["*"], metavar="PATTERN", help="such as 'structprune: *'")
    parser.add_argument("--points", nargs="+", type=float, default=POINTS, metavar="SHARE", help="of the MACs, left")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/quality.json"), help="file of the results")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    parser.add_argument("--report-only", action="store_true", help="measure nothing, write from the stored results")
    parser.add_argument("--again", nargs="+", default=[], metavar="PATTERN", help="methods to measure again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
