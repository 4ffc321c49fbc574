"""Tensors outside the layers that hold a slice for each layer, cut to an edited model while it is in memory."""

from __future__ import annotations

from typing import Any

from torch import nn

from surgeon.backend.model.tensors import DTYPES, gathered
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.layer_slices import sliced
from surgeon.errors import ArchitectureError


def swap_slices(model: nn.Module, draft: Draft) -> list[tuple[nn.Module, str, Any]]:
    """Give the model the slices of the draft's layers; return (module, attribute, what it had before).

    Raises:
        ArchitectureError: a tensor cannot be cut, or the loaded model has no such parameter.
    """
    swapped = []
    for name, slices in sliced(draft):
        module, attribute = _holder(model, *draft.structure.memory_names([name]))
        whole = getattr(module, attribute)
        swapped.append((module, attribute, whole))
        # A mean of slices is rounded to what is stored, as an export does, also where the model computes in float32.
        cut = gathered(whole.detach().to(DTYPES[slices.tensor.dtype]), slices).to(whole.dtype)
        setattr(module, attribute, nn.Parameter(cut, requires_grad=whole.requires_grad))
    return swapped


def _holder(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    ending = ".".join(name.split(".")[-2:])
    found = {other for other, _ in model.named_parameters() if other == name or other.endswith(f".{ending}")}
    found = {name} if name in found else found
    if len(found) != 1:
        raise ArchitectureError(
            "the loaded model has no parameter of that name",
            where=f"tensor {name!r}",
            hint="this model can be edited on disk, not measured or verified",
        )
    module, _, attribute = found.pop().rpartition(".")
    return model.get_submodule(module), attribute
