"""A recipe: base, seed, data and steps. The document, the undo history and what a replay needs.

YAML 1.2, read with line numbers kept; every fault of a document is reported at once, with its line, what is allowed
and the nearest spelling. `load(dump(recipe)) == recipe`, and comments survive a save.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from surgeon.core.operation import Operation, operations
from surgeon.core.selection import Selection, parse_selection
from surgeon.errors import RecipeError, SelectionError

VERSION = 1
Path_ = tuple[str | int, ...]


class Base(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which model. `fingerprint` is checked before a replay; see `Checkpoint.fingerprint`."""

    model: str
    fingerprint: str | None = None


class Step(msgspec.Struct, frozen=True):
    """One operation with its arguments. `resolved` holds what measured selections came to, by field."""

    operation: Operation
    resolved: dict[str, tuple[int, ...]] | None = None


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
    problems = _Problems(where, None)
    step = _step({name: dict(fields)}, (), problems)
    problems.raise_any()
    assert step is not None
    return step


def step_to_builtins(step: Step) -> dict[str, Any]:
    """Return a step as plain data, defaults left out: the inverse of `step_of`."""
    fields = msgspec.to_builtins(step.operation, enc_hook=_encode)
    plain: dict[str, Any] = {step.operation.name: fields}
    if step.resolved is not None:
        plain["resolved"] = {name: list(positions) for name, positions in step.resolved.items()}
    return plain


def recipe_to_builtins(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data, in the order in which it is written."""
    plain: dict[str, Any] = {"version": VERSION, "base": msgspec.to_builtins(recipe.base), "seed": recipe.seed}
    if recipe.data:
        plain["data"] = dict(recipe.data)
    plain["steps"] = [step_to_builtins(step) for step in recipe.steps]
    return plain


def recipe_from_builtins(plain: Any, where: str = "recipe", overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Check plain data and build the recipe; `overrides` maps dotted paths such as `steps.0.prune.layers` to values.

    Raises:
        RecipeError: anything is unknown, missing or of the wrong type; all faults at once.
    """
    for path, value in (overrides or {}).items():
        _override(plain, path, value)
    problems = _Problems(where, plain)
    recipe = _recipe(plain, problems)
    problems.raise_any()
    assert recipe is not None
    return recipe


def load_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: it cannot be read, is not YAML, repeats a key, or does not check.
    """
    return recipe_from_builtins(_read_yaml(path), str(path), overrides)


def dump_recipe(recipe: Recipe, like: Path | None = None) -> str:
    """Write a recipe as YAML; comments of the file `like` survive where the parts they stand at are unchanged."""
    plain = recipe_to_builtins(recipe)
    document = _read_yaml(like) if like is not None and like.is_file() else CommentedMap()
    _merge(document, plain)
    stream = io.StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()


def parse_value(text: str) -> Any:
    """Read a value as YAML does, for `--set` and for options."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise RecipeError(f"{text!r} is no YAML value") from error


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path), hint="check the path") from error
    try:
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"is not valid YAML: {error.problem}", where=f"{path}{line}") from error


def _override(plain: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    spot = plain
    try:
        for key in parents:
            spot = spot[int(key)] if isinstance(spot, list) else spot[key]
        if isinstance(spot, list):
            spot[int(last)] = value
        else:
            spot[last] = value
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise RecipeError("leads nowhere in this recipe", where=f"--set {path}", allowed="a path such as steps.0.prune.layers") from error


def _merge(old: CommentedMap, new: Mapping[str, Any]) -> None:
    for key in [key for key in old if key not in new]:
        del old[key]
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, CommentedMap) and isinstance(value, dict):
            _merge(before, value)
        elif isinstance(before, CommentedSeq) and isinstance(value, list) and value:
            _merge_list(before, value)
        elif before != value or key not in old:
            old[key] = _flow(value)


def _merge_list(old: CommentedSeq, new: list[Any]) -> None:
    del old[len(new) :]
    for at, value in enumerate(new):
        if at >= len(old):
            old.append(_flow(value))
        elif isinstance(old[at], CommentedMap) and isinstance(value, dict) and old[at].keys() == value.keys():
            _merge(old[at], value)
        elif old[at] != value:
            old[at] = _flow(value)


def _flow(value: Any, depth: int = 0) -> Any:
    """Write the inside of a step on one line, and lists of numbers too."""
    if isinstance(value, dict):
        node = CommentedMap({key: _flow(item, depth + 1) for key, item in value.items()})
        if depth:
            node.fa.set_flow_style()
        return node
    if isinstance(value, (list, tuple)):
        sequence = CommentedSeq([_flow(item, depth) for item in value])
        if not any(isinstance(item, dict) for item in value):
            sequence.fa.set_flow_style()
        return sequence
    return value


