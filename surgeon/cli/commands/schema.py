"""`surgeon schema`: the JSON Schema of recipes, generated from the operations, for editors and other programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import msgspec

from surgeon.cli.formatting import print_json
from surgeon.cli.options import SurgeonCommand
from surgeon.core.recipe.learning_step import LEARNED, ResultStep
from surgeon.core.recipe.objective import Objective, ObjectiveChoice, objectives
from surgeon.core.recipe.operation import Operation, operations, selection_fields
from surgeon.core.recipe.recipe import VERSION
from surgeon.core.scoring.score_kinds import ScoreKind, score_kinds
from surgeon.core.selection.selection import GRAMMAR, Selection
from surgeon.core.selection.spot_selection import SpotSelection

_SELECTION = {"$ref": "#/$defs/Selection"}
_OBJECTIVE = {"$ref": "#/$defs/Objective"}
_BASE: dict[str, Any] = {
    "model": {"type": "string"},
    "fingerprint": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "adapter": {"type": "string", "description": "short for a first step load_adapter: {from: …}"},
    "trust_remote_code": {"type": "boolean", "description": "whether code that the model brings may be run"},
}
_POSITION = {"type": "integer", "minimum": 0}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{16}$"}


@click.command("schema", cls=SurgeonCommand)
def command() -> None:
    """Print the JSON Schema of recipes. Editors complete and check YAML with it."""
    print_json(recipe_schema())


def recipe_schema() -> dict[str, Any]:
    """Return the schema; it takes what `load_recipe` takes, short of the language inside selections."""
    known = operations()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "surgeon recipe",
        "type": "object",
        "properties": {
            "version": {"const": VERSION},
            "base": _closed(_BASE, ["model"]),
            "seed": {"type": "integer"},
            "data": {"type": "object", "additionalProperties": {"type": "string"}},
            "steps": {"type": "array", "items": {"oneOf": [_step(name, kind) for name, kind in sorted(known.items())]}},
        },
        "required": ["version", "base"],
        "additionalProperties": False,
        "$defs": {"Selection": selection_schema(), "Objective": objective_schema()},
    }


def selection_schema() -> dict[str, Any]:
    """Return the schema of a selection: text, a position, a list, or a mapping."""
    ranked = {
        "by": {
            "anyOf": [{"type": "string", "description": "a score"}, *map(_score_with_settings, score_kinds().values())]
        },
        "data": _or_null({"type": "string", "description": "a name from the recipe's data, or a file"}),
        "protect": {"anyOf": [_SELECTION, {"type": "array", "items": _SELECTION}]},
    }
    count = {"anyOf": [_POSITION, {"type": "string", "pattern": "^[0-9]{1,9}%?$"}]}
    some = {"anyOf": [_POSITION, {"type": "string"}, {"type": "array", "items": {"type": ["integer", "string"]}}]}
    forms = [
        {"type": "string", "description": GRAMMAR},
        _POSITION,
        {"type": "array", "items": _SELECTION},
        *(_closed({head: count, **ranked}, [head, "by"]) for head in ("lowest", "highest", "block")),
        _closed({"through": {"enum": ["highest", "lowest"]}, **ranked}, ["through", "by"]),
        *(_closed({head: some}, [head]) for head in ("first", "last", "original")),
        _closed({"except": _SELECTION}, ["except"]),
    ]
    return {"description": "which layers", "anyOf": forms}


def objective_schema() -> dict[str, Any]:
    """Return the schema of an objective: its name, or its name and settings."""
    known = sorted(objectives().items())
    forms = [{"enum": [name for name, _ in known]}, *(_objective(kind) for _, kind in known)]
    return {"description": "what is minimised", "anyOf": forms}


def _objective(kind: type[Objective]) -> dict[str, Any]:
    _, parts = msgspec.json.schema_components([kind], ref_template="{name}")
    settings = _closed(parts[kind.__name__]["properties"], [])
    return _closed({kind.name: _or_null({**settings, "description": kind.summary})}, [kind.name])


def _score_with_settings(kind: type[ScoreKind]) -> dict[str, Any]:
    _, parts = msgspec.json.schema_components([kind], ref_template="{name}")
    settings = _closed(parts[kind.__name__]["properties"], [])
    return _closed({kind.name: _or_null({**settings, "description": kind.asks})}, [kind.name])


def _step(name: str, kind: type[Operation]) -> dict[str, Any]:
    fields = msgspec.structs.fields(kind)
    _, parts = msgspec.json.schema_components([kind], schema_hook=_selection_hook, ref_template="{name}")
    properties = _spelled_out(parts[kind.__name__]["properties"], parts)
    body = _closed(properties, [field.encode_name for field in fields if field.required])
    body["description"] = kind.summary
    chosen = selection_fields(kind)
    learned = {LEARNED: _texts()} if issubclass(kind, ResultStep) else {}
    resolved = _closed({**{key: _positions(value) for key, value in chosen.items()}, **learned}, [])
    step = {name: body if body["required"] else _or_null(body), "resolved": resolved, "resolved_for": _resolved_for()}
    return _closed(step, [name])


def _resolved_for() -> dict[str, Any]:
    digests = {"recipe": _DIGEST, "base": _or_null(_DIGEST), "data": {"type": "array", "items": _or_null(_DIGEST)}}
    return {**_closed(digests, ["recipe"]), "description": "written by a run: what `resolved` was resolved for"}


def _spelled_out(schema: Any, parts: Mapping[str, Any]) -> Any:
    """Return a schema in which what it refers to among `parts` stands in its place; nothing there refers to itself."""
    if isinstance(schema, list):
        return [_spelled_out(one, parts) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("$ref") not in parts:
        return {key: _spelled_out(value, parts) for key, value in schema.items()}
    found = _spelled_out(parts[schema["$ref"]], parts)
    return {"description": schema.get("description", found.get("description", "")),
            **_closed(found["properties"], list(found["required"]))}  # fmt: skip


def _texts() -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}}


def _positions(kind: type[Selection]) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string" if issubclass(kind, SpotSelection) else "integer"}}


def _selection_hook(kind: type) -> dict[str, Any]:
    if issubclass(kind, Selection):
        return dict(_SELECTION)
    if kind is ObjectiveChoice:
        return dict(_OBJECTIVE)
    raise NotImplementedError(kind)


def _closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
