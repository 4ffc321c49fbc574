"""Finds the module list of a loaded model that holds the layers of a stack."""

from __future__ import annotations

from torch import nn

from surgeon.core.structure.structure import Stack
from surgeon.errors import ArchitectureError


def layer_list(model: nn.Module, stack: Stack, count: int | None = None) -> nn.ModuleList:
    """Return the module list that holds a stack's layers; `count` of them, where it has been edited.

    Raises:
        ArchitectureError: the loaded model has none of that length and name.
    """
    last = stack.prefix.rpartition(".")[2]
    count = len(stack.layers) if count is None else count
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    exact = [module for name, module in lists.items() if name == stack.prefix]
    alike = [module for name, module in lists.items() if name.endswith(stack.prefix) or stack.prefix.endswith(name)]
    named = [module for name, module in lists.items() if name.rpartition(".")[2] == last]
    for found in (exact, alike, named):
        if len(found) == 1:
            return found[0]
    raise ArchitectureError(
        "the loaded model has no list of modules for these layers",
        where=f"{stack.prefix}.0-{len(stack.layers) - 1}",
        allowed=", ".join(lists) or "none found",
        hint="this model can be edited on disk, not measured or verified",
    )
