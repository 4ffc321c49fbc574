"""Sequences that are longer than a model's table of positions, and tokens that its embedding has no row for."""

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


MEASURED: Mapping[str, Mapping[str, Any]] = {
    "lm": training(max_length=16, steps=1),
    "sft": training(objective="sft", data="asked.jsonl", steps=1),
    "dpo": training(objective="dpo", data="pairs.jsonl", steps=1),
    "held out": training(data="plain.jsonl", held_out="text.jsonl", steps=1),
    "perplexity": {"evaluate": {"data": "text.jsonl"}},
    "exact_match": {"evaluate": {"metric": "exact_match", "data": "asked.jsonl"}},
    "preference": {"evaluate": {"metric": "preference", "data": "pairs.jsonl"}},
}


@pytest.fixture
def beyond(tmp_path: Path) -> Path:
    """A model whose tokenizer knows more words than it has rows; `~` in line 2 of each file is one of them."""
    model = save_tiny("llama", tmp_path / "model", vocab_size=64)
    write_tokenizer(model)
    good, bad = "ABC" * 9, "AB" * 9 + "z"
    files: Mapping[str, list[dict[str, str]]] = {
        "plain": [{"text": good}],
        "text": [{"text": good}, {"text": bad}],
        "asked": [{"prompt": "A", "response": "B"}, {"prompt": "z", "response": "B"}],
        "pairs": [{"prompt": "A", "chosen": "B", "rejected": "C"}, {"prompt": "A", "chosen": "B", "rejected": "z"}],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("use", MEASURED)
def test_a_token_that_the_embedding_has_no_row_for_is_refused_by_its_line(beyond: Path, use: str) -> None:
    """Before the first step; an index out of range says nothing, and a GPU does not survive it."""
    step = MEASURED[use]
    job = "learn" if "train" in step else "run"
    with pytest.raises(DataError, match="embedding ends at 63") as caught:
        perform(job, {"recipe": recipe(beyond / "model", [step]), "root": str(beyond), "device": "cpu"})
    assert caught.value.where.endswith(".jsonl, line 2")


def test_scores_refuse_such_a_token_too(beyond: Path) -> None:
    args = {"recipe": recipe(beyond / "model", []), "root": str(beyond), "device": "cpu"}
    with pytest.raises(DataError, match="embedding ends at 63") as caught:
        perform("score", {**args, "names": ["block_influence"], "data": "text.jsonl", "sequences": 2, "length": 24})
    assert caught.value.where.endswith(".jsonl, line 2")


def test_scores_refuse_what_reaches_beyond_the_last_position(tmp_path: Path) -> None:
    model = save_tiny("gpt2", tmp_path / "model", n_positions=POSITIONS)
    write_tokenizer(model)
    args = {"recipe": recipe(model, []), "names": ["block_influence"], "sequences": 2, "device": "cpu"}
    with pytest.raises(DataError, match=f"the model knows {POSITIONS} positions"):
        perform("score", {**args, "length": POSITIONS + 1})
    assert perform("score", {**args, "length": POSITIONS})


def test_data_tells_what_training_would_refuse(tmp_path: Path) -> None:
    model = save_tiny("gpt2", tmp_path / "model", n_positions=POSITIONS)
    write_tokenizer(model)
    told: list[str] = []

    def listen(kind: str, body: dict[str, Any]) -> None:
        if kind == "log":
            told.append(body["text"])

    for text in ("short", "long, " * 9):
        (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "response": text}) + "\n")
        perform("data", {"data": "rows.jsonl", "model": str(model), "root": str(tmp_path)}, listen, never)
    assert len(told) == 1
    assert f"rows.jsonl, line 1: has sequences of 57 tokens, and the model knows {POSITIONS} positions" in told[0]
