"""What a person names as a model: a checkpoint, or an adapter, which means its base with the adapter on it."""

from __future__ import annotations

from pathlib import Path

from surgeon.core.adapters.peft_files import PeftAdapter, is_adapter, open_adapter
from surgeon.core.checkpoint.base_path import is_relative, relative_model_name
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.core.recipe.recipe import Base, Recipe, step_of
from surgeon.errors import CheckpointError


def recipe_on(name: str) -> Recipe:
    """Return the recipe that a model on the command line begins with: without steps, or with its adapter loaded.

    Raises:
        CheckpointError: it is an adapter that cannot be read, or whose base is not named.
    """
    adapter = named_adapter(name)
    if adapter is None:
        return Recipe(base=Base(model=name))
    step = step_of("load_adapter", {"from": name}, name)
    return Recipe(base=Base(model=base_of(adapter)), steps=(step,))


def named_adapter(name: str) -> PeftAdapter | None:
    """Return the adapter that a name means; None where it means a model."""
    path = Path(name).expanduser()
    if not path.is_dir():
        return None  # of a hub id, it is only known once it has been fetched
    return open_adapter(path) if is_adapter(locate_model(name)) else None


def base_of(adapter: PeftAdapter) -> str:
    """Return the base of an adapter as it is named from here; beside the adapter, where its config says `../model`.

    Raises:
        CheckpointError: its config names none.
    """
    if not adapter.base:
        raise CheckpointError(
            "names no base model", where=f"{adapter.path}, base_model_name_or_path",
            hint="write a recipe: base: {model: …, adapter: …}",
        )  # fmt: skip
    beside = (adapter.path / adapter.base).resolve()
    if is_relative(adapter.base) and (beside / "config.json").is_file():
        return relative_model_name(str(beside), Path.cwd(), Path.cwd())
    return adapter.base
