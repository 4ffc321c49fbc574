"""Numbers, lists and tables as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

_STEP = 1000
_LONGEST = 60


def count_text(number: int) -> str:
    """Write a count of parameters: 576, 3.54M, 134.5M, 70.6B."""
    return _scaled(number, ("", "k", "M", "B", "T"), "")


def bytes_text(number: int) -> str:
    """Write a number of bytes: 768 B, 23.0 kB, 269.0 MB."""
    return _scaled(number, ("B", "kB", "MB", "GB", "TB"), " ")


def change_text(number: int, write: Callable[[int], str]) -> str:
    """Write a difference with its sign, its size as `write` does."""
    return "0" if number == 0 else ("+" if number > 0 else "-") + write(abs(number))


def duration_text(seconds: float) -> str:
    """Write a duration: 11s, 3m20s, 2h05m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def value_text(value: Any) -> str:
    """Write a measured value with four significant digits."""
    if not isinstance(value, (int, float)):
        return "–"
    return f"{value:#.4g}".rstrip(".") if math.isfinite(value) else str(value)


def setting_text(value: Any) -> str:
    """Write a config value on one line, long ones shortened; a list that was long says how many entries it has."""
    text = msgspec.json.encode(value, enc_hook=str).decode()
    if len(text) <= _LONGEST:
        return text
    many = f" ({len(value)} entries)" if isinstance(value, (list, dict)) else ""
    return text[: _LONGEST - 1] + "…" + many


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> str:
    """Align rows under a header; columns named in `right`, separated by spaces, are aligned right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    to_right = {column for column, name in enumerate(header) if name in right.split()}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in to_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode())


def _scaled(number: int, units: Sequence[str], gap: str) -> str:
    scaled, unit = float(number), 0
    while abs(scaled) >= _STEP - 0.05 and unit < len(units) - 1:
        scaled, unit = scaled / _STEP, unit + 1
    if unit == 0:
        return f"{number}{gap}{units[0]}".rstrip()
    digits = 2 if abs(scaled) < 10 and not gap else 1
    return f"{scaled:.{digits}f}{gap}{units[unit]}"
