"""The tensors of the result that belong to no layer: copied, cut into the layers' slices, or learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from surgeon.core.checkpoint.tensors import tensor_type
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.expressions import Copy, learned
from surgeon.core.plan.layer_slices import sliced
from surgeon.core.plan.learned_results import is_learned, outside_tensor, result_tensors
from surgeon.core.plan.planned_layers import PlannedTensor, copied, planned
from surgeon.core.plan.tied_head import outside_tensors, results_of
from surgeon.errors import ArchitectureError


def planned_outside(draft: Draft) -> Iterator[PlannedTensor]:
    """Yield the tensors outside the layers.

    Raises:
        ArchitectureError: one holds slices of the layers and cannot follow them.
    """
    cut = {name: (made, shape) for name, made, shape in sliced(draft)}
    for name, tensor in outside_tensors(draft).items():
        if name in draft.structure.sliced:
            _refuse_trained(draft, name)
            made, shape = cut.get(name, (Copy(tensor), tensor.shape))
            yield planned(name, tensor_type(tensor.dtype, shape), made)
            continue
        one = copied(name, tensor)
        for address, then in results_of(draft, name):
            one = replace(one, source=learned(one.source, address, outside_tensor(then)))
        yield one


def _refuse_trained(draft: Draft, name: str) -> None:
    """Refuse a trained tensor of slices: it is not told which layers the slices were of when it was trained."""
    if any(is_learned(address) and outside_tensor(name) in result_tensors(address) for address in draft.learned):
        raise ArchitectureError(
            "holds one slice for each layer, and was trained",
            where=f"tensor {name!r}",
            allowed="training that leaves it as it is",
            hint="freeze the embedding before",
        )
