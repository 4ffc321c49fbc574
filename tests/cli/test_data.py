"""`surgeon data`: what a file is read as, and which tokens would be trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.cli.conftest import Run

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tokenizer(save_tiny("llama", tmp_path / "model"), template=TEMPLATE)
    files: dict[str, list[Any]] = {
        "answers.jsonl": [
            {"prompt": "2+2", "response": "4", "id": 1},
            {"messages": [{"role": "user", "content": "hi"}]},
        ],
        "asked.jsonl": [{"prompt": "2+2", "response": "4"}] * 5,
        "pairs.jsonl": [{"prompt": "2+2", "chosen": "4", "rejected": "fish"}],
        "wrong.jsonl": [{"prompt": "2+2", "rejected": "fish"}],
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_model_the_forms_and_some_rows_are_shown(place: Path, run: Run) -> None:
    told = run("data", "answers.jsonl").stdout
    assert "answers.jsonl: JSON, 2 rows" in told
    assert "prompt and response     1" in told
    assert "messages                1" in told
    assert "not read: id (in 1 rows)" in told
    assert f"{place / 'answers.jsonl'}, line 1\nuser: 2+2\nassistant: 4" in told


@pytest.mark.parametrize(
    ("file", "objective", "marked"),
    [
        ("asked.jsonl", "sft", "[u]2+2</s>[a]⟦4</s>⟧"),
        ("pairs.jsonl", "dpo", "[u]2+2</s>[a]⟦fish</s>⟧"),
        ("wrong.jsonl", "npo", "[u]2+2</s>[a]⟦fish</s>⟧"),
        ("answers.jsonl", "lm", "⟦u]2+2</s>[a]4</s>"),
    ],
)
def test_with_a_model_the_tokens_that_are_trained_on_are_marked(
    place: Path, run: Run, file: str, objective: str, marked: str
) -> None:
    """By the objective that suits all rows, where none is named."""
    result = run("data", file, "--model", "model")
    assert f"\n{objective}: " in result.stdout
    assert marked in result.stdout.replace(" ", "")


def test_as_json_it_counts_tokens_and_shows_no_more_than_asked(place: Path, run: Run) -> None:
    found = json.loads(run("data", "asked.jsonl", "--model", "model", "--rows", "1", "--json").stdout)
    assert found["trained"] == {
        "objective": "sft", "sequences": 5, "tokens": 60, "longest": 12, "trained": 10, "left_out": 0,
    }  # fmt: skip
    assert [kept for _, kept in found["shown"][0]["pieces"]] == [False, True]
    assert len(found["shown"]) == 1


def test_an_objective_may_be_named(place: Path, run: Run) -> None:
    assert (
        "\nlm: 1 sequences of 65 tokens" in run("data", "asked.jsonl", "--model", "model", "--objective", "lm").stdout
    )
    assert run("data", "asked.jsonl", "--model", "model", "--objective", "rlhf").exit_code != 0
    assert run("data", "asked.jsonl", "--model", "model", "--objective", "dpo").exit_code != 0


def test_a_worker_answers_the_same(place: Path, run: Run) -> None:
    import sys

    words = ("data", "pairs.jsonl", "--model", "model", "--json")
    worker = f"{sys.executable} -m surgeon worker"
    assert json.loads(run(*words, "--worker", worker).stdout) == json.loads(run(*words).stdout)
