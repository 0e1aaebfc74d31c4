"""The file of finished trials, from which a call goes on that was interrupted."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from structprune.errors import OptionError

_FORMAT, _VERSION = "structprune.sensitivity", 1


class TrialsFile:
    """Scores of trials, each written as soon as it is known.

    Args:
        path: The JSON file; it may exist already. ``None``: nothing is written.
        model: Class name of the model.
        shapes: Shapes of its tensors by name.
        settings: What the trials are planned with, as JSON has it.
        ratios: The shares that are tried.

    Attributes:
        dense: The score of the dense model, once it is known.
        scores: The score of every finished trial, by the names of the groups that are cut together and the ratio.
        last: The score of the last one.

    Raises:
        OptionError: The file is one of other trials, or cannot be read or written.
    """

    def __init__(
        self,
        path: Path | None,
        model: str,
        shapes: Mapping[str, Sequence[int]],
        settings: Mapping[str, Any],
        ratios: Sequence[float],
    ) -> None:
        self._path = path
        sizes = json.dumps(sorted((name, list(shape)) for name, shape in shapes.items()))
        asked = {
            "model": model,
            "shapes": hashlib.sha256(sizes.encode()).hexdigest(),
            "settings": settings,
            "ratios": list(ratios),
        }
        # As it comes out of a file: with lists for tuples.
        self._asked: dict[str, Any] = json.loads(json.dumps(asked))
        self.dense: float | None = None
        self.scores: dict[tuple[tuple[str, ...], float], float] = {}
        self.last = math.nan
        if path is not None and path.exists():
            self._read(path)
        # The first score may take long, and a path that cannot be written is better known before it.
        self._write()

    def keep_dense(self, score: float) -> None:
        """The dense model is scored."""
        self.dense = score
        self._write()

    def keep(self, names: tuple[str, ...], ratio: float, score: float) -> None:
        """A trial is finished."""
        self.scores[names, ratio] = self.last = score
        self._write()

    def _read(self, path: Path) -> None:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != _FORMAT or document["version"] != _VERSION:
                raise ValueError(f"its format is no {_FORMAT} of version {_VERSION}")
            there = {name: document[name] for name in self._asked}
            dense = None if document["dense"] is None else _finite(document["dense"])
            scores = {(tuple(t["groups"]), float(t["ratio"])): _finite(t["score"]) for t in document["trials"]}
        except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise OptionError(
                f"path={str(path)!r} is no file of trials ({type(error).__name__}: {error}): give another path."
            ) from error
        if there != self._asked:
            raise OptionError(
                f"path={str(path)!r} holds trials {_difference(there, self._asked)}: give another path, or remove it."
            )
        self.dense, self.scores = dense, scores

    def _write(self) -> None:
        """Write all of it beside the file, and put that in its place: whatever happens, the file is whole."""
        if self._path is None:
            return
        trials = [{"groups": list(n), "ratio": r, "score": score} for (n, r), score in self.scores.items()]
        document = {"format": _FORMAT, "version": _VERSION, **self._asked, "dense": self.dense, "trials": trials}
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
            os.replace(partial, self._path)
        except OSError as error:
            raise OptionError(f"path={str(self._path)!r} cannot be written ({error}).") from error
        finally:
            partial.unlink(missing_ok=True)


def _finite(raw: Any) -> float:
    number = float(raw)
    if not math.isfinite(number):
        raise ValueError(f"the score {raw!r} is not finite")
    return number


def _difference(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """How what a file is of differs from what is asked for."""
    if there["model"] != asked["model"]:
        return f"of another model (a {there['model']}, this is a {asked['model']})"
    if there["shapes"] != asked["shapes"]:
        return f"of another model (a {there['model']} with other parameters or shapes)"
    if there["settings"] != asked["settings"]:
        old, new = there["settings"], asked["settings"]
        names = [n for n in dict.fromkeys([*old, *new]) if old.get(n) != new.get(n)]
        return f"with other settings ({', '.join(f'{n} {old.get(n)!r}, now {new.get(n)!r}' for n in names)})"
    return f"at other ratios ({there['ratios']}, now {asked['ratios']})"
