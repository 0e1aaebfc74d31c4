"""Numbers as people read them."""

from __future__ import annotations

_PREFIXES = ("", "k", "M", "G", "T", "P")


def scaled(number: float, unit: str = "") -> str:
    """A number with an SI prefix and three digits after the point at most: ``4.089 G``, ``102.2 MB``."""
    exponent = 0
    value = float(number)
    while abs(value) >= 999.95 and exponent < len(_PREFIXES) - 1:
        value /= 1000
        exponent += 1
    digits = 0 if exponent == 0 else 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:.{digits}f} {_PREFIXES[exponent]}{unit}".rstrip()


def seconds_text(seconds: float) -> str:
    """Seconds in the unit that suits: ``12.3 ms``."""
    factor, unit = next((pair for pair in ((1, "s"), (1e3, "ms")) if seconds * pair[0] >= 1), (1e6, "us"))
    return f"{seconds * factor:.3g} {unit}"
