"""An operation: a pure function from draft to draft, declared as a frozen struct.

Its fields are the YAML schema, the command-line options and the form on screen, so each carries its description.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import msgspec

from surgeon.core.plan.draft import Draft
from surgeon.core.registry import classes_of
from surgeon.core.selection.matrix_selection import MatrixSelection
from surgeon.core.selection.part_selection import ExpertSelection, HeadSelection, NeuronSelection
from surgeon.core.selection.selection import Ranked, Selection
from surgeon.core.selection.sublayer_selection import SublayerSelection
from surgeon.core.structure.structure import OTHER

Chosen = Mapping[str, tuple[Any, ...]]
"""For each field of an operation that is a selection, what it stands for: positions, or spots as `POSITION.NAME`."""

LayerChoice = Annotated[Selection, msgspec.Meta(description="which layers")]
MatrixChoice = Annotated[MatrixSelection | None, msgspec.Meta(description="which matrices: 3.mlp.up, lowest 25% by …")]
ExpertChoice = Annotated[ExpertSelection, msgspec.Meta(description="which experts: 0,3 or lowest 25% by …")]
NeuronChoice = Annotated[NeuronSelection | None, msgspec.Meta(description="which neurons: lowest 25% by …")]
HeadChoice = Annotated[HeadSelection | None, msgspec.Meta(description="which key-value heads: lowest 1 by …, or 0,2")]
SublayerChoice = Annotated[SublayerSelection | None, msgspec.Meta(description="which sublayers: 3.mlp, lowest 4 by …")]
StackName = Annotated[str | None, msgspec.Meta(description="which stack of layers, where the model has several")]


class Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every operation declares. Subclasses live one per file in `surgeon/operations/`.

    name: the key in recipes and the command.   key: the letter that drafts it on screen.
    summary: one line for help and tables.   paper: where it comes from, if anywhere.
    needs_model: whether carrying it out needs the model in memory, and not its files alone.
    """

    name: ClassVar[str]
    key: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    needs_model: ClassVar[bool] = False

    stack: StackName = None

    def selections(self) -> dict[str, Selection]:
        """Return the fields that are selections and are set, by their name in YAML."""
        fields = msgspec.structs.fields(self)
        values = {field.encode_name: getattr(self, field.name) for field in fields}
        return {name: value for name, value in values.items() if isinstance(value, Selection)}

    def ranked(self) -> tuple[Ranked, ...]:
        """Return every part of the selections that needs a score."""
        return tuple(ranked for selection in self.selections().values() for ranked in selection.ranked())

    def pinned(self, root: Path) -> Operation:
        """Return the operation with the fingerprints of other models that it names, relative to `root`, written in."""
        del root
        return self

    def apply(self, draft: Draft, chosen: Chosen) -> Draft:
        """Return the operated draft.

        Raises:
            RecipeError: the operation asks for what this draft does not have.
            ArchitectureError: the model cannot express the result.
        """
        raise NotImplementedError


def selection_fields(kind: type[Operation]) -> dict[str, type[Selection]]:
    """Return the fields of an operation that may hold selections, by their name in YAML, the main one first."""
    found = ((field.encode_name, _selection_in(field.type)) for field in msgspec.structs.fields(kind))
    return {name: selection for name, selection in found if selection is not None}


def _selection_in(kind: Any) -> type[Selection] | None:
    if isinstance(kind, type) and issubclass(kind, Selection):
        return kind
    return next((found for part in get_args(kind) if (found := _selection_in(part))), None)


def operations() -> dict[str, type[Operation]]:
    """Return every operation by name."""
    return classes_of("surgeon.operations", Operation)


def matching_roles(draft: Draft, wanted: tuple[str, ...], stack: str | None) -> frozenset[str]:
    """Return the roles that patterns such as `attention`, `mlp.down` or `all` stand for in a stack.

    A pattern is a whole role, or its part before the dot.

    Raises:
        SelectionError: a pattern fits no role of this model.
    """
    from surgeon.errors import SelectionError

    structure = draft.structure
    present = {role for layout in structure.stack(stack).layouts for role in structure.roles_of(layout).values()}
    found: set[str] = set()
    for pattern in wanted:
        fits = {role for role in present if pattern in ("all", role, role.partition(".")[0])}
        if not fits:
            raise SelectionError(
                f"no tensor in a layer has role {pattern!r}",
                where="roles",
                allowed=", ".join(sorted(present - {OTHER})) + ", all",
            )
        found |= fits
    return frozenset(found)
