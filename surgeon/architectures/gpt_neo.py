"""GPT-Neo: which layers look only at a window is written as patterns and how often each is repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from surgeon.core.structure.layer_fields import Config
from surgeon.core.structure.structure import Family


class _AttentionTypes(msgspec.Struct, frozen=True):
    """`attention_types`, such as [[["global", "local"], 12]]; transformers makes `attention_layers` of it."""

    key: str = "attention_types"
    replaces: tuple[str, ...] = ("attention_layers",)

    def read(self, config: Config, count: int) -> tuple[Any, ...] | None:
        """Return the kind of each layer."""
        patterns = config.get(self.key) or [[["global", "local"], 12]]
        kinds = tuple(kind for pattern, times in patterns for _ in range(times) for kind in pattern)
        return kinds if len(kinds) == count else None

    def write(self, values: Sequence[Any], config: Config) -> dict[str, Any]:
        """Write one pattern as long as the model."""
        lists = {"attention_layers": list(values)} if "attention_layers" in config else {}
        return {self.key: [[list(values), 1]], **lists}


FAMILY = Family(model_types=("gpt_neo",), fields=(_AttentionTypes(),))
