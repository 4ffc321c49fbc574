"""The tensors of the result, layer by layer: a layer that no edit changed is told in one word, wherever it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from surgeon.core.checkpoint.checkpoint import Tensor
from surgeon.core.plan.draft import Layer, Original
from surgeon.core.plan.end_tensors import belongs_to_places, tensors_at
from surgeon.core.plan.expressions import Copy, Expression, express
from surgeon.core.structure.structure import Stack, Structure


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the result."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Expression
    nbytes: int
    parameters: int


def copied(name: str, tensor: Tensor) -> PlannedTensor:
    """Return the plan to copy a stored tensor under a name."""
    return planned(name, tensor, Copy(tensor))


def planned(name: str, model: Tensor, source: Expression) -> PlannedTensor:
    """Return the plan to make a tensor of a stored one's dtype and shape."""
    return PlannedTensor(name, model.dtype, model.shape, source, model.nbytes, model.parameters)


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One layer of the result. Names are those within the layer: where it stands is not part of it.

    models: stored tensors of the same dtype and shape, by name.   made: how those are made that are no copies of them.
    """

    models: Mapping[str, Tensor]
    made: Mapping[str, Expression]
    parameters: int
    nbytes: int

    def tensors(self, prefix: str) -> Iterator[PlannedTensor]:
        """Yield the tensors of the layer where it stands, such as `model.layers.7`."""
        for suffix, model in self.models.items():
            yield planned(f"{prefix}.{suffix}", model, self.made.get(suffix) or Copy(model))


def planned_layer(structure: Structure, stack: Stack, layers: Sequence[Layer], position: int) -> PlannedLayer:
    """Return what the layer at a position consists of.

    Raises:
        ArchitectureError: it cannot be made, or would not be the same there.
    """
    source = layers[position].source
    if isinstance(source, Original) and not belongs_to_places(stack):
        layer = stack.layers[source.index]
        return PlannedLayer(layer, {}, layer.layout.parameters, layer.layout.nbytes)
    found = tensors_at(stack, layers, position)
    models = {suffix: model for suffix, (model, _) in found.items()}
    made = {suffix: how or express(structure, stack, source, suffix) for suffix, (_, how) in found.items()}
    parameters, nbytes = (sum(getattr(one, what) for one in models.values()) for what in ("parameters", "nbytes"))
    return PlannedLayer(models, made, parameters, nbytes)
