"""Which matrices: the same little language as for layers, one level down.

As text, terms separated by commas: `3.mlp.up`, `0-3.attention`, `all.mlp` (a selection of layers, a dot, a role or its
part before the dot), `lowest 25% by taylor`, `highest 10 by random_matrix`; in YAML also as a list or as a mapping such
as `{lowest: 25%, by: taylor, data: docs}`. A score's value for a role of a layer is the mean over its matrices of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.core.plan.draft import Draft, Layer
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.scoring.score import Score
from surgeon.core.selection.ranking import number_of
from surgeon.core.selection.selection import Ranked
from surgeon.core.selection.spot_selection import SpotSelection, many, required, split_spot
from surgeon.core.structure.structure import OTHER
from surgeon.errors import SelectionError

GRAMMAR = "3.mlp.up · 0-3.attention · all.mlp · lowest 25% by SCORE · highest 10 by SCORE"
Spot = tuple[int, str]
"""A position and a role."""


class MatrixSelection(SpotSelection):
    """A parsed selection of matrices. `terms` are ranked ones; `named` pairs layers with a role pattern."""

    __slots__ = ()
    what = "matrices"
    grammar = GRAMMAR
    metavar = "MATRICES"

    def spots(self, draft: Draft, stack: str | None, scores: Mapping[Ranked, Score]) -> tuple[str, ...]:
        """Return the chosen matrices as `POSITION.ROLE`, in the order of the layers.

        Raises:
            SelectionError: a layer or a role does not exist, or a score is missing.
        """
        layers = draft.layers(stack)
        present = {position: matrix_roles(draft, layer, stack) for position, layer in enumerate(layers)}
        chosen: set[Spot] = set()
        for where, pattern in self.named:
            fits = [(at, role) for at in where.positions(layers) for role in present[at] if _fits(role, pattern)]
            if not fits:
                known = sorted({role for roles in present.values() for role in roles})
                raise SelectionError(f"no matrix there has role {pattern!r}", allowed=", ".join(known))
            chosen.update(fits)
        for term in self.ranked():
            chosen.update(_ranked(term, draft, layers, present, scores))
        return tuple(f"{position}.{role}" for position, role in sorted(chosen))

    def contradiction(self, chosen: Sequence[str], draft: Draft, stack: str | None) -> str:
        """Return what it comes to instead of `chosen`, in words; empty where it may come to that.

        Raises:
            SelectionError: it asks for matrices that are not there.
        """
        present = {
            f"{position}.{role}"
            for position, layer in enumerate(draft.layers(stack))
            for role in matrix_roles(draft, layer, stack)
        }
        stray = [spot for spot in chosen if spot not in present]
        if stray:
            return f"is matrices of the model, and {stray[0]} is none"
        named = MatrixSelection((), self.named, self.raw).spots(draft, stack, {})
        counts = [number_of(ranked.count, len(present)) for ranked in self.ranked()]
        # A share is one of the matrices that the score has values for, which may be fewer than there are.
        exact = [number_of(ranked.count, 0) for ranked in self.ranked() if not ranked.count.endswith("%")]
        least, most = max([0, *exact, len(named)]), len(named) + sum(counts)
        if not set(named) <= set(chosen) or not least <= len(set(chosen)) <= most:
            return f"is {many(least, most)}" if counts else f"is {', '.join(named) or 'none'}"
        return ""


def parse_matrix_selection(raw: Any) -> MatrixSelection:
    """Parse what was written in a recipe or on the command line.

    Raises:
        SelectionError: it is not in the language above.
    """
    return MatrixSelection.parse(raw)


def matrix_roles(draft: Draft, layer: Layer, stack: str | None) -> tuple[str, ...]:
    """Return the roles of a layer's matrices, each once."""
    structure = draft.structure
    layout = layout_of(structure, structure.stack(stack), layer.source)
    roles = structure.roles_of(layout).items()
    matrices = (role for suffix, role in roles if role != OTHER and len(layout.types[suffix].shape) >= 2)
    return tuple(dict.fromkeys(matrices))


def roles_by_position(spots: Sequence[int | str]) -> dict[int, frozenset[str]]:
    """Turn `POSITION.ROLE` texts into roles by position.

    Raises:
        SelectionError: one is not of that form.
    """
    found: dict[int, set[str]] = {}
    for spot in spots:
        position, role = split_spot(spot, "matrix", "3.mlp.up")
        found.setdefault(position, set()).add(role)
    return {position: frozenset(roles) for position, roles in found.items()}


def _fits(role: str, pattern: str) -> bool:
    return pattern in ("all", role, role.partition(".")[0])


def _ranked(
    term: Ranked,
    draft: Draft,
    layers: Sequence[Layer],
    present: Mapping[int, Sequence[str]],
    scores: Mapping[Ranked, Score],
) -> list[Spot]:
    score = required(term, scores)
    if not score.matrices:
        raise SelectionError(
            f"{term.by} has no values for single matrices", hint="choose a score that is made of matrices"
        )
    protected = {position for part in term.protect for position in part.positions(layers, scores)}
    values: dict[Spot, float] = {}
    for position, layer in enumerate(layers):
        by_role: dict[str, list[float]] = {}
        for name, value in score.matrices.get(layer.key, {}).items():
            by_role.setdefault(draft.structure.role(name.partition("[")[0]), []).append(value)
        for role in present[position]:
            if position not in protected and role in by_role:
                values[position, role] = math.fsum(by_role[role]) / len(by_role[role])
    count = number_of(term.count, len(values))
    if count > len(values):
        raise SelectionError(f"{term.order} {term.count} of {len(values)} matrices", allowed=f"at most {len(values)}")
    return sorted(values, key=lambda spot: values[spot], reverse=term.order == "highest")[:count]
