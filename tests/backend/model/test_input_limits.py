"""Sequences that are longer than a model's table of positions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import DataError
from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.backend.training_recipes import recipe, training
from tests.jobs import keep_silent, never, perform

POSITIONS = 16
TOO_LONG: Mapping[str, Mapping[str, Any]] = {
    "trained on": training(max_length=POSITIONS + 1, steps=1),
    "held out": training(data="short.jsonl", held_out="text.jsonl", max_length=POSITIONS + 1, steps=1),
    "measured": {"evaluate": {"data": "text.jsonl", "max_length": POSITIONS + 1}},
    "written": {"evaluate": {"metric": "exact_match", "data": "asked.jsonl", "max_new_tokens": POSITIONS}},
}
FITTING: Mapping[str, Mapping[str, Any]] = {
    "trained on": training(max_length=POSITIONS, steps=1),
    "held out": training(data="short.jsonl", max_length=POSITIONS + 1, steps=1),
    "measured": {"evaluate": {"data": "text.jsonl", "max_length": POSITIONS}},
    "written": {"evaluate": {"metric": "exact_match", "data": "asked.jsonl", "max_new_tokens": POSITIONS - 3}},
}


def _carried_out(place: Path, family: str, step: Mapping[str, Any]) -> dict[str, Any]:
    sizes: dict[str, dict[str, Any]] = {
        "gpt2": {"n_positions": POSITIONS},
        "llama": {"max_position_embeddings": POSITIONS},
    }
    model = save_tiny(family, place / "model", **sizes[family])
    write_tokenizer(model)
    rows = {
        "text": {"text": "a long text, " * 9},
        "short": {"text": "a text"},
        "asked": {"prompt": "abc", "response": "d"},
    }
    for name, row in rows.items():
        (place / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    job = "learn" if "train" in step else "run"
    return perform(job, {"recipe": recipe(model, [step]), "root": str(place), "device": "cpu"}, keep_silent, never)


@pytest.mark.parametrize("use", TOO_LONG)
def test_what_reaches_beyond_the_last_position_is_refused_in_words(tmp_path: Path, use: str) -> None:
    """With the setting that is to be smaller; an index out of range would end a GPU's process."""
    with pytest.raises(DataError, match=f"the model knows {POSITIONS} positions") as caught:
        _carried_out(tmp_path, "gpt2", TOO_LONG[use])
    assert "max_length" in caught.value.hint


@pytest.mark.parametrize("use", FITTING)
def test_what_reaches_to_the_last_position_is_not(tmp_path: Path, use: str) -> None:
    """Prompts take an end of line besides; the last token of an answer is not read again."""
    assert _carried_out(tmp_path, "gpt2", FITTING[use])


def test_rotary_positions_go_on(tmp_path: Path) -> None:
    """They are computed, so nothing is out of range."""
    assert _carried_out(tmp_path, "llama", TOO_LONG["trained on"])
