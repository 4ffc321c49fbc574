"""Arithmetic on layers' weights: which layers have a mean, and what must not be calculated with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from surgeon.core.plan.draft import Layer, Mean
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError, RecipeError


def mean_of_layers(structure: Structure, stack: Stack, layers: Sequence[Layer], instead: str) -> Mean:
    """Return the mean of layers' weights; `instead` says what to do where they have none.

    Raises:
        ArchitectureError: two of them are built differently.
    """
    first = layers[0]
    shapes = {suffix: one.shape for suffix, one in layout_of(structure, stack, first.source).types.items()}
    for layer in layers[1:]:
        others = {suffix: one.shape for suffix, one in layout_of(structure, stack, layer.source).types.items()}
        unlike = sorted(suffix for suffix in shapes.keys() | others.keys() if shapes.get(suffix) != others.get(suffix))
        if unlike:
            raise ArchitectureError(
                f"layers {first.key} and {layer.key} are built differently, so they have no mean",
                where=f"tensor {unlike[0]!r}",
                allowed=instead,
                hint="leave these layers out, or do that",
            )
    return Mean(tuple(layer.source for layer in layers))


def refuse_quantised(structure: Structure, what: str, allowed: str = "") -> None:
    """Refuse `what` on quantised weights, such as `training`.

    Raises:
        ArchitectureError: they are, as a config field, a file or tensors say.
    """
    if structure.quantisation is not None:
        raise structure.quantisation.refusal(f"{what} needs their values", allowed)


def refuse_adapted(layers: Iterable[Layer], what: str, roles: Set[str] | None = None) -> None:
    """Refuse to take the weights below trained adapters for the whole of them; `roles` None means any.

    Raises:
        RecipeError: one of the layers carries such an adapter.
    """
    for layer in layers:
        trained = [
            role
            for role, lora in sorted(layer.lora.items())
            if lora.address is not None and (roles is None or role in roles)
        ]
        if trained:
            raise RecipeError(
                f"layer {layer.key} has a trained adapter on {trained[0]}, which {what} would leave out",
                allowed="merge_adapters before this step, or drop_adapters",
                hint="merge the adapters first: they are then part of the weights",
            )
