"""Nothing that a terminal would obey reaches it, whatever a file, a path or an error says."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.table import Table
from torch import nn

from structprune.report import cli
from structprune.report.cli import main
from structprune.report.page import page
from structprune.report.printable import PlainConsole, printable
from structprune.report.study import ModuleShare, Prunable, Report
from structprune.report.terminal import show
from tests.report.files import QUICK, run

# Two languages of the terminal, its 8-bit form, the line start, a deletion, a text that runs backwards.
ESCAPES = ["\x1b]0;owned\x07", "\x1b[2J", "\x9b2J", "a\rb", "a\x7f\x08b", "a\u202eb", "a\u2066b\u200b", "\udc80"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, 1.5 \u2502 \u4e2d\u00e9", "plain, 1.5 \u2502 \u4e2d\u00e9"),
        ("two\nlines", "two\nlines"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b\r\t\0\x7f", r"\x9b\r\t\x00\x7f"),
        ("a\u202eb\u200b", r"a\u202eb\u200b"),
        ("\udc80", r"\udc80"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(printable(text)) == shown


def test_line_ends_are_written_out_within_a_line() -> None:
    assert printable("a\nb", lines=False) == r"a\nb"


def _seen(text: str, allowed: str = "\n") -> bool:
    return all(character.isprintable() or character in allowed for character in text)


@pytest.mark.parametrize("escape", ESCAPES)
def test_consoles_print_text_only(escape: str) -> None:
    for way in ("text", "table", "title", "object"):
        out = io.StringIO()
        console = PlainConsole(file=out, width=60)
        table = Table(escape, title=escape)
        table.add_row(escape)
        shown: Any = {"text": escape, "table": table, "title": table, "object": [escape]}[way]
        console.print(shown)
        assert _seen(out.getvalue()), way


def test_a_console_on_a_terminal_keeps_its_own_colours() -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, width=60, force_terminal=True, color_system="standard", highlight=False)
    console.print("\x1b[2Jred", style="red")
    assert out.getvalue() == "\x1b[31m\\x1b[2Jred\x1b[0m\n"


@pytest.mark.parametrize("escape", ESCAPES)
def test_every_text_of_a_report_is_shown_as_text(escape: str) -> None:
    report = Report(
        model=escape, source=escape, inputs=escape, params=1, macs=1, device=escape, circumstances=escape,
        modules=[ModuleShare(escape, escape, 1, 1)], groups=[Prunable(escape, 2, 1, escape)], frozen={escape: escape},
        uncounted={escape: 1}, notes=[escape], nothing=f"{escape}\n{escape}", verdict=escape,
    )  # fmt: skip
    out = io.StringIO()
    show(report, PlainConsole(file=out, width=80, markup=False))
    assert _seen(out.getvalue())
    assert _seen(report.to_json())
    if not escape.startswith("\udc80"):
        assert _seen(page(report), "\n\t")


@pytest.mark.parametrize("escape", [e for e in ESCAPES if "\udc80" not in e])
@pytest.mark.parametrize("kind", ["name", "key", "path", "missing", "option", "architecture"])
def test_what_files_and_arguments_say_is_shown_as_text(
    kind: str, escape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / (f"m{escape}.pt" if kind == "path" else "model.pt")
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    if kind == "name":
        model.add_module(f"x{escape}", nn.Linear(4, 4))
    torch.save({f"x{escape}": torch.ones(1)} if kind in ("key", "architecture") else model, path)
    arguments = {
        "missing": [tmp_path / f"no{escape}.pt"],
        "option": [path, f"--{escape}"],
        "key": [path, "--arch", "structprune.demo:resnet50"],
        "architecture": [path, "--arch", f"structprune.demo:{escape}"],
    }.get(kind, [path])
    try:
        code, out, err = run(capsys, *arguments, *QUICK)
    except SystemExit as left:
        code, (out, err) = left.code, capsys.readouterr()
    assert code == (0 if kind == "path" else 2)
    assert _seen(out) and _seen(err)
    assert out + err != ""


def test_errors_of_other_code_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("\x1b[2J")

    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2), path)
    monkeypatch.setattr(cli, "study", broken)
    code, _, err = run(capsys, path, *QUICK)
    assert (code, err.count("structprune-report: ")) == (2, 1)
    assert r"the network in it cannot be studied (ZeroDivisionError: \x1b[2J). Try it in Python" in err


def test_help_is_printable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["\x1b[2J"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert _seen(capsys.readouterr().out)
