"""The numbers in a config: where they are, and how they are changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

# The way to a number from the config: attributes, and places in lists.
Field = tuple[str | int, ...]
Values = Mapping[Field, Any]


def is_config(value: Any) -> bool:
    """Whether an object is a config as the Hugging Face libraries have them."""
    return not isinstance(value, type) and callable(getattr(value, "to_dict", None)) and hasattr(value, "__dict__")


def fields(config: Any, within: Field = ()) -> Iterator[tuple[Field, Any]]:
    """Every public entry of a config that holds a number or nothing, those of lists and of configs within it too."""
    for name, value in vars(config).items():
        if not name.startswith("_"):
            yield from _entries((*within, name), value)


def _entries(field: Field, value: Any) -> Iterator[tuple[Field, Any]]:
    if is_config(value):
        yield from fields(value, field)
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from _entries((*field, place), item)
    elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        yield field, value


def changed(config: Any, values: Values) -> Any:
    """A copy of a config with other values."""
    other = copy.deepcopy(config)
    assign(other, values)
    return other


def assign(config: Any, values: Values) -> None:
    """Change a config itself; a tuple stays one, and lists are replaced, not written to."""
    for field, value in values.items():
        owner, name, rest = config, field[0], field[1:]
        while rest and is_config(getattr(owner, str(name))):
            owner, name, rest = getattr(owner, str(name)), rest[0], rest[1:]
        held = getattr(owner, str(name), None)
        setattr(owner, str(name), _replaced(held, rest, value))


def _replaced(held: Any, rest: Field, value: Any) -> Any:
    if not rest:
        return value
    items = list(held)
    place = int(rest[0])
    items[place] = _replaced(items[place], rest[1:], value)
    return type(held)(items)


def spelled(field: Field) -> str:
    """A field as code would write it: ``text_config.hidden_sizes[2]``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in field)
    return text.removeprefix(".")
