"""Calibration text: every accepted form, every fault, and what the tokens are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from surgeon.backend.data.calibration import Calibration, read_calibration
from surgeon.backend.model.loading import load_tokenizer
from surgeon.core.scoring.score import PYTHON_DOCS
from surgeon.errors import DataError
from tests.backend.tiny_models import write_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One character, one token; no chat template, no BOS."""
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return load_tokenizer(directory)


def read(path: Path | None, tokenizer: Any, sequences: int = 1, length: int = 8, seed: int = 0) -> Calibration:
    """Read a file by its name within its directory."""
    root = path.parent if path else Path()
    return read_calibration(path.name if path else None, root, tokenizer, sequences=sequences, length=length, seed=seed)


def text_of(calibration: Calibration, tokenizer: Any) -> str:
    """Return the characters behind the tokens; WordLevel decodes with blanks between them."""
    return "".join(tokenizer.convert_ids_to_tokens(calibration.tokens_BT.flatten().tolist()))


def write_rows(path: Path, *rows: Any) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


CHAT = [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "four"}]
ROWS = {
    "text": ({"text": "plain text"}, "plain text", "plain text"),
    "messages": ({"messages": CHAT}, "two?<unk>four", "[user]two?;[assistant]four;"),
    "prompt and response": ({"prompt": "two?", "response": "four"}, "two?<unk>four", "[user]two?;[assistant]four;"),
    "prompt and chosen": (
        {"prompt": "two?", "chosen": "four", "rejected": "five"},
        "two?<unk>four",
        "[user]two?;[assistant]four;",
    ),
}


@pytest.mark.parametrize("form", ROWS)
def test_every_form_of_row_is_read(form: str, tokenizer: Any, tmp_path: Path) -> None:
    """With a chat template as the model was trained to see it, without one as plain lines (<unk> is the line end)."""
    row, plain, templated = ROWS[form]
    path = write_rows(tmp_path / "rows.jsonl", row)
    assert text_of(read(path, tokenizer, length=len(plain.replace("<unk>", "u"))), tokenizer) == plain
    write_tokenizer(tmp_path, template=TEMPLATE)
    chatty = load_tokenizer(tmp_path)
    assert text_of(read(path, chatty, length=len(templated)), chatty) == templated


def test_plain_text_is_split_into_documents_and_packed_without_padding(tokenizer: Any, tmp_path: Path) -> None:
    """Sequences of equal length, one document after the other, nothing added but the line ends between."""
    path = tmp_path / "text.txt"
    path.write_text("aaaa\n\n\nbbbb\n\n\ncccc")
    found = read(path, tokenizer, sequences=2, length=9)
    assert found.tokens_BT.shape == (2, 9)
    parts = text_of(found, tokenizer).replace("<unk><unk>", "|").split("|")
    assert sorted(parts) == ["", "aaaa", "bbbb", "cccc"]


def test_the_same_text_and_seed_give_the_same_tokens_and_another_seed_others(tokenizer: Any) -> None:
    """The digest names the text, not the selection."""
    one, two, other = (read(None, tokenizer, 3, 64, seed) for seed in (0, 0, 1))
    assert torch.equal(one.tokens_BT, two.tokens_BT)
    assert not torch.equal(one.tokens_BT, other.tokens_BT)
    assert one.digest == two.digest == other.digest


def test_the_built_in_text_can_be_named(tokenizer: Any) -> None:
    """By its name or by naming nothing."""
    named = read_calibration(PYTHON_DOCS, Path(), tokenizer, sequences=2, length=16, seed=0)
    assert torch.equal(named.tokens_BT, read(None, tokenizer, 2, 16).tokens_BT)


def test_every_sequence_starts_with_bos_where_the_tokenizer_adds_one(tmp_path: Path) -> None:
    """The model has never seen a text without it; packing would otherwise leave it out of all but the first."""
    write_tokenizer(tmp_path, bos=True)
    tokenizer = load_tokenizer(tmp_path)
    found = read(None, tokenizer, 3, 16)
    assert found.tokens_BT.shape == (3, 16)
    assert (found.tokens_BT[:, 0] == tokenizer.bos_token_id).all()
    assert not (found.tokens_BT[:, 1:] == tokenizer.bos_token_id).any()
    write_tokenizer(tmp_path)
    plain = read(None, load_tokenizer(tmp_path), 3, 15)
    assert torch.equal(found.tokens_BT[:, 1:], plain.tokens_BT)


def test_no_bos_is_added_for_a_model_that_has_never_seen_one(demo_model: Path) -> None:
    """SmolLM2 has a BOS token in its vocabulary, and its tokenizer does not add it."""
    tokenizer = load_tokenizer(demo_model)
    found = read(None, tokenizer, 4, 64)
    assert tokenizer.bos_token_id is not None
    assert not (found.tokens_BT == tokenizer.bos_token_id).any()


