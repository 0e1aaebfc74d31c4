"""Prunes families of published networks, beside torch-pruning, and writes the table: ``make zoo``.

One process for a network and a tool, with a time and a memory limit; results are stored as they come, so that a run
which was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.zoo.families import Network, networks
from tests.zoo.figures import figures
from tests.zoo.page import page
from tests.zoo.process import Limits, run
from tests.zoo.store import Pair, Store, conditions
from tests.zoo.structprune_judge import GRANULARITIES
from tests.zoo.verdict import is_accepted, is_right, their_trouble, trouble


def main() -> int:
    """Run the networks that have no result yet and report on all; 0 if all of them are right."""
    options = _options()
    store = Store(options.out)
    chosen = [n for n in networks() if _matches(n, options.only)]
    if not chosen:
        print(f"no network matches {' '.join(options.only)}", file=sys.stderr)
        return 2
    if not options.report_only:
        _run(chosen, store, options)
    pairs = store.pairs(chosen)
    _write(store.pairs(networks()), options)
    accepted = sum(is_accepted(pair.ours) for pair in pairs)
    print(f"{accepted} of {len(chosen)} networks right in both granularities (or nothing to prune as filters)")
    return 0 if accepted == len(chosen) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="such as resnet18, timm:*, *:vit*")
    parser.add_argument("--out", type=Path, default=Path("build/zoo"), help="folder of the results")
    parser.add_argument("--seconds", type=int, default=600, help="time limit of a process, which proves as well")
    parser.add_argument("--their-seconds", type=int, default=150, help="time limit of torch-pruning's process")
    parser.add_argument("--gigabytes", type=int, default=11, help="address space of a process")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--fresh", action="store_true", help="run again what has a result")
    parser.add_argument("--no-torch-pruning", action="store_true", help="run structprune alone")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write from the stored results")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    return parser.parse_args()


def _matches(network: Network, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns for name in (network.key, network.name))


def _run(chosen: Sequence[Network], store: Store, options: argparse.Namespace) -> None:
    limits = {"structprune": Limits(options.seconds, options.gigabytes)}
    if not options.no_torch_pruning:
        limits["torch-pruning"] = Limits(options.their_seconds, options.gigabytes)

    def judged(network: Network) -> Pair:
        for side, limit in limits.items():
            if options.fresh or not store.has(side, network):
                about = conditions(limit, options.jobs)
                store.write(side, network, {"conditions": about, **run(side, network.key, limit)})
        return Pair(network, store.read("structprune", network), store.read("torch-pruning", network))

    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for done, pair in enumerate(pool.map(judged, chosen), start=1):
                print(f"[{done}/{len(chosen)}] {_line(pair)}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _write(pairs: Sequence[Pair], options: argparse.Namespace) -> None:
    """All results in one file, and the page: of every network with a result, whatever this run was asked for."""
    everything: dict[str, Any] = {
        "figures": figures(pairs),
        "networks": {p.network.key: {"structprune": p.ours, "torch-pruning": p.theirs} for p in pairs},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(everything, indent=1))
    text = page(pairs)
    (options.out / "zoo.md").write_text(text)
    if options.markdown:
        options.markdown.write_text(text)


def _line(pair: Pair) -> str:
    parts = []
    for granularity in GRANULARITIES:
        entry = pair.ours.get(granularity, {})
        verdict = f"error {entry['error']:.0e}" if is_right(entry) else trouble(pair.ours, granularity)[:150]
        shown = f"-{entry['removed']:.0%} in {entry['seconds']:.2f} s, " if "removed" in entry else ""
        whole = f", {entry['left_whole']} left whole" if entry.get("left_whole") else ""
        parts.append(f"{granularity} {shown}{verdict}{whole}")
    if pair.theirs:
        why = their_trouble(pair)[:150]
        shown = "" if why else f"-{pair.theirs['removed']:.0%} in {pair.theirs.get('seconds')} s"
        parts.append(f"torch-pruning {shown or why}")
    return f"{pair.network.key}: {'; '.join(' '.join(part.split()) for part in parts)}"


if __name__ == "__main__":
    sys.exit(main())
