"""Numbers as a person reads them: counts, bytes, bars. Knows nothing of widgets."""

from __future__ import annotations

import math
from collections.abc import Iterable

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COUNT_UNITS = ("", "k", "M", "B", "T")
_BYTE_UNITS = (" B", " kB", " MB", " GB", " TB")
_THOUSAND = 1000
_DIGITS = 3
_MOST_DECIMALS = 5
_TOO_LONG = 10_000
_MINUTE, _HOUR = 60, 3600
MINUS = "−"  # noqa: RUF001 - as wide as a plus


def count_text(count: float) -> str:
    """Write a number of parameters: 134.5M."""
    return _scaled(count, _COUNT_UNITS)


def bytes_text(nbytes: float) -> str:
    """Write a number of bytes, in powers of ten as disks are sold: 269 MB."""
    return _scaled(nbytes, _BYTE_UNITS)


def signed(text: str, number: float) -> str:
    """Put the sign of a change before its magnitude; a change of nothing has none."""
    return text if not number else f"{'+' if number > 0 else MINUS}{text}"


def count_change(change: int) -> str:
    """Write a change of the number of parameters."""
    return signed(count_text(abs(change)), change)


def bytes_change(change: int) -> str:
    """Write a change of the number of bytes."""
    return signed(bytes_text(abs(change)), change)


def _scaled(number: float, units: tuple[str, ...]) -> str:
    at = 0
    # What would be rounded to 1000.0 belongs to the next unit.
    while round(number, 1) >= _THOUSAND and at < len(units) - 1:
        number, at = number / _THOUSAND, at + 1
    text = f"{number:.1f}" if at else f"{number:.0f}"
    return text.removesuffix(".0") + units[at]


def bar(fraction: float, width: int) -> str:
    """Return a bar of eighth blocks, `width` cells wide; something is always seen."""
    eighths = max(1, round(min(max(fraction, 0.0), 1.0) * width * 8))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def decimals_for(values: Iterable[float]) -> int:
    """Return how many decimals tell the values of one column apart within six cells."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if not largest:
        return 1
    before_the_point = math.floor(math.log10(largest)) + 1
    return min(_MOST_DECIMALS, max(0, _DIGITS - max(before_the_point, -2)))


def value_text(value: float, decimals: int) -> str:
    """Write a score's value in at most six cells, without the zero before the point."""
    text = f"{value:.{decimals}f}"
    if abs(value) >= _TOO_LONG or (value and not float(text)):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def seconds_text(seconds: float) -> str:
    """Write a duration: 11s, 3m20s, 2h05m."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02d}s"
    return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02d}m"
