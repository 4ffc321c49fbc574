"""The tensors of the result that belong to no layer: copied, cut into the layers' slices, or learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from surgeon.core.checkpoint.dtypes import FLOATS
from surgeon.core.checkpoint.tensors import Tensor, tensor_type
from surgeon.core.plan.draft import Draft, Grafted, Mean, Original, Source
from surgeon.core.plan.expressions import Copy, Expression, JoinedOf, MeanOf, PartOf, learned
from surgeon.core.plan.learned_results import is_learned, outside_tensor, result_tensors
from surgeon.core.plan.planned_layers import PlannedTensor, copied, planned
from surgeon.core.plan.tied_head import outside_tensors, results_of
from surgeon.core.structure.structure import OutsideSlices
from surgeon.errors import ArchitectureError


def sliced(draft: Draft) -> Iterator[tuple[str, Expression, tuple[int, ...]]]:
    """Yield the tensors outside the layers that change with them: name, how it is made, its shape.

    Raises:
        ArchitectureError: one is not cut as its rule says, or cannot be, for its dtype.
    """
    structure = draft.structure
    if not structure.sliced:
        return
    stack = structure.stack()
    sources = tuple(_weights(layer.source) for layer in draft.layers())
    if list(sources) == [Original(index) for index in range(len(stack.layers))]:
        return
    for name, rule in structure.sliced.items():
        tensor = structure.outside[name]
        width = _width(name, tensor, rule, draft)
        shape = (*tensor.shape[: rule.axis], width * len(sources), *tensor.shape[rule.axis + 1 :])
        yield name, _made(tensor, rule.axis, width, sources), shape


def _made(tensor: Tensor, axis: int, width: int, sources: Sequence[Source]) -> Expression:
    """Return the slices of some layers, one after another."""
    found: list[Expression] = []
    run: list[tuple[int, int]] = []
    for source in sources:
        if isinstance(source, Original):
            start = source.index * width
            begin = run.pop()[0] if run and run[-1][1] == start else start
            run.append((begin, start + width))
            continue
        if run:
            found.append(PartOf(Copy(tensor), tensor.shape, axis, tuple(run)))
            run = []
        found.append(_mean(tensor, axis, width, source))
    if run:
        found.append(PartOf(Copy(tensor), tensor.shape, axis, tuple(run)))
    return found[0] if len(found) == 1 else JoinedOf(tuple(found), axis)


def _mean(tensor: Tensor, axis: int, width: int, source: Source) -> Expression:
    if isinstance(source, Mean):
        return MeanOf(tuple(_mean(tensor, axis, width, part) for part in source.parts))
    return _made(tensor, axis, width, (source,))


def _weights(source: Source) -> Source:
    """Return the layers that a slice is made of: what was done to matrices within the layer is nothing to it."""
    if isinstance(source, Mean):
        parts = tuple(map(_weights, source.parts))
        return parts[0] if all(part == parts[0] for part in parts) else Mean(parts)
    assert not isinstance(source, Grafted), "layers of other models are refused where there are slices"
    return source if isinstance(source, Original) else _weights(source.of)


def _width(name: str, tensor: Tensor, rule: OutsideSlices, draft: Draft) -> int:
    stack = draft.structure.stack()
    width = draft.structure.stack_config(stack).get(rule.width_key)
    count = len(stack.layers)
    whole = tensor.shape[rule.axis] if tensor.dtype in FLOATS and len(tensor.shape) > rule.axis else None
    if not isinstance(width, int) or whole != count * width:
        raise ArchitectureError(
            f"holds one slice for each layer, and {tensor.dtype} {list(tensor.shape)} cannot be cut into {count}",
            where=f"tensor {name!r}",
            allowed=f"{', '.join(FLOATS)} with {rule.width_key} × {count} entries along dimension {rule.axis}",
            hint="dequantise the checkpoint first",
        )
    return width


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
