"""A recipe that is written elsewhere names the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surgeon.core.recipe.data_paths import named_data, rebase_data_paths
from surgeon.core.recipe.recipe import recipe_from_builtins, recipe_to_builtins

OTHER = "../texts/docs.jsonl"


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"evaluate": {"data": "docs.jsonl"}}, {"evaluate": {"data": OTHER}}),
        (
            {
                "require": {
                    "perplexity": {"data": "docs.jsonl", "at_most": "1.05x"},
                    "exact_match": {"data": "own", "at_least": 0.5},
                }
            },
            {
                "require": {
                    "perplexity": {"data": OTHER, "at_most": "1.05x"},
                    "exact_match": {"data": "own", "at_least": 0.5},
                }
            },
        ),
        (
            {
                "prune": {"layers": {"lowest": 1, "by": "block_influence", "data": "docs.jsonl"}},
                "resolved": {"layers": [3]},
            },
            {"prune": {"layers": {"lowest": 1, "by": "block_influence", "data": OTHER}}, "resolved": {"layers": [3]}},
        ),
        (
            {"train": {"objective": {"npo": {"rewriter": "judge"}}, "data": "docs.jsonl", "held_out": "5%"}},
            {
                "train": {
                    "objective": {"npo": {"rewriter": "../texts/judge"}},
                    "data": OTHER,
                    "held_out": "5%",
                }
            },
        ),
        ({"train": {"objective": "lm", "data": "owner/name"}}, {"train": {"objective": "lm", "data": "owner/name"}}),
    ],
)
def test_files_are_renamed_wherever_a_step_names_them(tmp_path: Path, step: Any, expected: Any) -> None:
    """In gates, selections and objectives too; the recipe's own names, shares and hub ids stay."""
    (tmp_path / "texts" / "judge").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("docs.jsonl", "own"):
        (tmp_path / "texts" / name).write_text("")
    plain = {"version": 1, "base": {"model": "m"}, "data": {"own": "docs.jsonl"}, "steps": [step]}
    moved = recipe_to_builtins(
        rebase_data_paths(recipe_from_builtins(plain), tmp_path / "texts", tmp_path / "elsewhere")
    )
    assert moved["data"] == {"own": OTHER}
    assert moved["steps"] == [expected]


def test_data_that_will_be_read_is_named_with_its_place() -> None:
    """Names of the recipe are looked up, gates looked into; what a resolved selection was measured on is left out."""
    selection = {"lowest": 1, "by": "block_influence", "data": "old.jsonl"}
    recipe = recipe_from_builtins({
        "version": 1, "base": {"model": "demo"}, "data": {"own": "texts/own.jsonl"},
        "steps": [
            {"prune": {"layers": selection}, "resolved": {"layers": [3]}},
            {"prune": {"layers": {**selection, "data": "new.jsonl"}}},
            {"train": {"objective": "lm", "data": "own", "held_out": "5%"}, "resolved": {"learned": ["0" * 16]}},
            {"require": {"perplexity": {"data": "gate.jsonl", "at_most": 9.0}}},
        ],
    })  # fmt: skip
    assert list(named_data(recipe)) == [
        ("steps[1].prune.layers.data", "new.jsonl"),
        ("steps[2].train.data", "texts/own.jsonl"),
        ("steps[2].train.held_out", "5%"),
        ("steps[3].require.perplexity.data", "gate.jsonl"),
    ]
