"""A layer as parts of one kind, told once for all layers that are built alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from surgeon.core.parts.division import Division, PartKind
from surgeon.core.parts.experts import divide_experts
from surgeon.core.parts.heads import divide_heads
from surgeon.core.parts.neurons import divide_neurons
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import Structure

_known: WeakKeyDictionary[Layout, dict[PartKind, Division | None]] = WeakKeyDictionary()


def divide(structure: Structure, config: Mapping[str, Any], layout: Layout, kind: PartKind) -> Division | None:
    """Return a layer as parts of a kind; None if it has none. `config` is its stack's part of the base's config.

    Raises:
        ArchitectureError: it has some and cannot be divided; the message names the tensor or the field.
    """
    known = _known.setdefault(layout, {})
    if kind not in known:
        known[kind] = _divide(structure, config, layout, kind)
    return known[kind]


def _divide(structure: Structure, config: Mapping[str, Any], layout: Layout, kind: PartKind) -> Division | None:
    if kind != "experts" and structure.quantisation is not None:
        raise structure.quantisation.refusal(f"cutting {kind} needs their values", "prune, prune_experts")
    structure.family.parts.require()
    if kind == "experts":
        return divide_experts(structure, layout)
    if kind == "neurons":
        return divide_neurons(structure, layout)
    return divide_heads(structure, layout, config)
