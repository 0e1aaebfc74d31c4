"""The page on the random networks of the second generator."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.wild.judge import Verdict

_ABOUT = """
`python -m tests.wild` makes this page. Each network is a stem, one to four blocks of any of the kinds below, two heads
and a container of outputs, all drawn from a seed. It is pruned with random options; what was kept is recovered from the
values, and the cut network is compared in float64 with the dense one whose removed slices are zero, in evaluation and
in training mode. Each is planned a second time after another network was pruned, which must give the same plan.
""".strip().splitlines()


@dataclass
class _Row:
    networks: int = 0
    cut: int = 0
    own: int = 0
    refused: int = 0
    wrong: int = 0
    foreign: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def line(verdict: Verdict) -> str:
    """One network that is not right."""
    r = verdict.recipe
    said = " ".join(verdict.said.split())
    return (
        f"seed {r.seed}: {verdict.outcome}; {r.stem} | {', '.join((*r.blocks, *r.tail))} | {r.order}, {r.container}, "
        f"{r.ratio}, {r.granularity}, keep_representation={r.keep_representation}: {said[:300]}"
    )


def page(verdicts: Sequence[Verdict]) -> str:
    """The page in Markdown."""
    outcomes = Counter(v.outcome for v in verdicts)
    cut = sum(v.removed > 0 for v in verdicts)
    removed = [v.removed for v in verdicts]
    full = [v.removed for v in verdicts if v.recipe.granularity == "channel" and not v.recipe.keep_representation]
    lines = [
        "# Random networks of the code that people write",
        "",
        *_ABOUT,
        "",
        "| | networks |",
        "|---|---:|",
        f"| in all | {len(verdicts)} |",
        f"| cut and right | {outcomes['right']} |",
        f"| wrong | {outcomes['wrong']} |",
        f"| an error that is not structprune's | {outcomes['foreign']} |",
        f"| refused, with a reason | {outcomes['refused']} |",
        f"| nothing went | {outcomes['uncut']} |",
        f"| masking changed nothing, so no verdict | {outcomes['no verdict']} |",
        "",
        f"{cut / max(1, len(verdicts)):.1%} were cut. The median share of parameters that went is "
        f'{statistics.median(removed):.0%}; {statistics.median(full or [0]):.0%} at granularity `"channel"` without '
        "`keep_representation`.",
        "",
        "| Kind of block | networks | cut | the block itself cut | refused | wrong | foreign | why refused |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for kind, row in sorted(_rows(verdicts).items()):
        reasons = "; ".join(f"{why} ({n})" for why, n in row.reasons.most_common(2))
        lines.append(
            f"| {kind} | {row.networks} | {row.cut} | {row.own} | {row.refused} | {row.wrong} | {row.foreign} |"
            f" {reasons} |"
        )
    return "\n".join(lines) + "\n"


def _rows(verdicts: Sequence[Verdict]) -> dict[str, _Row]:
    rows: defaultdict[str, _Row] = defaultdict(_Row)
    for verdict in verdicts:
        kinds = (*verdict.recipe.blocks, *verdict.recipe.tail)
        own = dict.fromkeys(kinds, False)
        for kind, was_cut in zip(kinds, verdict.cut or [False] * len(kinds), strict=True):
            own[kind] |= was_cut
        for kind, was_cut in own.items():
            row = rows[kind]
            row.networks += 1
            row.cut += verdict.removed > 0
            row.own += was_cut
            row.wrong += verdict.outcome == "wrong"
            row.foreign += verdict.outcome == "foreign"
            if verdict.outcome == "refused":
                row.refused += 1
                row.reasons[verdict.said.split(":")[0]] += 1
    return dict(rows)
