from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings

from surgeon.cli.commands.schema import recipe_schema
from surgeon.core.recipe.operation import operations
from surgeon.core.recipe.recipe import Recipe, recipe_from_builtins, recipe_to_builtins
from surgeon.errors import RecipeError
from tests.cli.conftest import Run
from tests.core.recipe.test_recipe import recipes

SCHEMA = recipe_schema()
TYPES: dict[str, Any] = {
    "object": Mapping, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None),
    "boolean": bool,
}  # fmt: skip


def valid(value: Any, schema: Mapping[str, Any]) -> bool:
    """Check a value with the part of JSON Schema that recipes use; refuses keywords it does not know."""
    return all(CHECKS[key](value, rule, schema) for key, rule in schema.items())


def of_type(value: Any, rule: Any, _: Any) -> bool:
    kinds = [rule] if isinstance(rule, str) else rule
    return any(isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds)


def within(value: Any, check: Any) -> bool:
    return not isinstance(value, (int, float)) or bool(check(value))


CHECKS: dict[str, Any] = {
    "$ref": lambda value, rule, _: valid(value, SCHEMA["$defs"][rule.rpartition("/")[2]]),
    "type": of_type,
    "const": lambda value, rule, _: value == rule and not isinstance(value, bool),
    "enum": lambda value, rule, _: value in rule,
    "anyOf": lambda value, rule, _: any(valid(value, one) for one in rule),
    "oneOf": lambda value, rule, _: sum(valid(value, one) for one in rule) == 1,
    "properties": lambda value, rule, _: (
        not isinstance(value, Mapping) or all(valid(value[key], rule[key]) for key in rule if key in value)
    ),
    "additionalProperties": lambda value, rule, schema: (
        not isinstance(value, Mapping)
        or all(rule and valid(value[key], rule) for key in value if key not in schema.get("properties", {}))
    ),
    "required": lambda value, rule, _: not isinstance(value, Mapping) or set(rule) <= set(value),
    "items": lambda value, rule, _: not isinstance(value, list) or all(valid(item, rule) for item in value),
    "minimum": lambda value, rule, _: within(value, lambda number: number >= rule),
    "maximum": lambda value, rule, _: within(value, lambda number: number <= rule),
    "exclusiveMinimum": lambda value, rule, _: within(value, lambda number: number > rule),
    "exclusiveMaximum": lambda value, rule, _: within(value, lambda number: number < rule),
    "minLength": lambda value, rule, _: not isinstance(value, str) or len(value) >= rule,
    "minItems": lambda value, rule, _: not isinstance(value, list) or len(value) >= rule,
    "pattern": lambda value, rule, _: not isinstance(value, str) or re.search(rule, value) is not None,
    **dict.fromkeys(["$schema", "$defs", "title", "description", "default"], lambda *_: True),
}


def recipe_with(**more: Any) -> dict[str, Any]:
    return {"version": 1, "base": {"model": "demo"}, "steps": [], **more}


@settings(deadline=None)
@given(recipes)
def test_it_takes_every_recipe_there_can_be(recipe: Recipe) -> None:
    assert valid(json.loads(json.dumps(recipe_to_builtins(recipe))), SCHEMA)


