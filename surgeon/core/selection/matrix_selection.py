"""Which matrices: the same little language as for layers, one level down.

As text, terms separated by commas: `3.mlp.up`, `0-3.attention`, `all.mlp` (a selection of layers, a dot, a role or its
part before the dot), `lowest 25% by taylor`, `highest 10 by random_matrix`; in YAML also as a list or as a mapping such
as `{lowest: 25%, by: taylor, data: docs}`. A score's value for a role of a layer is the mean over its matrices of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.core.plan.draft import Draft, Layer, base_tensors
from surgeon.core.scoring.requests import split_terms
from surgeon.core.scoring.score import Score
from surgeon.core.selection.selection import Ranked, Selection, Term, parse_selection
from surgeon.core.structure.structure import OTHER
from surgeon.errors import SelectionError

GRAMMAR = "3.mlp.up · 0-3.attention · all.mlp · lowest 25% by SCORE · highest 10 by SCORE"
Spot = tuple[int, str]
"""A position and a role."""


class MatrixSelection(Selection):
    """A parsed selection of matrices. `terms` are ranked ones; `named` pairs layers with a role pattern."""

    __slots__ = ("named",)

    def __init__(self, terms: tuple[Term, ...], named: tuple[tuple[Selection, str], ...], raw: Any) -> None:
        super().__init__(terms, raw)
        self.named = named

    def __eq__(self, other: object) -> bool:
        """Compare by meaning, not by spelling."""
        return isinstance(other, MatrixSelection) and (self.terms, self.named) == (other.terms, other.named)

    def __hash__(self) -> int:
        """Hash by meaning."""
        return hash((self.terms, self.named))

    def __str__(self) -> str:
        """Return it as text that `parse_matrix_selection` reads."""
        parts = [super().__str__()] if self.terms else []
        return (
            self.raw if isinstance(self.raw, str) else ", ".join([*parts, *(f"{at}.{role}" for at, role in self.named)])
        )

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


def parse_matrix_selection(raw: Any) -> MatrixSelection:
    """Parse what was written in a recipe or on the command line.

    Raises:
        SelectionError: it is not in the language above.
    """
    if isinstance(raw, MatrixSelection):
        return raw
    parts = split_terms(raw) if isinstance(raw, str) else raw if isinstance(raw, (list, tuple)) else [raw]
    terms: list[Term] = []
    named: list[tuple[Selection, str]] = []
    for part in parts:
        named_here = isinstance(part, str) and " by " not in part  # settings of a score may have dots too
        head, dot, role = part.strip().partition(".") if named_here else ("", "", "")
        if dot:
            named.append((parse_selection(head), role))
            continue
        selection = parse_selection(part)
        if not all(isinstance(term, Ranked) and term.order in ("lowest", "highest") for term in selection.terms):
            raise SelectionError(f"{part!r} is no selection of matrices", allowed=GRAMMAR)
        terms += selection.terms
    return MatrixSelection(tuple(terms), tuple(named), raw)


def matrix_roles(draft: Draft, layer: Layer, stack: str | None) -> tuple[str, ...]:
    """Return the roles of a layer's matrices, each once."""
    structure = draft.structure
    layout = base_tensors(layer.source, structure.stack(stack)).layout
    roles = structure.roles_of(layout).items()
    matrices = (role for suffix, role in roles if role != OTHER and len(layout.types[suffix].shape) >= 2)
    return tuple(dict.fromkeys(matrices))


def matrix_shapes(draft: Draft, stack: str | None) -> dict[Spot, tuple[int, ...]]:
    """Return the shape of each matrix by position and role; of several of one role, as experts are, the first one's."""
    structure, found = draft.structure, dict[Spot, tuple[int, ...]]()
    for position, layer in enumerate(draft.layers(stack)):
        layout = base_tensors(layer.source, structure.stack(stack)).layout
        for suffix, role in structure.roles_of(layout).items():
            if role != OTHER and len(layout.types[suffix].shape) >= 2:
                found.setdefault((position, role), layout.types[suffix].shape)
    return found


def roles_by_position(spots: Sequence[int | str]) -> dict[int, frozenset[str]]:
    """Turn `POSITION.ROLE` texts into roles by position.

    Raises:
        SelectionError: one is not of that form.
    """
    found: dict[int, set[str]] = {}
    for spot in spots:
        position, dot, role = str(spot).partition(".")
        if not dot or not position.isdigit():
            raise SelectionError(f"{spot!r} is no matrix", allowed="POSITION.ROLE, such as 3.mlp.up")
        found.setdefault(int(position), set()).add(role)
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
    if term not in scores:
        raise SelectionError(f"{term.by} has not been measured here", hint="run the recipe where it can be measured")
    if not scores[term].matrices:
        raise SelectionError(
            f"{term.by} has no values for single matrices", hint="choose a score that is made of matrices"
        )
    protected = {position for part in term.protect for position in part.positions(layers, scores)}
    values: dict[Spot, float] = {}
    for position, layer in enumerate(layers):
        by_role: dict[str, list[float]] = {}
        for name, value in scores[term].matrices.get(layer.key, {}).items():
            by_role.setdefault(draft.structure.role(name.partition("[")[0]), []).append(value)
        for role in present[position]:
            if position not in protected and role in by_role:
                values[position, role] = math.fsum(by_role[role]) / len(by_role[role])
    count = round(int(term.count[:-1]) / 100 * len(values)) if term.count.endswith("%") else int(term.count)
    if count > len(values):
        raise SelectionError(f"{term.order} {term.count} of {len(values)} matrices", allowed=f"at most {len(values)}")
    return sorted(values, key=lambda spot: values[spot], reverse=term.order == "highest")[:count]
