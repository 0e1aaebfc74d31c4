"""The rooms of the package, as the code has them: ``python -m tests.support.architecture`` writes the page's tables."""

from __future__ import annotations

import ast
from pathlib import Path

import structprune
from structprune.resolve.guesses import AFTER_FAILURE, AFTER_SUCCESS

PACKAGE = Path(structprune.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
# Every room may import those before it; the order of the data.
ORDER = (
    "compat errors progress inputs ir ops meta measure tracing select surgery resolve plan verify compensate hub "
    "planning checkpoint api demo rules"
).split()
# These use public names alone.
ABOVE = ("report", "transfer")


def imports(path: Path) -> set[str]:
    """The rooms that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("structprune"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names} & {*ORDER, *ABOVE}
    return found


def files(room: str) -> list[Path]:
    """The files of a room."""
    folder = PACKAGE / room
    return sorted(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def purpose(room: str) -> str:
    """What the room says of itself."""
    folder = PACKAGE / room
    text = ast.get_docstring(ast.parse((folder / "__init__.py" if folder.is_dir() else files(room)[0]).read_text()))
    return (text or "").splitlines()[0].rstrip(".")


def table() -> str:
    """The rooms in their order: what each is for, what is in it, and whom it imports."""
    lines = ["| room | its one job | files | imports |", "|---|---|---|---|"]
    for room in (*ORDER, *ABOVE):
        names = ", ".join(f"`{f.stem}`" for f in files(room) if f.stem not in ("__init__", room))
        others = {other for file in files(room) for other in imports(file)} & set(ORDER) - {room, "compat", "errors"}
        shown = ", ".join(f"`{other}`" for other in sorted(others, key=ORDER.index))
        lines.append(f"| `{room}` | {purpose(room)} | {names} | {shown if room not in ABOVE else 'public names'} |")
    return "\n".join(lines)


def guesses() -> str:
    """What the search for a consistent cut tries, in its order, and why in this one."""
    rows = [f"| {guess.name} | {guess.reason} |" for guess in (*AFTER_FAILURE, AFTER_SUCCESS)]
    return "\n".join(["| guess | why it comes here |", "|---|---|", *rows])


def main() -> None:
    """Write the tables into the page."""
    page = PAGE.read_text()
    for name, made in (("guesses", guesses()), ("rooms", table())):
        begin, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
