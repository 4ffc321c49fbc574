"""How the layers of a draft are built: as those of the base that they come from, but for what was cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from surgeon.core.checkpoint.tensors import tensor_type
from surgeon.core.parts.counts import counted
from surgeon.core.parts.divide import divide
from surgeon.core.parts.division import Division, PartKind, Runs
from surgeon.core.plan.draft import Grafted, Mean, Original, Part, Source, base_tensors
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import Stack, Structure
from surgeon.errors import ArchitectureError

_narrowed: WeakKeyDictionary[Layout, dict[tuple[PartKind, int], Layout]] = WeakKeyDictionary()


@dataclass(frozen=True)
class AppliedPart:
    """What a cut does to the tensors of a layer.

    names: the tensors that are left, by their new names; most keep theirs.
    cuts: the dimension and the spans that are kept of those that hold kept and other parts, by the old name.
    whole: the shapes that these have before.
    """

    names: Mapping[str, str]
    cuts: Mapping[str, tuple[int, Runs]]
    whole: Mapping[str, tuple[int, ...]]


def layout_of(structure: Structure, stack: Stack, source: Source) -> Layout:
    """Return how a layer from `source` is built.

    Raises:
        ArchitectureError: it was cut as a layer of this kind cannot be.
    """
    if isinstance(source, Original | Grafted):
        return base_tensors(source, stack).layout
    if isinstance(source, Mean):
        return layout_of(structure, stack, source.parts[0])
    inner = layout_of(structure, stack, source.of)
    if not isinstance(source, Part):
        return inner
    known = _narrowed.setdefault(inner, {})
    key = (source.kind, len(source.kept))
    if key not in known:
        known[key] = _narrow(inner, division_of(structure, stack, source.of, source.kind), len(source.kept))
    return known[key]


def _narrow(layout: Layout, division: Division, count: int) -> Layout:
    """Return the layout with so many parts; which they are does not matter."""
    names = division.names(layout, range(count))
    types = {name: layout.types[old] for name, old in names.items()}
    return Layout(
        {name: tensor_type(one.dtype, division.shape(names[name], one.shape, count)) for name, one in types.items()}
    )


def division_of(structure: Structure, stack: Stack, source: Source, kind: PartKind) -> Division:
    """Return a layer from `source` as parts of a kind.

    Raises:
        ArchitectureError: it has none, or cannot be divided.
    """
    found = divide(structure, structure.stack_config(stack), layout_of(structure, stack, source), kind)
    if found is None:
        raise ArchitectureError(
            f"has no {kind}", where=f"a layer of model_type {structure.model_type}", allowed=f"layers with {kind}",
            hint="choose other layers",
        )  # fmt: skip
    return found


def applied(structure: Structure, stack: Stack, part: Part) -> AppliedPart:
    """Return what a cut does to the tensors of the layer that it is of."""
    layout = layout_of(structure, stack, part.of)
    division = division_of(structure, stack, part.of, part.kind)
    names = division.names(layout, part.kept)
    cuts = {old: (cut.axis, cut.runs(division.count, part.kept)) for old, cut in division.cuts.items()}
    return AppliedPart(names, cuts, {old: layout.types[old].shape for old in cuts})


def parts_in(source: Source) -> frozenset[PartKind]:
    """Return the kinds of parts that a source was cut into."""
    if isinstance(source, Original | Grafted):
        return frozenset()
    if isinstance(source, Mean):
        return frozenset().union(*map(parts_in, source.parts))
    own: frozenset[PartKind] = frozenset({source.kind}) if isinstance(source, Part) else frozenset()
    return own | parts_in(source.of)


def config_of(structure: Structure, stack: Stack, source: Source) -> Mapping[str, Any]:
    """Return the config of a layer from `source`: the base's, with the number of heads that are left."""
    config = structure.stack_config(stack)
    if "heads" not in parts_in(source):
        return config
    count = division_of(structure, stack, source, "heads").count
    return {**config, **counted(config, "heads", (), count)}


def stored_names(source: Source, structure: Structure, stack: Stack) -> dict[str, str]:
    """Return the tensors of a layer by their names, each with the name that it has in the base's layer."""
    if isinstance(source, Part):
        inner = stored_names(source.of, structure, stack)
        return {name: inner[old] for name, old in applied(structure, stack, source).names.items()}
    if isinstance(source, Original | Grafted):
        return {name: name for name in base_tensors(source, stack)}
    return stored_names(source.parts[0] if isinstance(source, Mean) else source.of, structure, stack)
