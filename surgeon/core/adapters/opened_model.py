"""What a person names as a model: a checkpoint, or an adapter, which means its base with the adapter on it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from surgeon.core.adapters.peft_files import PeftAdapter, open_adapter
from surgeon.core.checkpoint.base_path import is_relative, model_name, relative_model_name
from surgeon.core.checkpoint.model_location import is_adapter, locate_model
from surgeon.core.recipe.recipe import Base, Recipe, load_recipe, step_of
from surgeon.errors import CheckpointError


def recipe_on(name: str, *, trust: bool = False) -> Recipe:
    """Return the recipe that a model on the command line begins with: without steps, or with its adapter loaded.

    trust: code that the model brings may be run.

    Raises:
        CheckpointError: it is an adapter that cannot be read, or whose base is not named.
    """
    adapter = named_adapter(name)
    if adapter is None:
        return Recipe(base=Base(model=name, trust_remote_code=trust))
    step = step_of("load_adapter", {"from": name}, name)
    return Recipe(base=Base(model=base_of(adapter), trust_remote_code=trust), steps=(step,))


def opened_recipe(name: str, path: Path | None, *, trust: bool) -> tuple[str, Recipe]:
    """Return the base that a model on the command line means, and the recipe at `path` or the one that is begun.

    Raises:
        CheckpointError: as `recipe_on` does.   RecipeError: as reading it does.
    """
    begun = recipe_on(name)
    recipe = load_recipe(path) if path is not None and path.is_file() else begun
    return begun.base.model, trusting(recipe, begun.base.model, path.parent if path else Path(), trust=trust)


def trusting(recipe: Recipe, model: str, root: Path, *, trust: bool) -> Recipe:
    """Return a recipe, in `root`, that trusts the code of `model` if that is asked for, or if it names this model."""
    known = recipe.base.trust_remote_code and model_name(recipe.base.model, root) == model
    base = msgspec.structs.replace(recipe.base, trust_remote_code=trust or known)
    return msgspec.structs.replace(recipe, base=base)


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