@pytest.mark.parametrize(
    "plain",
    [
        {"version": 1},
        {"base": {"model": "demo"}},
        recipe_with(version=2),
        recipe_with(version=True),
        recipe_with(sede=1),
        recipe_with(seed="1"),
        recipe_with(seed=1.5),
        recipe_with(base={"model": "demo", "revision": "main"}),
        recipe_with(base={}),
        recipe_with(data=["a"]),
        recipe_with(data={"a": 1}),
        recipe_with(steps={}),
        recipe_with(steps=[{}]),
        recipe_with(steps=[{"prun": {"layers": 1}}]),
        recipe_with(steps=[{"prune": {"layer": 1}}]),
        recipe_with(steps=[{"prune": {}}]),
        recipe_with(steps=[{"prune": None}]),
        recipe_with(steps=[{"prune": {"layers": 1}, "freeze": {}}]),
        recipe_with(steps=[{"prune": {"layers": True}}]),
        recipe_with(steps=[{"prune": {"layers": None}}]),
        recipe_with(steps=[{"prune": {"layers": {"lowest": 2}}}]),
        recipe_with(steps=[{"prune": {"layers": {"lowest": "many", "by": "removal"}}}]),
        recipe_with(steps=[{"prune": {"layers": {"lowest": 2, "by": "removal", "form": 1}}}]),
        recipe_with(steps=[{"prune": {"layers": {"lowest": 2, "by": {"lamp": {"longest": 2}}}}}]),
        recipe_with(steps=[{"prune": {"layers": {"lowest": 2, "by": {"block_removal": {"longest": 0}}}}}]),
        recipe_with(steps=[{"prune": {"layers": {"lowest": 2, "by": {"semantic_gain": {"gain": "linear"}}}}}]),
        recipe_with(steps=[{"prune": {"layers": {"through": 4, "by": "removal"}}}]),
        recipe_with(steps=[{"prune": {"layers": {"first": 1, "protect": "last"}}}]),
        recipe_with(steps=[{"prune": {"layers": 1}, "resolved": {"layer": [1]}}]),
        recipe_with(steps=[{"prune": {"layers": 1}, "resolved": {"layers": ["1"]}}]),
        recipe_with(steps=[{"prune": {"layers": 1}, "resolved": {"layers": [1]}, "resolved_for": "0" * 16}]),
        recipe_with(steps=[{"prune": {"layers": 1}, "resolved": {"layers": [1]}, "resolved_for": {"recipe": "0"}}]),
        recipe_with(steps=[{"prune": {"layers": 1}, "resolved": {"layers": [1]}, "resolved_for": {"base": "0" * 16}}]),
        recipe_with(steps=[{"expand": {"after": 1, "init": "zero"}}]),
        recipe_with(steps=[{"masked_lora": {"layers": 1, "rank": 0}}]),
        recipe_with(steps=[{"masked_lora": {"layers": 1, "alpha": 0}}]),
        recipe_with(steps=[{"masked_lora": {"layers": 1, "rank": 1.5}}]),
    ],
)
def test_it_refuses_what_reading_refuses(plain: dict[str, Any]) -> None:
    assert not valid(plain, SCHEMA)
    with pytest.raises(RecipeError):
        recipe_from_builtins(plain)


@pytest.mark.parametrize(
    "step",
    [
        {"freeze": None},
        {"freeze": {"except": None, "layers": "0"}},
        {"prune": {"layers": ["1-2", {"lowest": "25%", "by": "removal", "data": None}]}},
        {"prune": {"layers": {"lowest": 2, "by": {"block_removal": {"longest": 2}}}}},
        {"prune": {"layers": {"lowest": 2, "by": {"removal": None}}}},
        {"freeze": {"layers": {"through": "highest", "by": {"semantic_gain": {"train_at_most": 4}}, "data": "docs"}}},
        {"prune": {"layers": {"except": [0, "last 2"]}}},
        {"prune": {"layers": {"original": [3, "5-6"]}}, "resolved": {"layers": [1]}},
        {"prune": {"layers": 1}, "resolved": {"layers": [1]}, "resolved_for": {"recipe": "0" * 16}},
        {
            "prune": {"layers": 1},
            "resolved": {"layers": [1]},
            "resolved_for": {"recipe": "a" * 16, "base": "b" * 16, "data": [None, "c" * 16]},
        },
        {"prune": {"layers": {"block": 3, "by": "removal", "protect": "first"}, "stack": None}},
    ],
)
def test_it_takes_every_form_of_a_step(step: dict[str, Any]) -> None:
    plain = recipe_with(steps=[step])
    recipe_from_builtins(plain)
    assert valid(plain, SCHEMA)


def test_it_describes_every_operation_and_every_field(run: Run) -> None:
    printed = json.loads(run("schema").stdout)
    assert printed == json.loads(json.dumps(SCHEMA))
    steps = printed["properties"]["steps"]["items"]["oneOf"]
    assert len(steps) == len(operations())
    assert "which layers" in json.dumps(steps)
