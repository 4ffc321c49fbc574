"""The same file means the same to scores, trainings, token rewards and evaluations, in whatever form it is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from surgeon.backend.data.calibration import read_calibration
from surgeon.backend.data.examples import read_examples
from surgeon.backend.evaluation.items import read_items
from surgeon.core.recipe.evaluation_metrics import Measure
from surgeon.errors import DataError
from tests.backend.tiny_models import write_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
THINKING = TEMPLATE.replace("%}[a]{%", "%}[a]<think>{%")
WORDS = st.text("abc 123,\"'", min_size=1, max_size=8).filter(str.strip)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(place)
    return AutoTokenizer.from_pretrained(place)


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines, as an array or as cells, by the suffix."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return path.name


def read_by_all(name: str, place: Path, tokenizer: Any) -> dict[str, Any]:
    """Return what each reader makes of a file: tokens with labels."""
    found: dict[str, Any] = {}
    for kind in ("text", "answers", "pairs", "rejected"):
        try:
            found[kind] = read_examples(name, place, tokenizer, kind, 24).examples
        except DataError as error:
            found[kind] = error.what
    for kind in ("text", "responses", "answers", "pairs"):
        try:
            found[f"evaluated {kind}"] = read_items(Measure(kind=kind, max_length=99), name, place, tokenizer).digest  # type: ignore[arg-type]
        except DataError as error:
            found[f"evaluated {kind}"] = error.what
    calibration = read_calibration(name, place, tokenizer, sequences=1, length=6, seed=3)
    found["scored"] = (calibration.tokens_BT.tolist(), calibration.targets_BT.tolist())
    return found


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def answers(talk: Sequence[tuple[str, str]]) -> Mapping[str, list[dict[str, Any]]]:
    """The same questions and answers in every form."""
    return {
        "response.jsonl": [{"prompt": a, "response": b} for a, b in talk],
        "array.json": [{"prompt": a, "response": b} for a, b in talk],
        "cells.csv": [{"prompt": a, "response": b} for a, b in talk],
        "completion.jsonl": [{"prompt": a, "completion": b} for a, b in talk],
        "output.jsonl": [{"prompt": a, "output": b} for a, b in talk],
        "single.jsonl": [{"prompt": [user(a)], "completion": said(b)} for a, b in talk],
        "messages.jsonl": [{"messages": [user(a), said(b)]} for a, b in talk],
        "null.jsonl": [{"prompt": a, "response": None, "chosen": b} for a, b in talk],
        "sharegpt.jsonl": [
            {"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]} for a, b in talk
        ],
        "alpaca.jsonl": [{"instruction": a, "input": "", "output": b} for a, b in talk],
    }


@settings(max_examples=15, deadline=None)
@given(
    talk=st.lists(st.tuples(WORDS, WORDS), min_size=2, max_size=4), template=st.sampled_from([None, TEMPLATE, THINKING])
)
def test_answers_are_read_alike_in_every_form_by_every_reader(
    talk: list[tuple[str, str]], template: str | None, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("answers")
    tokenizer.chat_template = template
    found = {name: read_by_all(written(place / name, rows), place, tokenizer) for name, rows in answers(talk).items()}
    first = found["response.jsonl"]
    assert {name: one == first for name, one in found.items()} == dict.fromkeys(found, True)
    assert not isinstance(first["answers"], str)


@settings(max_examples=15, deadline=None)
@given(
    pairs=st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=2, max_size=4), template=st.sampled_from([None, TEMPLATE])
)
def test_preferences_are_read_alike_in_every_form_by_every_reader(
    pairs: list[tuple[str, str, str]], template: str | None, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("pairs")
    tokenizer.chat_template = template
    forms: Mapping[str, list[dict[str, Any]]] = {
        "texts.jsonl": [{"prompt": a, "chosen": b, "rejected": c} for a, b, c in pairs],
        "cells.csv": [{"prompt": a, "chosen": b, "rejected": c} for a, b, c in pairs],
        "lists.jsonl": [{"prompt": [user(a)], "chosen": [said(b)], "rejected": [said(c)]} for a, b, c in pairs],
        "implicit.jsonl": [{"chosen": [user(a), said(b)], "rejected": [user(a), said(c)]} for a, b, c in pairs],
        "whole.jsonl": [
            {"prompt": a, "chosen": [user(a), said(b)], "rejected": [user(a), said(c)]} for a, b, c in pairs
        ],
        "single.jsonl": [{"messages": [user(a)], "chosen": said(b), "rejected": said(c)} for a, b, c in pairs],
    }
    found = {name: read_by_all(written(place / name, rows), place, tokenizer) for name, rows in forms.items()}
    assert {name: one == found["texts.jsonl"] for name, one in found.items()} == dict.fromkeys(found, True)
    assert not isinstance(found["texts.jsonl"]["pairs"], str)


@settings(max_examples=30, deadline=None)
@given(
    talk=st.lists(st.lists(WORDS, min_size=2, max_size=5), min_size=1, max_size=3),
    template=st.sampled_from([None, TEMPLATE, THINKING]),
)
def test_scores_trainings_and_evaluations_read_the_same_text(
    talk: list[list[str]], template: str | None, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Dialogues of any length, ended by an answer or not; what parts rows differs, what is in them does not."""
    place = tmp_path_factory.mktemp("text")
    tokenizer.chat_template = template
    rows = [{"messages": [(said if at % 2 else user)(text) for at, text in enumerate(turns)]} for turns in talk]
    for row in rows:
        name = written(place / "one.jsonl", [row])
        ((trained,),) = read_examples(name, place, tokenizer, "text", 999).examples
        items = read_items(Measure(kind="text", max_length=999), name, place, tokenizer)
        measured = [label for (window,) in items.examples for label in window.labels if label >= 0]
        assert trained.tokens == [*measured, tokenizer.eos_token_id]
        scored = read_calibration(name, place, tokenizer, sequences=1, length=len(measured), seed=0)
        assert scored.tokens_BT[0].tolist() == measured