class _Problems:
    """Collects every fault of a document with its line."""

    def __init__(self, where: str, document: Any) -> None:
        self.where, self.document, self.faults = where, document, list[str]()

    def add(self, path: Path_, what: str, allowed: str = "") -> None:
        line = self._line(path)
        spot = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        at = f"line {line}, {spot}" if line else spot
        self.faults.append(f"{at}: {what}" + (f" (allowed: {allowed})" if allowed else ""))

    def _line(self, path: Path_) -> int | None:
        spot, line = self.document, None
        for part in path:
            if not isinstance(spot, (CommentedMap, CommentedSeq)):
                break
            try:
                line = (spot.lc.key(part) if isinstance(spot, CommentedMap) else spot.lc.item(part))[0] + 1
                spot = spot[part]
            except (KeyError, IndexError, TypeError):
                break
        return line

    def unknown(self, path: Path_, key: str, known: list[str]) -> None:
        near = get_close_matches(str(key), known, n=1)
        did = f"; did you mean {near[0]!r}?" if near else ""
        self.add((*path, key), f"unknown key {key!r}{did}", ", ".join(known))

    def raise_any(self) -> None:
        if self.faults:
            what = self.faults[0] if len(self.faults) == 1 else f"{len(self.faults)} problems\n  " + "\n  ".join(self.faults)
            raise RecipeError(what, where=self.where)


def _recipe(plain: Any, problems: _Problems) -> Recipe | None:
    if not isinstance(plain, Mapping):
        problems.add((), "a recipe is a mapping", "version, base, seed, data, steps")
        return None
    known = ["version", "base", "seed", "data", "steps"]
    for key in plain:
        if key not in known:
            problems.unknown((), key, known)
    if plain.get("version") != VERSION:
        problems.add(("version",), f"is {plain.get('version', 'missing')!r}", str(VERSION))
    base = _field(plain, "base", Base, problems)
    seed = _field(plain, "seed", int, problems) if "seed" in plain else 0
    data = _field(plain, "data", dict[str, str], problems) if "data" in plain else {}
    steps = _steps(plain.get("steps", []), problems)
    if problems.faults:
        return None
    return Recipe(base=base, seed=seed, data=data, steps=tuple(steps))


def _field(plain: Mapping[str, Any], key: str, kind: Any, problems: _Problems) -> Any:
    if key == "base" and isinstance(plain.get(key), Mapping):
        for name in plain[key]:
            if name not in ("model", "fingerprint"):
                problems.unknown((key,), name, ["model", "fingerprint"])
    try:
        return msgspec.convert(_plain(plain[key]), kind)
    except KeyError:
        problems.add((key,), "is missing")
    except msgspec.ValidationError as error:
        problems.add((key,), str(error))
    return None


def _steps(plain: Any, problems: _Problems) -> list[Step]:
    if not isinstance(plain, list):
        problems.add(("steps",), "is no list", "a list of operations")
        return []
    found = (_step(step, ("steps", at), problems) for at, step in enumerate(plain))
    return [step for step in found if step is not None]


def _step(plain: Any, path: Path_, problems: _Problems) -> Step | None:
    known = operations()
    names = [key for key in plain if key != "resolved"] if isinstance(plain, Mapping) else []
    if len(names) != 1:
        problems.add(path, "a step is one operation", ", ".join(known))
        return None
    name = names[0]
    if name not in known:
        problems.unknown(path, name, list(known))
        return None
    operation = _operation(known[name], plain[name] or {}, (*path, name), problems)
    resolved = _resolved(plain["resolved"], operation, path, problems) if "resolved" in plain else None
    return Step(operation, resolved) if operation is not None else None


def _operation(kind: type[Operation], plain: Any, path: Path_, problems: _Problems) -> Operation | None:
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
        try:
            values[fields[key].name] = msgspec.convert(_plain(value), fields[key].type, dec_hook=_decode)
        except msgspec.ValidationError as error:
            problems.add((*path, key), str(error))
    for name, field in fields.items():
        if field.required and name not in plain:
            problems.add((*path, name), "is missing")
    return kind(**values) if len(problems.faults) == before else None


def _resolved(plain: Any, operation: Operation | None, path: Path_, problems: _Problems) -> dict[str, tuple[int, ...]] | None:
    try:
        resolved = msgspec.convert(_plain(plain), dict[str, tuple[int, ...]])
    except msgspec.ValidationError as error:
        problems.add((*path, "resolved"), str(error))
        return None
    known = list(operation.selections()) if operation is not None else list(resolved)
    for name in resolved:
        if name not in known:
            problems.unknown((*path, "resolved"), name, known)
    return resolved


def _decode(kind: type, raw: Any) -> Any:
    if kind is not Selection:
        raise NotImplementedError(kind)
    try:
        return parse_selection(raw)
    except SelectionError as error:
        raise ValueError(error.what + (f" (allowed: {error.allowed})" if error.allowed else "")) from error


def _encode(value: Any) -> Any:
    if isinstance(value, Selection):
        return _plain(value.raw)
    raise NotImplementedError(type(value))


def _plain(raw: Any) -> Any:
    """Return built-in types only: ruamel's own remember how a scalar was written."""
    if isinstance(raw, Selection):
        return _plain(raw.raw)
    if isinstance(raw, Mapping):
        return {str(key): _plain(value) for key, value in raw.items()}
    if isinstance(raw, (list, tuple)):
        return [_plain(value) for value in raw]
    if raw is None or isinstance(raw, bool):
        return raw
    kind = next((kind for kind in (int, float) if isinstance(raw, kind)), str)
    return kind(raw)
