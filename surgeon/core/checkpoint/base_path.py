"""A base, or another model, that is named by its place beside the recipe: `./base`, `../models/base`.

Such a name is relative to the recipe's own directory, so that a recipe and its base can be moved together and the
recipe run from anywhere. A name without `./` means what it means on the command line: a directory relative to the
current one, `demo`, or a hub id.
"""

from __future__ import annotations

import os
from pathlib import Path

from surgeon.core.checkpoint.model_location import known_elsewhere, locate_model


def is_relative(name: str) -> bool:
    """Whether a name is relative to the recipe's directory."""
    return name in (".", "..") or name.startswith(("./", "../"))


def model_name(name: str, root: Path) -> str:
    """Return a model of the recipe in the directory `root` as it is named on the command line."""
    # Resolved first: `..` of a link leads elsewhere, and of a directory that is yet to be made nowhere.
    return os.path.normpath(root.resolve() / name) if is_relative(name) else name


def locate_base(name: str, root: Path) -> Path:
    """Return the directory of a model of the recipe in the directory `root`.

    Raises:
        CheckpointError: as `locate_model` does.
    """
    return locate_model(model_name(name, root))


def relative_model_name(name: str, old: Path, new: Path) -> str:
    """Return a model of a recipe in `old` as a recipe in `new` names it: beside it, where it is a relative directory.

    What is no directory here, such as a hub id, and absolute paths keep their name.
    """
    place = Path(model_name(name, old))
    if is_relative(name) or (not Path(name).is_absolute() and place.is_dir()):
        # A link in the end is meant as it is; those on the way would make `..` lead elsewhere.
        place = place.parent.resolve() / place.name if place.name not in ("", "..") else place.resolve()
        relative = os.path.relpath(place, new.resolve())
        return relative if is_relative(relative) else f"./{relative}"
    return name


def resolved_model_name(name: str, root: Path) -> str:
    """Return a model that a person named on the command line as a recipe in the directory `root` names it."""
    return relative_model_name(name, Path.cwd(), root) if is_relative(name) else name


def name_elsewhere(name: str, root: Path) -> str:
    """Return what other programs, started where this one was, may call a model of the recipe in `root`."""
    return os.path.relpath(model_name(name, root)) if is_relative(name) else known_elsewhere(name)
