"""Numbers as text: counts, bytes, durations, bars."""

from __future__ import annotations

import math
from collections.abc import Iterable

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COUNT_UNITS = ("", "k", "M", "B", "T")
_BYTE_UNITS = (" B", " kB", " MB", " GB", " TB")
_THOUSAND = 1000
_DIGITS = 3
_MAX_DECIMALS = 5
_EXPONENT_FROM = 10_000
_MINUTE, _HOUR = 60, 3600
MINUS = "−"  # noqa: RUF001 - as wide as a plus


def count_text(count: float) -> str:
    """Format a number of parameters: 134.5M."""
    return _scaled(count, _COUNT_UNITS)


def bytes_text(nbytes: float) -> str:
    """Format a number of bytes, in powers of ten as disks are sold: 269 MB."""
    return _scaled(nbytes, _BYTE_UNITS)


def signed(text: str, number: float) -> str:
    """Put the sign of a change before its magnitude; zero has no sign."""
    return text if not number else f"{'+' if number > 0 else MINUS}{text}"


def count_change(change: int) -> str:
    """Format a change of the number of parameters."""
    return signed(count_text(abs(change)), change)


def bytes_change(change: int) -> str:
    """Format a change of the number of bytes."""
    return signed(bytes_text(abs(change)), change)


def _scaled(number: float, units: tuple[str, ...]) -> str:
    unit = 0
    # What rounds to 1000.0 belongs to the next unit.
    while round(number, 1) >= _THOUSAND and unit < len(units) - 1:
        number, unit = number / _THOUSAND, unit + 1
    text = f"{number:.1f}" if unit else f"{number:.0f}"
    return text.removesuffix(".0") + units[unit]


def bar_text(fraction: float, width: int) -> str:
    """Return a bar of eighth blocks, `width` cells wide; at least one eighth is visible."""
    eighths = max(1, round(min(max(fraction, 0.0), 1.0) * width * 8))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def decimals_for(values: Iterable[float]) -> int:
    """Return how many decimals distinguish the values of one column within six cells."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if not largest:
        return 1
    integer_digits = math.floor(math.log10(largest)) + 1
    return min(_MAX_DECIMALS, max(0, _DIGITS - max(integer_digits, -2)))


def value_text(value: float, decimals: int) -> str:
    """Format a score's value in at most six cells, without the zero before the point."""
    text = f"{value:.{decimals}f}"
    if abs(value) >= _EXPONENT_FROM or (value and not float(text)):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def seconds_text(seconds: float) -> str:
    """Format a duration: 11s, 3m20s, 2h05m."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02d}s"
    return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"
