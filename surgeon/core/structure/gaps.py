"""Tensors that one layer lacks and its like have: told from names alone, where transformers cannot be asked."""

from __future__ import annotations

from surgeon.core.structure.layer_dependencies import UnexplainedDifference
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import Stack, Structure


def first_gap(structure: Structure) -> str:
    """Say which tensor a layer lacks that another has; empty if there is none.

    The config says the same of both, and but for such tensors they are built alike.
    """
    return next(filter(None, map(_gap, structure.stacks.values())), "")


def _gap(stack: Stack) -> str:
    unexplained = {field.key for field in stack.fields if isinstance(field, UnexplainedDifference)}
    alike: dict[str, dict[Layout, int]] = {}
    for number, (layer, setting) in enumerate(zip(stack.layers, stack.settings, strict=True)):
        said = repr({key: value for key, value in setting.items() if key not in unexplained})
        alike.setdefault(said, {}).setdefault(layer.layout, number)
    for layouts in alike.values():
        for poor, number in layouts.items():
            for rich, other in layouts.items():
                if poor.types.keys() < rich.types.keys():
                    lost = next(suffix for suffix in rich.types if suffix not in poor.types)
                    return f"{stack.tensor_name(number, lost)}, which layer {other} has"
    return ""
