"""The tensors of the result, layer by layer: a layer that no edit changed is told in one word, wherever it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from surgeon.core.checkpoint.tensors import Tensor, TensorType, tensor_type
from surgeon.core.plan.boundary_layer_tensors import belongs_to_places, tensors_at
from surgeon.core.plan.draft import Layer, Original
from surgeon.core.plan.expressions import Copy, Expression, expressions_of
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.structure.layouts import Layout
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


def planned(name: str, model: Tensor | TensorType, source: Expression) -> PlannedTensor:
    """Return the plan to make a tensor of the dtype and the shape of `model`."""
    return PlannedTensor(name, model.dtype, model.shape, source, model.nbytes, model.parameters)


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One layer of the result. Names are those within the layer: where it stands is not part of it.

    stored: where those tensors lie that are copied as they are.
    made: how the others are made.
    """

    layout: Layout
    stored: Mapping[str, Tensor]
    made: Mapping[str, Expression]

    @property
    def parameters(self) -> int:
        """Stored elements."""
        return self.layout.parameters

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.layout.nbytes

    def tensors(self, prefix: str) -> Iterator[PlannedTensor]:
        """Yield the tensors of the layer where it stands, such as `model.layers.7`."""
        for suffix, one in self.layout.types.items():
            yield planned(f"{prefix}.{suffix}", one, self.made.get(suffix) or Copy(self.stored[suffix]))


def planned_layer(structure: Structure, stack: Stack, layers: Sequence[Layer], position: int) -> PlannedLayer:
    """Return what the layer at a position consists of.

    Raises:
        ArchitectureError: it cannot be made, or would not be the same there.
    """
    source = layers[position].source
    if isinstance(source, Original) and not belongs_to_places(stack):
        layer = stack.layers[source.index]
        return PlannedLayer(layer.layout, layer, {})
    express = expressions_of(structure, stack, source)
    if not belongs_to_places(stack):
        layout = layout_of(structure, stack, source)
        return PlannedLayer(layout, {}, {suffix: express(suffix) for suffix in layout.types})
    found = tensors_at(structure, stack, layers, position)
    models = {suffix: model for suffix, (model, _) in found.items()}
    layout = Layout({suffix: tensor_type(model.dtype, model.shape) for suffix, model in models.items()})
    return PlannedLayer(layout, {}, {suffix: made or express(suffix) for suffix, (_, made) in found.items()})
