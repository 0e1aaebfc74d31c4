"""Other networks, set beside the one of the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from structprune.transfer import Frontier
from transfer.markdown import between, table


def summary(document: dict[str, Any]) -> dict[str, Any]:
    """What the page says of a network: its setting, gains, granularities, and what a cut alone costs."""
    frontier, settings = Frontier.from_json(json.dumps(document["frontier"])), document["settings"]
    return {
        **{name: settings[name] for name in ("quick", "expansion", "steps", "pretraining_steps", "pretraining_error")},
        "improvement": {granularity: frontier.improvement(granularity) for granularity in ("filter", "channel")},
        "near": frontier.against("filter", "channel", tasks=document["near"]),
        "after_the_cut": document["after_the_cut"],
    }


def streams(networks: Sequence[dict[str, Any]]) -> str:
    """What the width of the residual stream has to do with it."""
    networks = sorted((one for one in networks if one["after_the_cut"]), key=lambda one: one["expansion"])
    if not networks:
        return ""
    rows, cuts = [], []
    for one in networks:
        improvements = (one["improvement"][granularity] for granularity in ("filter", "channel"))
        gains = [f"{gain:.0%} ({between(band)})" for gain, band in improvements]
        against, band = one["near"]
        trained = [f"{one['pretraining_steps']:,}", f"{one['steps']}"]
        rows.append([f"{one['expansion']}", *trained, *gains, f"{against:.1%} ({between(band, '.1%')})"])
        errors = {(share, granularity): error for share, granularity, _, error in one["after_the_cut"]}
        inside = {(share, granularity): width for share, granularity, width, _ in one["after_the_cut"]}
        for share in sorted({share for share, _ in errors}, reverse=True):
            both = [f"{errors[share, g]:.1%} ({inside[share, g]})" for g in ("filter", "channel")]
            cuts.append([f"{one['expansion']}", f"{one['pretraining_error']:.1%}", f"{share:g}", *both])
    alike: dict[tuple[int, int], list[float]] = {}
    for one in networks:
        alike.setdefault((one["pretraining_steps"], one["steps"]), []).append(one["near"][0])
    compared = [order for order in alike.values() if len(order) > 1]
    why = ""
    if compared and all(order == sorted(order, reverse=True) for order in compared):
        why = """The order depends on the network: the wider its residual stream, in widths of the inside of a block,
the better for channels. `"channel"` takes from the stream too, so that for the same MACs it may leave the inside of a
bottleneck wider. A ResNet-50's stream is four times as wide; which of both suits it is for a run on it to say.

"""
    gained = ["filters, low compute", "channels, low compute", "filters against channels, near"]
    return f"""{why}{table(["stream", "pretraining", "dense steps", *gained], rows)}

What the cut alone costs at equal MACs, before any training, with batch norms estimated anew: errors on 500 held-out
samples of the classes of pretraining, of one network each (and the channels that are left inside the first block):

{table(["stream", "dense", "MACs left", "filter", "channel"], cuts)}"""


def commands(document: dict[str, Any]) -> str:
    """How the networks that are set beside were run."""
    if not document.get("beside"):
        return ""
    script = "python examples/compute_optimal_transfer.py"
    own = " --quick" if document["settings"]["quick"] else ""
    runs = [
        f"{script}{' --quick' if one['quick'] else ''} --expansion {one['expansion']} --out build/transfer/stream-"
        f"{one['expansion']}"
        for one in document["beside"]
    ]
    files = " ".join(f"build/transfer/stream-{one['expansion']}/results.json" for one in document["beside"])
    runs.append(f"{script}{own} --docs docs --beside {files}")
    lines = "\n".join(runs)
    return f"""With other networks beside it:

```bash
{lines}
```

"""
