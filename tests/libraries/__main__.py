"""Prunes architectures of other libraries and writes the table: ``make libraries``.

One process for each, with a time and a memory limit; results are stored as they come, so that a run which was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.libraries.architecture import Architecture
from tests.libraries.catalogue import architectures
from tests.libraries.page import Row, is_accepted, page, verdict
from tests.libraries.process import prepare, run
from tests.zoo.families import Network
from tests.zoo.process import Limits
from tests.zoo.store import Store, conditions
from tests.zoo.structprune_judge import GRANULARITIES


def main() -> int:
    """Judge the architectures that have no result yet and report on all; 0 if all of them are right."""
    options = _options()
    store = Store(options.out)
    chosen = [a for a in architectures() if any(fnmatch.fnmatchcase(_key(a), p) for p in options.only)]
    if not chosen:
        print(f"no architecture matches {' '.join(options.only)}", file=sys.stderr)
        return 2
    limits = Limits(options.seconds, options.gigabytes)

    def judged(architecture: Architecture) -> Row:
        network = Network(architecture.library, architecture.name)
        if options.fresh or not store.has("structprune", network):
            about = conditions(limits, 1, ("torch",))
            result = run(architecture, limits)
            store.write("structprune", network, {"conditions": about, **result})
        return Row(network, store.read("structprune", network))

    if not options.report_only:
        prepare()
        for done, row in enumerate(map(judged, chosen), start=1):
            print(f"[{done}/{len(chosen)}] {_line(row)}", flush=True)
    rows = _rows(architectures(), store)
    if options.markdown:
        options.markdown.write_text(page(rows))
    right = sum(is_accepted(row) for row in _rows(chosen, store))
    print(f"{right} of {len(chosen)} architectures right in both granularities, or truly nothing to cut")
    return 0 if right == len(chosen) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.libraries", description=__doc__)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="such as monai:UNet, vit-pytorch:*")
    parser.add_argument("--out", type=Path, default=Path("build/libraries"), help="folder of the results")
    parser.add_argument("--seconds", type=int, default=300, help="time limit of a process, which proves as well")
    parser.add_argument("--gigabytes", type=int, default=11, help="address space of a process")
    parser.add_argument("--fresh", action="store_true", help="run again what has a result")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write from the stored results")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    return parser.parse_args()


def _key(architecture: Architecture) -> str:
    return f"{architecture.library}:{architecture.name}"


def _rows(chosen: Sequence[Architecture], store: Store) -> list[Row]:
    networks = [Network(a.library, a.name) for a in chosen]
    return [Row(n, store.read("structprune", n)) for n in networks if store.has("structprune", n)]


def _line(row: Row) -> str:
    parts = []
    for granularity in GRANULARITIES:
        entry = row.result.get(granularity, {})
        shown = f" -{entry['removed']:.0%} params -{entry['macs_removed'] or 0:.0%} macs" if "removed" in entry else ""
        parts.append(f"{granularity}{shown} {verdict(row, granularity)} [{entry.get('oracle', '')[:40]}]")
    return f"{row.network.key}: {'; '.join(' '.join(part.split()) for part in parts)}"


if __name__ == "__main__":
    sys.exit(main())
