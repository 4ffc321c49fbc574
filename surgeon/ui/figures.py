"""Numbers as a person reads them: counts, bytes, bars. Knows nothing of widgets."""

from __future__ import annotations

import math
from collections.abc import Iterable

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_STEPS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTE_STEPS = ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))
MINUS = "−"


def count_text(count: float) -> str:
    """Write a number of parameters: 134.5M."""
    return _scaled(count, _STEPS, "")


def bytes_text(nbytes: float) -> str:
    """Write a number of bytes, in powers of ten as disks are sold: 269 MB."""
    return _scaled(nbytes, _BYTE_STEPS, " B")


def signed(text: str, number: float) -> str:
    """Put the sign of a change before its magnitude; a change of nothing has none."""
    return text if not number else f"{'+' if number > 0 else MINUS}{text}"


def count_change(change: int) -> str:
    """Write a change of the number of parameters."""
    return signed(count_text(abs(change)), change)


def bytes_change(change: int) -> str:
    """Write a change of the number of bytes."""
    return signed(bytes_text(abs(change)), change)


def _scaled(number: float, steps: tuple[tuple[float, str], ...], unit: str) -> str:
    for size, suffix in steps:
        # 999 950 and more would round to 1000.0 of the smaller unit.
        if number >= size * 0.99995:
            scaled = number / size
            return f"{scaled:.0f}{suffix}" if scaled >= 999.5 or round(scaled, 1) == round(scaled) >= 100 else f"{scaled:.1f}{suffix}"
    return f"{number:.0f}{unit}"


def bar(fraction: float, width: int) -> str:
    """Return a bar of eighth blocks, `width` cells wide; something is always seen."""
    eighths = max(1, round(min(max(fraction, 0.0), 1.0) * width * 8))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def decimals_for(values: Iterable[float]) -> int:
    """Return how many decimals tell the values of one column apart within six cells."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    largest = max(finite, default=0.0)
    if largest == 0 or largest >= 1000:
        return 0 if largest else 2
    return min(4, max(0, 3 - math.floor(math.log10(largest)) - 1)) if largest >= 0.01 else 5


def value_text(value: float, decimals: int) -> str:
    """Write a score's value in at most six cells, without the zero before the point."""
    if abs(value) >= 10_000 or (decimals == 5 and 0 < abs(value) < 1e-4):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    text = f"{value:.{decimals}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def seconds_text(seconds: float) -> str:
    """Write a duration: 11s, 3m20s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
