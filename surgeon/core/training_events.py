"""What a training step tells while it runs, for whoever shows it: see `Event`, progress with a `loss`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_HELD_OUT, _BEFORE = "held_out_", "held_out_before_"
_OTHER = ("done", "total", "unit", "what", "tokens_per_second", "eta_seconds")


def is_training(body: Mapping[str, Any]) -> bool:
    """Whether a progress event tells of an optimiser step."""
    return "loss" in body


def training_figures(body: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    """Return what is worth watching: its name, its value before the first step where that is known, its value now.

    The batch's loss comes first, held-out figures next, the batch's other figures last.
    """
    names = [name for name in body if name not in _OTHER and not name.startswith(_HELD_OUT) and name != "loss"]
    held_out = [name for name in body if name.startswith(_HELD_OUT) and not name.startswith(_BEFORE)]
    rows: list[tuple[str, float | None, float]] = [("loss", None, float(body["loss"]))]
    for name in held_out:
        kind = name.removeprefix(_HELD_OUT)
        before = body.get(_BEFORE + kind)
        rows.append((f"held-out {_words(kind)}", None if before is None else float(before), float(body[name])))
    return rows + [(_words(name), None, float(body[name])) for name in names]


def training_texts(body: Mapping[str, Any]) -> list[str]:
    """Write each of them: `loss 3.21`, `held-out loss 5.04→3.91`."""
    return [
        f"{name} {_value(now)}" if before is None or before == now else f"{name} {_value(before)}→{_value(now)}"
        for name, before, now in training_figures(body)
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: float) -> str:
    """Write three or four digits, which is what a loss is worth."""
    if not math.isfinite(value) or not value:
        return f"{value:g}"
    return f"{value:.{max(0, 2 - max(-2, math.floor(math.log10(abs(value)))))}f}"
