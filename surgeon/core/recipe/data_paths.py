"""Data of a recipe: what it will read, and what files named relative to its directory are called in another.

Its base too, where that is a directory: see `base_path`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

import msgspec

from surgeon.core.checkpoint.base_path import relative_model_name
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.recipe import Recipe, Step, step_from_builtins, step_to_builtins
from surgeon.core.recipe.resolution import FileDigest, resigned

_DATA = ("data", "held_out")
_MODELS = ("from",)
_NAMES = (*_DATA, "rewriter", *_MODELS)
"""What names a file, or a directory, wherever it stands in a step: in a bound and in an objective too."""


def rebase_data_paths(recipe: Recipe, old: Path, new: Path) -> Recipe:
    """Return a recipe of the directory `old` as one of the directory `new`: the same files under other names.

    What is not there relative to `old` keeps its name: the recipe's own names, shares, hub ids, absolute paths.
    """
    base = msgspec.structs.replace(recipe.base, model=relative_model_name(recipe.base.model, old, new))
    recipe = msgspec.structs.replace(recipe, base=base)
    if old.resolve() == new.resolve():
        return recipe

    def renamed(name: str) -> str:
        is_there = not Path(name).is_absolute() and (old / name).exists()
        return os.path.relpath((old / name).resolve(), new.resolve()) if is_there else name

    def rename(key: str, name: str) -> str:
        if key in _MODELS:
            return relative_model_name(name, old, new)
        return name if name in recipe.data else renamed(name)

    def moved(step: Step) -> Step:
        plain = step_to_builtins(step)
        changed = _changed(plain, rename)
        return step if changed == plain else step_from_builtins(changed, "recipe")

    data = {name: renamed(file) for name, file in recipe.data.items()}
    return resigned(recipe, msgspec.structs.replace(recipe, data=data, steps=tuple(map(moved, recipe.steps))))


def file_digests(root: Path) -> FileDigest:
    """Return what gives the digest of a data file in the recipe's directory `root`; None for what is no file here."""

    def digest(name: str) -> str | None:
        path = root / Path(name).expanduser()
        try:
            status = path.stat()
            return _digest(path, status.st_size, status.st_mtime_ns) if S_ISREG(status.st_mode) else None
        except OSError:
            return None

    return digest


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, written_ns: int) -> str:
    del size, written_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def named_data(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield (where, data) of all that carrying out a recipe reads; what is resolved is measured no more."""
    for number, step in enumerate(recipe.steps):
        if step.resolved is None or isinstance(step.operation, LearningStep):
            for where, name in _named(step_to_builtins(step), f"steps[{number}]"):
                yield where, recipe.data.get(name, name)


def _named(plain: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(plain, dict):
        for key, value in plain.items():
            if key in _DATA and isinstance(value, str):
                yield f"{where}.{key}", value
            else:
                yield from _named(value, f"{where}.{key}")
    elif isinstance(plain, list | tuple):
        for at, one in enumerate(plain):
            yield from _named(one, f"{where}[{at}]")


def _changed(plain: Any, renamed: Callable[[str, str], str]) -> Any:
    """Return plain data with every name of a file or a model changed; `renamed` gets the key and the name."""
    if isinstance(plain, list | tuple):
        return [_changed(one, renamed) for one in plain]
    if not isinstance(plain, dict):
        return plain
    return {
        key: renamed(key, value) if key in _NAMES and isinstance(value, str) else _changed(value, renamed)
        for key, value in plain.items()
    }
