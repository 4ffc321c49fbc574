"""A config format of another tool: how a file of it is recognised, read into steps, and written from a recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import Plan
from surgeon.core.recipe.recipe import Recipe
from surgeon.core.registry import classes_of
from surgeon.errors import RecipeError

Plain = Mapping[str, Any]
"""A config file as plain data."""


@dataclass(frozen=True)
class ImportedConfig:
    """Steps as they stand in a recipe, and what a person has to know, such as keys that were not taken over."""

    steps: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportedModel:
    """What is written down for another tool: a recipe, the draft and the plan that it comes to.

    model: what the other tool may call the resulting model; None where it has not been written yet.
    """

    recipe: Recipe
    draft: Draft
    plan: Plan
    model: str | None


@dataclass(frozen=True)
class ExportedConfig:
    """The text of a file, and what it could not say."""

    text: str
    notes: tuple[str, ...] = field(default=())


class ConfigFormat:
    """What every format declares. Subclasses live one per file in `surgeon/config_formats/`.

    name: what `export-config` calls it.   summary: which keys of which tool, in one line.
    names_base: whether a file of it says all that a run needs, its base included.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    names_base: ClassVar[bool] = False

    @staticmethod
    def recognises(plain: Plain) -> bool:
        """Whether a file has the keys of this format."""
        raise NotImplementedError

    @staticmethod
    def base(plain: Plain) -> str | None:
        """Return the model that a file names; None if it names none."""
        raise NotImplementedError

    @staticmethod
    def read(plain: Plain, draft: Draft) -> ImportedConfig:
        """Return the steps that do to a model what the file says.

        Raises:
            RecipeError: a key says what no step does, or what this model does not have; it is named.
        """
        raise NotImplementedError

    @staticmethod
    def write(model: ExportedModel) -> ExportedConfig:
        """Return the file that says the same as the recipe.

        Raises:
            RecipeError: the format cannot say it.
        """
        raise NotImplementedError


def config_formats() -> dict[str, type[ConfigFormat]]:
    """Return every format by name."""
    return classes_of("surgeon.config_formats", ConfigFormat)


def format_of(plain: Any) -> type[ConfigFormat] | None:
    """Return the format of a file by its keys; None for a recipe, and for what has the keys of none."""
    if not isinstance(plain, Mapping) or "steps" in plain:
        return None
    return next((one for _, one in sorted(config_formats().items()) if one.recognises(plain)), None)


def refuse_keys(plain: Plain, reasons: Mapping[str, str], hint: str) -> None:
    """Refuse keys that are set and that no step can follow; `reasons` says of each why.

    Raises:
        RecipeError: one is set.
    """
    for key, reason in reasons.items():
        if plain.get(key):
            raise RecipeError(reason, where=key, hint=hint)


def note_unread(plain: Plain, read: Collection[str]) -> tuple[str, ...]:
    """Say which keys of a file were not taken over."""
    unread = [str(key) for key in plain if key not in read]
    return (f"not taken over: {', '.join(unread)}",) if unread else ()


def number(plain: Plain, key: str, default: float) -> float:
    """Return a number of a file.

    Raises:
        RecipeError: it is none.
    """
    value = plain.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(f"is {value!r}", where=key, allowed="a number")
    return value


def words(plain: Plain, key: str) -> list[str]:
    """Return a list of texts of a file; one that is written with commas too.

    Raises:
        RecipeError: it is none.
    """
    value = plain.get(key)
    if value is None:
        return []
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise RecipeError(f"is {value!r}", where=key, allowed="a list of texts")
    return [part.strip() for part in parts if part.strip()]
