"""A layer as experts: stored one by one or stacked, with the router's rows and its biases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from surgeon.core.checkpoint.tensors import TensorType
from surgeon.core.parts.division import Cut, Division, cannot_cut
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import OTHER, Structure
from surgeon.errors import ArchitectureError

_NUMBER = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_INSIDE = re.compile(r"(?:^|\.)experts[._]")
_INTEGERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")


def divide_experts(structure: Structure, layout: Layout) -> Division | None:
    """Return a layer as experts; None if it has none.

    Raises:
        ArchitectureError: a tensor does not divide into as many experts as the others.
    """
    roles = structure.roles_of(layout)
    names = [name for name, role in roles.items() if role.startswith("experts")]
    if not names:
        return None
    # Of a numbered expert everything goes, whatever it is: scales, zeros, biases.
    owners = {name: int(match[1]) for name in roles if (match := _NUMBER.search(name))}
    stacked = [name for name in names if name not in owners]
    _refuse_unknown(roles, owners)
    count = _count(structure, layout, owners, stacked)
    cuts = {name: _stacked_cut(structure, name, layout.types[name], count) for name in stacked}
    routers = [name for name, role in roles.items() if role.startswith("router")]
    cuts |= _router_cuts(structure, {name: layout.types[name] for name in routers}, count)
    return Division("experts", count, cuts, owners)


def _refuse_unknown(roles: Mapping[str, str], owners: Mapping[str, int]) -> None:
    for name, role in roles.items():
        if role == OTHER and name not in owners and _INSIDE.search(name):
            raise cannot_cut("experts", name, "it is not known what it is to the experts")


def _count(structure: Structure, layout: Layout, owners: Mapping[str, int], stacked: list[str]) -> int:
    if owners:
        numbers = set(owners.values())
        if numbers != set(range(len(numbers))):
            name = next(iter(owners))
            raise cannot_cut("experts", name, f"the experts are numbered {sorted(numbers)[:4]}…, with holes")
        return len(numbers)
    if structure.family.parts.flat_experts:
        rows = [one.shape[0] for name, one in layout.types.items() if _is_router(structure, name, one)]
        return rows[0] if rows else 0
    return next((layout.types[name].shape[0] for name in stacked if layout.types[name].shape), 0)


def _is_router(structure: Structure, name: str, one: TensorType) -> bool:
    return structure.role(name) == "router" and len(one.shape) == 2


def _stacked_cut(structure: Structure, name: str, one: TensorType, count: int) -> Cut:
    first = one.shape[0] if one.shape else 0
    if count and first == count:
        return Cut(0)
    if structure.family.parts.flat_experts and count and len(one.shape) == 2 and first % count == 0:
        return Cut(0, (first // count,))
    raise cannot_cut("experts", name, f"is {list(one.shape)}, of {count} experts")


def _router_cuts(structure: Structure, types: Mapping[str, TensorType], count: int) -> Iterator[tuple[str, Cut]]:
    found = 0
    for name, one in types.items():
        if one.dtype in _INTEGERS and len(one.shape) > 1:
            raise ArchitectureError(
                "holds the numbers of experts that tokens go to: they are not chosen by scores",
                where=f"tensor {name!r}",
                allowed="layers whose experts are chosen by scores",
                hint="experts that a table chooses cannot be removed",
            )
        cut = _router_cut(structure, name, one, count)
        if cut is not None:
            yield name, cut
            found += len(one.shape) == 2 and cut.axis == 0
    if found != 1:
        name = next(iter(types), "router")
        raise cannot_cut("experts", name, f"{found or 'no'} routers are known for {count} experts")


def _router_cut(structure: Structure, name: str, one: TensorType, count: int) -> Cut | None:
    """Return how a router's tensor is divided; None for one that is nothing to single experts."""
    shape = one.shape
    if structure.role(name) == "router":
        if shape and shape[0] == count:
            return Cut(0)
        if shape == (1, count):
            return Cut(1)
        if one.parameters == 1 or (len(shape) == 2 and shape[0] == 1):  # the gate of a shared expert
            return None
    raise cannot_cut("experts", name, f"is {list(shape)}, of {count} experts")
