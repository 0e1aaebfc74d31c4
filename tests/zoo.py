"""Prunes whole families of published networks and writes the table: ``make zoo``.

One process a model, with a time and a memory limit; results are stored as they come, so that a
run which was stopped goes on where it was. Every model is pruned at 0.5 in both granularities,
judged by the oracle of the tests (in evaluation), run in training mode, and proved in float64.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GRANULARITIES = ("filter", "channel")


def main() -> int:
    """Run the models that have no result yet; 0 if all of them are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="default: torchvision's classification models without attention")
    parser.add_argument("--out", type=Path, default=Path("build/zoo"), help="folder of the results")
    parser.add_argument("--seconds", type=int, default=600, help="time limit a model")
    parser.add_argument("--gigabytes", type=int, default=20, help="memory limit a model")
    parser.add_argument("--fresh", action="store_true", help="run again what has a result")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(judge(arguments.one)))
        return 0
    from tests.support.vision import classification_models

    names = arguments.models or classification_models()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for done, name in enumerate(names, start=1):
        path = arguments.out / f"{name}.json"
        if arguments.fresh or not path.exists():
            path.write_text(json.dumps(in_process(name, arguments.seconds, arguments.gigabytes)))
        results[name] = json.loads(path.read_text())
        print(f"[{done}/{len(names)}] {summary(name, results[name])}", flush=True)
    table = markdown(results)
    (arguments.out / "zoo.md").write_text(table)
    if arguments.markdown:
        arguments.markdown.write_text(table)
    right = sum(is_right(r) for r in results.values())
    print(f"{right} of {len(results)} models pruned, right and proved in both granularities")
    return 0 if right == len(results) else 1


def in_process(name: str, seconds: int, gigabytes: int) -> dict[str, Any]:
    """Judge a model in a process of its own."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))

    command = [sys.executable, "-W", "ignore", "-m", "tests.zoo", "--one", name]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, preexec_fn=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {seconds} s"}
    if run.returncode:
        return {"error": (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1][:500]}
    result: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return result


def judge(name: str) -> dict[str, Any]:
    """Prune one model in both granularities and judge the results."""
    import torch

    import structprune
    from tests.support import oracle, vision

    model = oracle.randomise(vision.build(name))
    size = vision.image_size(name)
    example = torch.zeros(1, 3, size, size, dtype=torch.float64)
    images = torch.randn(1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {}
    for granularity in GRANULARITIES:
        start = time.perf_counter()
        plan = structprune.plan_pruning(model, 0.5, granularity, example_inputs=example, round_to=1)  # type: ignore[arg-type]
        pruned = plan.apply(model)
        seconds = time.perf_counter() - start
        entry: dict[str, Any] = {"params": plan.params, "macs": plan.macs, "seconds": round(seconds, 2)}
        try:
            entry["oracle_power"] = oracle.check(model, pruned, images)
        except oracle.WrongCut as error:
            entry["wrong"] = str(error)
        proof = structprune.prove(model, pruned, example)
        entry |= {"proved": proof.proved, "error": proof.max_error, "power": proof.power, "reason": proof.reason}
        with torch.no_grad():
            trained = pruned.train()(torch.cat([images, images]))
        expected = 3 if name == "googlenet" else 2 if name == "inception_v3" else 1
        entry["trains"] = (len(trained) if isinstance(trained, tuple) else 1) == expected
        found[granularity] = entry
        del pruned
    return found


def is_right(result: dict[str, Any]) -> bool:
    """Whether both granularities are pruned, agree with the oracle, are proved and run in training."""
    return "error" not in result and all(
        "wrong" not in r and r["oracle_power"] > 1e-3 and r["proved"] and r["error"] <= 1e-10 and r["trains"]
        for r in (result[g] for g in GRANULARITIES)
    )


def summary(name: str, result: dict[str, Any]) -> str:
    """One line on a model."""
    if "error" in result:
        return f"{name}: {result['error']}"
    parts = []
    for granularity in GRANULARITIES:
        r = result[granularity]
        left = r["params"][1] / r["params"][0]
        state = r.get("wrong") or r["reason"] or f"error {r['error']:.0e} power {r['power']:.0e}"
        parts.append(
            f"{granularity} {left:.0%} left, {state}, {r['seconds']} s{'' if r['trains'] else ', FAILS in training'}"
        )
    return f"{name}: {'; '.join(parts)}"


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """``docs/zoo.md``."""
    right = sum(is_right(r) for r in results.values())
    lines = [
        "# The zoo",
        "",
        "Generated by `make zoo`; no number here is typed by hand.",
        "",
        f"{right} of {len(results)} classification networks of torchvision (those without attention), pruned at 0.5",
        "with `round_to=1` in both granularities. Every one was judged by the tests' oracle, which recovers the cut by",
        "value and knows nothing of plans; was proved in float64 with random weights; and ran in evaluation and in",
        "training mode, auxiliary heads included. *proof* is the largest error against the masked dense network,",
        "relative to the largest output.",
        "",
        "| model | filter: parameters left | MACs left | proof | channel: parameters left | MACs left | proof |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        if "error" in result:
            lines.append(f"| {name} | {result['error']} | | | | | |")
            continue
        cells = []
        for granularity in GRANULARITIES:
            r = result[granularity]
            proof = f"{r['error']:.0e}" if r["proved"] and "wrong" not in r else r.get("wrong") or r["reason"]
            cells += [f"{r['params'][1] / r['params'][0]:.1%}", f"{r['macs'][1] / r['macs'][0]:.1%}", proof]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
