"""What a training step tells while it runs, for whoever shows it: see `Progress`, the figures of one with a `loss`."""

from __future__ import annotations

import math
from collections.abc import Mapping

_HELD_OUT, _BEFORE = "held_out_", "held_out_before_"
_OTHER = ("tokens_per_second", "eta_seconds")
Figures = Mapping[str, float | None]
"""Of `Progress`; None is a number that is not finite."""


def is_training(figures: Figures) -> bool:
    """Whether a progress event tells of an optimiser step."""
    return "loss" in figures


def training_figures(figures: Figures) -> list[tuple[str, float | None, float]]:
    """Return what is worth watching: its name, its value before the first step where that is known, its value now.

    The batch's loss comes first, held-out figures next, the batch's other figures last.
    """
    names = [name for name in figures if name not in _OTHER and not name.startswith(_HELD_OUT) and name != "loss"]
    held_out = [name for name in figures if name.startswith(_HELD_OUT) and not name.startswith(_BEFORE)]
    rows: list[tuple[str, float | None, float]] = [("loss", None, _number(figures["loss"]))]
    for name in held_out:
        kind = name.removeprefix(_HELD_OUT)
        before = _BEFORE + kind
        rows.append(
            (
                f"held-out {_words(kind)}",
                _number(figures[before]) if before in figures else None,
                _number(figures[name]),
            )
        )
    return rows + [(_words(name), None, _number(figures[name])) for name in names]


def training_texts(figures: Figures) -> list[str]:
    """Write each of them: `loss 3.21`, `held-out loss 5.04→3.91`."""
    return [
        f"{name} {_value(now)}" if before is None or before == now else f"{name} {_value(before)}→{_value(now)}"
        for name, before, now in training_figures(figures)
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: float) -> str:
    """Write three or four digits, which is what a loss is worth."""
    if not math.isfinite(value) or not value:
        return f"{value:g}"
    return f"{value:.{max(0, 2 - max(-2, math.floor(math.log10(abs(value)))))}f}"
