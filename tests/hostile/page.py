"""The table of hostile files."""

from __future__ import annotations

from collections.abc import Sequence

from tests.hostile.kinds import HARMLESS, KINDS
from tests.hostile.process import Baseline, Limits, Outcome

_HEAD = """\
# Hostile files

`structprune-report` was given {count} files of {kinds} kinds that are made to run code, to fill the memory, to hang,
to write files or to send escape sequences to the terminal. Each was opened in a process of its own, from the folder
that the file is in, with {seconds:g} seconds and {gigabytes:g} GB beyond the weights: beyond the peak of a process that
studies a good network whose values weigh nothing ({baseline:.0f} MB), and the bytes of values that the file really
holds. The processes are forked from one that has loaded structprune. `--no-latency` was given, so that no time goes
into measuring.

A process is right if it ends within its limits, writes no file (in its folder, its `TMPDIR`, its `HOME`, or where the
file asks for it), imports nothing that lies beside the file, prints no control character and no traceback, and ends
with exit code 2 and one message. The files of kinds marked with \u2020 are odd rather than hostile, or hostile only to
the terminal: they may also be studied as what they are, if nothing comes of it.

**{well} of {count} were right.**

| what the file tries | files | refused | opened harmlessly | worst seconds | worst MB |
|---|---|---|---|---|---|
"""
_TAIL = """
Made by `python -m tests.hostile --count {count} --markdown docs/hostile-files.md`; `tests/hostile/` has the generators.
One file of each kind is opened by `make test`.
"""


def page(outcomes: Sequence[Outcome], limits: Limits, baseline: Baseline) -> str:
    """The markdown."""
    names = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    rows = [_row(name, [o for o in outcomes if o.kind == name]) for name in names]
    head = _HEAD.format(
        count=len(outcomes),
        kinds=len(names),
        seconds=limits.seconds,
        baseline=baseline.memory / 1e6,
        gigabytes=limits.memory / 1e9,
        well=sum(not outcome.wrong for outcome in outcomes),
    )
    return head + "\n".join(rows) + "\n" + _TAIL.format(count=len(outcomes))


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    refused = sum(outcome.code == 2 and not outcome.wrong for outcome in outcomes)
    opened = sum(outcome.code in (0, 3) and not outcome.wrong for outcome in outcomes)
    mark = " \u2020" if KINDS[name].codes == HARMLESS else ""
    seconds = max(outcome.seconds for outcome in outcomes)
    memory = max(outcome.memory for outcome in outcomes) / 1e6
    return (
        f"| {KINDS[name].tries}{mark} | {len(outcomes)} | {refused} | {opened or ''} | {seconds:.1f} | {memory:.0f} |"
    )
