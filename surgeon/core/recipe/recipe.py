"""A recipe: base, seed, data and steps. The document, the undo history and what a replay needs.

Every fault of a document is reported at once, with its line, what is allowed and the nearest spelling.
`load(dump(recipe)) == recipe`, and comments survive a save; the YAML itself is `yaml_document.py`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from surgeon.core.recipe.learning_step import LEARNED, ResultStep
from surgeon.core.recipe.objective import ObjectiveChoice, parse_objective
from surgeon.core.recipe.operation import Operation, operations, selection_fields
from surgeon.core.recipe.problems import Problems, Spot, built_in, validation_text
from surgeon.core.selection.part_selection import by_scores_of_layers
from surgeon.core.selection.selection import Selection, parse_selection
from surgeon.core.selection.spot_selection import SpotSelection
from surgeon.errors import RecipeError

VERSION = 1
RESOLVED_KEYS = frozenset({"resolved", "resolved_for"})
"""The keys of a step that say what it came to, beside its operation."""


class Base(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which model. `fingerprint` is checked before a replay; see `Checkpoint.fingerprint`.

    trust_remote_code: whether code that the model brings may be run, as transformers calls it.
    """

    model: str
    fingerprint: str | None = None
    trust_remote_code: bool = False

    def check(self, fingerprint: str, found_at: str, where: str) -> None:
        """Refuse a model that is not the one the recipe was written for.

        Raises:
            RecipeError: the fingerprints differ.
        """
        if self.fingerprint and self.fingerprint != fingerprint:
            raise RecipeError(
                f"was written for a model with fingerprint {self.fingerprint}, but {found_at} has {fingerprint}",
                where=f"{where}, base.fingerprint",
                hint="name the right model, or remove the fingerprint to use the recipe on this one",
            )


_BASE_KEYS = (*Base.__struct_fields__, "adapter")
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]


class ResolvedFor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the resolved part of a step was resolved for; see `resolution`.

    recipe: digest of the step's own words, the seed, and what the steps before it came to.
    base: fingerprint of the base.   data: digest of each data file that its selections were measured on.
    """

    recipe: Digest
    base: Digest | None = None
    data: tuple[Digest | None, ...] = ()


class Step(msgspec.Struct, frozen=True):
    """One operation with its arguments. `resolved` holds what measured selections came to, by field."""

    operation: Operation
    resolved: dict[str, tuple[int | str, ...]] | None = None
    resolved_for: ResolvedFor | None = None


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a replay needs. `data` names files, relative to the recipe's own directory."""

    base: Base
    seed: int = 0
    data: dict[str, str] = {}
    steps: tuple[Step, ...] = ()


def step_of(name: str, fields: Mapping[str, Any], where: str) -> Step:
    """Build a step from an operation's name and its fields.

    Raises:
        RecipeError: a field is unknown, missing or wrong; all of them at once.
    """
    problems = Problems(where, None)
    step = _step({name: dict(fields)}, (), problems)
    problems.raise_any()
    assert step is not None
    return step


def step_to_builtins(step: Step) -> dict[str, Any]:
    """Return a step as plain data, defaults left out: the inverse of `step_of`."""
    fields = built_in(msgspec.to_builtins(step.operation, enc_hook=_encode))
    plain: dict[str, Any] = {step.operation.name: fields}
    if step.resolved is not None:
        plain["resolved"] = {name: list(positions) for name, positions in step.resolved.items()}
        if step.resolved_for is not None:
            plain["resolved_for"] = built_in(msgspec.to_builtins(step.resolved_for))
    return plain


def step_from_builtins(plain: Mapping[str, Any], where: str) -> Step:
    """Build a step from what `step_to_builtins` returned.

    Raises:
        RecipeError: it is no such thing; all faults at once.
    """
    problems = Problems(where, None)
    step = _step(plain, (), problems)
    problems.raise_any()
    assert step is not None
    return step


