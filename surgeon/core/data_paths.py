"""Data files of a recipe, which are named relative to its own directory, seen from another one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from surgeon.core.recipe import Recipe, Step, step_from_builtins, step_to_builtins

_FIELDS = ("data", "held_out", "rewriter")
"""What names a file, or a directory, wherever it stands in a step: in a bound and in an objective too."""


def seen_from(recipe: Recipe, old: Path, new: Path) -> Recipe:
    """Return a recipe of the directory `old` as one of the directory `new`: the same files under other names.

    What is not there relative to `old` keeps its name: the recipe's own names, shares, hub ids, absolute paths.
    """
    if old.resolve() == new.resolve():
        return recipe

    def renamed(name: str) -> str:
        is_there = not Path(name).is_absolute() and (old / name).exists()
        return os.path.relpath((old / name).resolve(), new.resolve()) if is_there else name

    def moved(step: Step) -> Step:
        plain = step_to_builtins(step)
        changed = _changed(plain, lambda name: name if name in recipe.data else renamed(name))
        return step if changed == plain else step_from_builtins(changed, "recipe")

    data = {name: renamed(file) for name, file in recipe.data.items()}
    return msgspec.structs.replace(recipe, data=data, steps=tuple(map(moved, recipe.steps)))


def _changed(plain: Any, renamed: Callable[[str], str]) -> Any:
    """Return plain data with every name of a file changed."""
    if isinstance(plain, list | tuple):
        return [_changed(one, renamed) for one in plain]
    if not isinstance(plain, dict):
        return plain
    return {
        key: renamed(value) if key in _FIELDS and isinstance(value, str) else _changed(value, renamed)
        for key, value in plain.items()
    }
