"""Another model, as far as its layers fit a stack of the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.structure.layouts import LayerTensors


@dataclass(frozen=True)
class Donor:
    """Another model whose layers fit a stack.

    layers, settings: as those of a `Stack`, each layer in the layout of the base's layer that it is built like.
    twins: for each layer, the number of a layer of the base that is built and configured alike; -1 where there is none.
    """

    checkpoint: Checkpoint
    layers: tuple[LayerTensors, ...]
    settings: tuple[Mapping[str, Any], ...]
    twins: tuple[int, ...]