FAULTS = {
    "no JSON": ('{"text": "a"}\n{"text": \n', "line 2"),
    "no object": ('{"text": "a"}\n\n[1]\n', "line 3"),
    "no text": ('{"txt": "a"}\n', "line 1"),
    "text that is a number": ('{"text": 3}\n', "line 1"),
    "a prompt without an answer": ('{"prompt": "a"}\n', "line 1"),
    "messages without content": ('{"messages": [{"role": "user"}]}\n', "line 1"),
    "messages that are no objects": ('{"messages": [1, 2]}\n', "line 1"),
    "no messages": ('{"messages": []}\n', "line 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_row_is_named_by_its_line(fault: str, tokenizer: Any, tmp_path: Path) -> None:
    """And where its form is at fault, the forms that are allowed are listed."""
    raw, where = FAULTS[fault]
    path = tmp_path / "rows.jsonl"
    path.write_text(raw)
    with pytest.raises(DataError) as caught:
        read(path, tokenizer)
    assert caught.value.where == f"{path}, {where}"
    assert caught.value.allowed or "JSON" in caught.value.what


def test_a_row_that_the_chat_template_refuses_is_named_by_its_line(tmp_path: Path) -> None:
    """Templates raise their own errors."""
    write_tokenizer(tmp_path, template="{{ raise_exception('roles must alternate') }}")
    path = write_rows(tmp_path / "rows.jsonl", {"messages": CHAT})
    with pytest.raises(DataError, match="roles must alternate") as caught:
        read(path, load_tokenizer(tmp_path))
    assert caught.value.where == f"{path}, line 1"


@pytest.mark.parametrize("raw", ["", "\n\n", "short"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_text_that_is_too_short_says_by_how_much(name: str, raw: str, tokenizer: Any, tmp_path: Path) -> None:
    """Empty files too."""
    path = tmp_path / name
    path.write_text(raw if name == "a.txt" or not raw.strip() else json.dumps({"text": raw}))
    with pytest.raises(DataError, match=r"holds \d+ tokens") as caught:
        read(path, tokenizer, 2, 50)
    assert "at least 100 (2 sequences of 50)" in caught.value.allowed
    assert caught.value.hint


def test_files_that_cannot_be_read_are_errors_in_words(tokenizer: Any, tmp_path: Path) -> None:
    """Missing, a directory, not UTF-8."""
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, told in (("missing.jsonl", "No such file"), (".", "Is a directory"), ("binary.txt", "UTF-8")):
        with pytest.raises(DataError, match=told) as caught:
            read_calibration(name, tmp_path, tokenizer, sequences=1, length=8, seed=0)
        assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize(("sequences", "length"), [(0, 8), (-1, 8), (1, 0), (1, 2)])
def test_nothing_to_measure_is_refused(sequences: int, length: int, tokenizer: Any) -> None:
    """Position 0 does not count, so two tokens would leave one."""
    with pytest.raises(DataError) as caught:
        read(None, tokenizer, sequences, length)
    assert caught.value.allowed


def test_unicode_line_ends_within_a_row_do_not_break_it(tokenizer: Any, tmp_path: Path) -> None:
    """JSON allows U+2028 and U+0085 unescaped in a string; only a newline ends a row."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\u2028b\u0085c"}\n{"text": "dddd"}\n', encoding="utf-8")
    assert read(path, tokenizer, 1, 12).tokens_BT.shape == (1, 12)


def test_a_file_is_found_relative_to_the_recipe_or_by_its_full_path(tokenizer: Any, tmp_path: Path) -> None:
    """The recipe's directory is the root."""
    (tmp_path / "data").mkdir()
    path = write_rows(tmp_path / "data" / "rows.jsonl", {"text": "0123456789"})
    relative = read_calibration("data/rows.jsonl", tmp_path, tokenizer, sequences=1, length=8, seed=0)
    full = read_calibration(str(path), Path("/nowhere"), tokenizer, sequences=1, length=8, seed=0)
    assert torch.equal(relative.tokens_BT, full.tokens_BT)


def test_a_data_set_on_the_hub_is_read_as_the_same_rows_in_a_file_are(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens are those of a file with its rows; without the package `datasets` the error says what to install."""
    rows = [{"text": "abcd efgh"}, {"text": "ijkl"}]
    module = ModuleType("datasets")
    module.load_dataset = lambda name, config, *, split, **_: rows if name + split == "owner/textstrain" else None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    found = read_calibration("owner/texts", tmp_path, tokenizer, sequences=1, length=8, seed=0)
    filed = read(write_rows(tmp_path / "rows.jsonl", *rows), tokenizer)
    assert torch.equal(found.tokens_BT, filed.tokens_BT)
    assert torch.equal(found.targets_BT, filed.targets_BT)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        read_calibration("owner/texts", tmp_path, tokenizer, sequences=1, length=8, seed=0)