def recipe_to_builtins(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data, in the order in which it is written."""
    plain: dict[str, Any] = {"version": VERSION, "base": msgspec.to_builtins(recipe.base), "seed": recipe.seed}
    if recipe.data:
        plain["data"] = dict(recipe.data)
    plain["steps"] = [step_to_builtins(step) for step in recipe.steps]
    return plain


def recipe_from_builtins(plain: Any, where: str = "recipe") -> Recipe:
    """Check plain data and build the recipe.

    Raises:
        RecipeError: anything is unknown, missing or of the wrong type; all faults at once.
    """
    problems = Problems(where, plain)
    recipe = _recipe(plain, problems)
    problems.raise_any()
    assert recipe is not None
    return recipe


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: it cannot be read, is not YAML, repeats a key, or does not check.
    """
    from surgeon.core.recipe.yaml_document import (
        read_document,  # YAML takes a while to load, and a screen may never need it
    )

    return recipe_from_builtins(read_document(path), str(path))


def dump_recipe(recipe: Recipe, like: Path | None = None) -> str:
    """Write a recipe as YAML; comments of the file `like` survive where the parts they stand at are unchanged."""
    from surgeon.core.recipe.yaml_document import write_document

    return write_document(recipe_to_builtins(recipe), like)


def _recipe(plain: Any, problems: Problems) -> Recipe | None:
    if not isinstance(plain, Mapping):
        problems.add((), "a recipe is a mapping", "version, base, seed, data, steps")
        return None
    known = ["version", "base", "seed", "data", "steps"]
    for key in plain:
        if key not in known:
            problems.unknown((), key, known)
    if type(plain.get("version")) is bool or plain.get("version") != VERSION:
        problems.add(("version",), f"is {plain.get('version', 'missing')!r}", str(VERSION))
    base = _field(plain, "base", Base, problems)
    seed = _field(plain, "seed", int, problems) if "seed" in plain else 0
    data = _field(plain, "data", dict[str, str], problems) if "data" in plain else {}
    steps = [*_adapter_of_base(plain, problems), *_steps(plain.get("steps", []), problems)]
    if problems.faults:
        return None
    return Recipe(base=base, seed=seed, data=data, steps=tuple(steps))


def _adapter_of_base(plain: Mapping[str, Any], problems: Problems) -> list[Step]:
    """Return the first step that `base: {model: …, adapter: …}` is short for."""
    adapter = plain["base"].get("adapter") if isinstance(plain.get("base"), Mapping) else None
    found = None if adapter is None else _step({"load_adapter": {"from": adapter}}, ("base", "adapter"), problems)
    return [] if found is None else [found]


def _field(plain: Mapping[str, Any], key: str, kind: Any, problems: Problems) -> Any:
    if key == "base" and isinstance(plain.get(key), Mapping):
        for name in plain[key]:
            if name not in _BASE_KEYS:
                problems.unknown((key,), name, list(_BASE_KEYS))
    try:
        return msgspec.convert(built_in(plain[key]), kind)
    except KeyError:
        problems.add((key,), "is missing")
    except msgspec.ValidationError as error:
        problems.add((key,), validation_text(error))
    return None


def _steps(plain: Any, problems: Problems) -> list[Step]:
    if not isinstance(plain, list):
        problems.add(("steps",), "is no list", "a list of operations")
        return []
    found = (_step(step, ("steps", at), problems) for at, step in enumerate(plain))
    return [step for step in found if step is not None]


def _step(plain: Any, path: Spot, problems: Problems) -> Step | None:
    known = operations()
    names = [key for key in plain if key not in RESOLVED_KEYS] if isinstance(plain, Mapping) else []
    if len(names) != 1:
        problems.add(path, "a step is one operation", ", ".join(known))
        return None
    name = names[0]
    if name not in known:
        problems.unknown(path, name, list(known))
        return None
    operation = _operation(known[name], {} if plain[name] is None else plain[name], (*path, name), problems)
    resolved = _resolved(plain["resolved"], known[name], path, problems) if "resolved" in plain else None
    made_for = (
        _resolved_for(plain["resolved_for"], path, problems)
        if resolved is not None and "resolved_for" in plain
        else None
    )
    return Step(operation, resolved, made_for) if operation is not None else None


def _operation(kind: type[Operation], plain: Any, path: Spot, problems: Problems) -> Operation | None:
    if not isinstance(plain, Mapping):
        problems.add(path, f"is {type(plain).__name__}", "a mapping of fields")
        return None
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    before = len(problems.faults)
    values: dict[str, Any] = {}
    for key, value in plain.items():
        if key not in fields:
            problems.unknown(path, key, list(fields))
            continue
        if isinstance(value, float) and not math.isfinite(value):
            problems.add((*path, key), f"is {value}", "finite numbers")
            continue
        try:
            values[fields[key].name] = msgspec.convert(built_in(value), fields[key].type, dec_hook=_decode)
        except msgspec.ValidationError as error:
            problems.add((*path, key), validation_text(error))
    for name, field in fields.items():
        if field.required and name not in plain:
            problems.add((*path, name), "is missing")
    return kind(**values) if len(problems.faults) == before else None


def _resolved_for(plain: Any, path: Spot, problems: Problems) -> ResolvedFor | None:
    try:
        return msgspec.convert(built_in(plain), ResolvedFor)
    except msgspec.ValidationError as error:
        problems.add((*path, "resolved_for"), validation_text(error), "what a run wrote there; leave it out")
        return None


def _resolved(
    plain: Any, operation: type[Operation], path: Spot, problems: Problems
) -> dict[str, tuple[int | str, ...]] | None:
    try:
        resolved = msgspec.convert(built_in(plain), dict[str, tuple[int | str, ...]])
    except msgspec.ValidationError as error:
        problems.add((*path, "resolved"), validation_text(error))
        return None
    selections = selection_fields(operation)
    known = [*selections, *([LEARNED] if issubclass(operation, ResultStep) else [])]
    for name, chosen in resolved.items():
        kind = str if name == LEARNED or issubclass(selections.get(name, Selection), SpotSelection) else int
        if name not in known:
            problems.unknown((*path, "resolved"), name, known)
        elif not all(isinstance(one, kind) for one in chosen):
            allowed = "texts" if kind is str else "positions"
            problems.add((*path, "resolved", name), "has entries of the wrong kind", allowed)
    return resolved


def _decode(kind: type, raw: Any) -> Any:
    try:
        if kind is ObjectiveChoice:
            return parse_objective(raw)
        if not issubclass(kind, Selection):
            raise NotImplementedError(kind)
        return kind.parse(raw) if issubclass(kind, SpotSelection) else by_scores_of_layers(parse_selection(raw))
    except RecipeError as error:
        raise ValueError(error.what + (f" (allowed: {error.allowed})" if error.allowed else "")) from error


def _encode(value: Any) -> Any:
    if isinstance(value, (Selection, ObjectiveChoice)):
        return built_in(value.raw)
    raise NotImplementedError(type(value))
