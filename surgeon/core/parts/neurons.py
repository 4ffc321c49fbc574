"""A layer as neurons: rows of the matrices that lead into the MLP's middle, columns of the one that leads out."""

from __future__ import annotations

from surgeon.core.parts.division import Cut, Division, cannot_cut
from surgeon.core.structure.layouts import Layout
from surgeon.core.structure.structure import OTHER, Structure

_INTO = ("mlp.up", "mlp.gate")
_BOTH, _OUT = "mlp.gate_up", "mlp.down"


def divide_neurons(structure: Structure, layout: Layout) -> Division | None:
    """Return a layer as the neurons of its MLP; None if it has no MLP of its own, or experts beside it.

    Raises:
        ArchitectureError: a tensor of the MLP does not divide into as many neurons as the others.
    """
    roles = structure.roles_of(layout)
    if any(role.startswith(("experts", "router")) for role in roles.values()):
        return None
    out = [name for name, role in roles.items() if role == _OUT and len(layout.types[name].shape) == 2]
    if not out:
        return None
    if len(out) > 1:
        raise cannot_cut("neurons", out[1], "is the second of its kind in a layer")
    transposed = structure.family.transposed
    count = layout.types[out[0]].shape[0 if _OUT in transposed else 1]
    cuts: dict[str, Cut] = {}
    for name, role in roles.items():
        if role.startswith("mlp."):
            cut = _cut(structure, name, role, layout.types[name].shape, count)
            cuts |= {} if cut is None else {name: cut}
        elif role == OTHER and _stands_beside(name, out[0]) and layout.types[name].parameters > 1:
            raise cannot_cut("neurons", name, "it is not known what it does in the MLP")
    if len(cuts) < 2:
        raise cannot_cut("neurons", out[0], "nothing is known that leads into it")
    return Division("neurons", count, cuts, {})


def _stands_beside(name: str, out: str) -> bool:
    """Whether a tensor belongs to the module that holds the matrix called `out`."""
    module = out.removesuffix(".weight").rpartition(".")[0]
    return bool(module) and name.startswith(f"{module}.")


def _cut(structure: Structure, name: str, role: str, shape: tuple[int, ...], count: int) -> Cut | None:
    """Return how a tensor of the MLP is divided; None for the bias of what leads out of it."""
    into = 1 if role in structure.family.transposed else 0
    if role == _OUT:
        if len(shape) == 1 and name.endswith("bias"):
            return None
        if len(shape) == 2 and shape[1 - into] == count:
            return Cut(1 - into)
    axis = into if len(shape) == 2 else 0
    if len(shape) in (1, 2) and role in _INTO and shape[axis] == count:
        return Cut(axis)
    if len(shape) in (1, 2) and role == _BOTH and _halved(structure) and shape[axis] == 2 * count:
        return Cut(axis, (1, 1))
    raise cannot_cut("neurons", name, f"is {list(shape)}, of {count} neurons")


def _halved(structure: Structure) -> bool:
    return _BOTH in structure.family.fused or _BOTH in structure.family.parts.halves
