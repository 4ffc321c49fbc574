"""A recipe that is written elsewhere names the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surgeon.core.data_paths import seen_from
from surgeon.core.recipe import recipe_from_builtins, recipe_to_builtins

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
    moved = recipe_to_builtins(seen_from(recipe_from_builtins(plain), tmp_path / "texts", tmp_path / "elsewhere"))
    assert moved["data"] == {"own": OTHER}
    assert moved["steps"] == [expected]
