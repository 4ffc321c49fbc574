"""Lists that transformers derives from a layer's position where a config does not write them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from surgeon.core.structure.layer_fields import Config, Derived

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


def always(config: Config) -> bool:
    """Tell of something that no config field turns off."""
    del config
    return True


def every(
    period: int, key: str = "", *, at: int = -1, special: str = FULL, other: str = SLIDING, last: str = ""
) -> Derived:
    """Layers whose number is `at` modulo a period are special; the period is the config's `key`, or `period`.

    `last` is what the last layer is in any case.
    """

    def derive(config: Config, count: int) -> Sequence[Any] | None:
        steps = config.get(key, period) if key else period
        if not isinstance(steps, int) or steps < 1:
            return None
        found = [special if index % steps == at % steps else other for index in range(count)]
        return [*found[:-1], last or found[-1]]

    return derive


def first(number: int, key: str = "", *, special: str = "dense", other: str = "sparse", freq_key: str = "") -> Derived:
    """The first layers are special: as many as the config's `key` says, or `number`; so are those between periods."""

    def derive(config: Config, count: int) -> Sequence[Any]:
        leading = config.get(key) if key else None
        leading = number if leading is None else leading
        freq = config.get(freq_key) or 1
        others = freq if isinstance(freq, list) else [index % freq == 0 for index in range(count)]
        return [other if index >= leading and others[index] else special for index in range(count)]

    return derive


def where(number: int, key: str, on: str = "sliding_window", switch: str = "") -> Derived:
    """Layers from the config's `key` on have a sliding window, if there is one."""

    def derive(config: Config, count: int) -> Sequence[Any] | None:
        window = config.get(on, 4096)
        if window is None or (switch and not config.get(switch)):
            return None
        start = config.get(key, number)
        return [SLIDING if index >= start else FULL for index in range(count)]

    return derive
