"""Data files of a recipe, which are named relative to its own directory, seen from another one."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from surgeon.core.operation import Operation
from surgeon.core.recipe import Recipe

_FIELDS = ("data", "held_out")


def seen_from(recipe: Recipe, old: Path, new: Path) -> Recipe:
    """Return a recipe of the directory `old` as one of the directory `new`: the same files under other names.

    What is no file relative to `old` keeps its name: the recipe's own names, shares, hub ids, absolute paths.
    """
    if old.resolve() == new.resolve():
        return recipe

    def renamed(name: str) -> str:
        is_file = not Path(name).is_absolute() and (old / name).is_file()
        return os.path.relpath((old / name).resolve(), new.resolve()) if is_file else name

    def moved(operation: Operation) -> Operation:
        values = {name: getattr(operation, name, None) for name in _FIELDS}
        files = {
            name: renamed(file) for name, file in values.items() if isinstance(file, str) and file not in recipe.data
        }
        return msgspec.structs.replace(operation, **files)

    data = {name: renamed(file) for name, file in recipe.data.items()}
    steps = tuple(msgspec.structs.replace(step, operation=moved(step.operation)) for step in recipe.steps)
    return msgspec.structs.replace(recipe, data=data, steps=steps)
