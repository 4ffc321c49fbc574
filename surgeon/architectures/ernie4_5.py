"""ERNIE 4.5 with experts: they are in every so many layers between a first and a last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from surgeon.core.structure.layer_fields import Config
from surgeon.core.structure.structure import Family
from surgeon.errors import ArchitectureError

_START, _END, _STEP = "moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"


class _ExpertRange(msgspec.Struct, frozen=True):
    """The three numbers together."""

    key: str = _START
    replaces: tuple[str, ...] = (_END, _STEP)

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return True for the layers with experts."""
        start, end, step = config.get(_START, 1), config.get(_END, -1), config.get(_STEP, 1)
        end = count - 1 if end == -1 else end
        return tuple((index + 1) % step == 0 and start <= index <= end for index in range(count))

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write the range with the old interval if that fits, else with the first that does."""
        count = len(values)
        layers = [position for position, experts in enumerate(values) if experts]
        start, end = (layers[0], layers[-1]) if layers else (count, count)
        for step in (config.get(_STEP, 1), *range(1, count + 1)):
            numbers = {_START: start, _END: end, _STEP: step}
            if list(self.read(numbers, count) or ()) == list(values):
                return numbers
        raise ArchitectureError(
            f"and the two fields beside it cannot say that layers {layers} are the ones with experts",
            where=f"config field {_START}",
            allowed="edits after which they are equally far apart",
            hint="leave the layers without experts at their end",
        )


FAMILY = Family(
    model_types=("ernie4_5_moe",),
    fields=(_ExpertRange(),),
    in_memory=((r"\.mlp\.moe_statics\.", ".mlp.gate.moe_statics."),),
)