def test_keys_that_nothing_reads_are_named_once(tokenizer: Any, tmp_path: Path) -> None:
    """By every reader; a message's own keys too, where the template does not name them."""
    tokenizer.chat_template = TEMPLATE
    row = {"messages": [user("a"), {**said("b"), "weight": 0}], "id": 7, "score": None}
    name = written(tmp_path / "rows.jsonl", [row, row])
    told = {
        read_examples(name, tmp_path, tokenizer, "answers", 99).unread,
        read_items(Measure(kind="responses"), name, tmp_path, tokenizer).unread,
        read_calibration(name, tmp_path, tokenizer, sequences=1, length=8, seed=0).unread,
    }
    assert told == {"rows.jsonl: keys that are not read: id (in 2 rows), messages.weight (in 2 rows)"}


def test_an_exact_match_asks_with_all_that_the_template_asks_with(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = THINKING
    name = written(tmp_path / "rows.jsonl", [{"prompt": "a", "response": " b "}])
    items = read_items(Measure(kind="answers"), name, tmp_path, tokenizer)
    ((asked,),) = items.examples
    assert asked.tokens == tokenizer.apply_chat_template([user("a")], add_generation_prompt=True, return_dict=False)
    assert items.texts == ["b"]


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content"])
def test_an_exact_match_of_more_than_a_text_is_refused_by_line(key: str, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = TEMPLATE.replace("</s>", "{{ m.get('" + key + "') }}</s>")
    row = {"messages": [user("a"), {**said("b"), key: "x"}]}
    with pytest.raises(DataError, match="exact_match compares texts alone") as caught:
        read_items(Measure(kind="answers"), written(tmp_path / "r.jsonl", [row]), tmp_path, tokenizer)
    assert caught.value.where.endswith("line 1")
