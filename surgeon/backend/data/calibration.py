"""Calibration text as sequences of token ids: read, tokenised, packed without padding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgeon.backend.data.hub_data import hub_digest, hub_rows, is_hub_data
from surgeon.backend.data.text_sources import (
    chat_text,
    decoded,
    digest_of_bytes,
    json_lines,
    python_docs,
    python_docs_digest,
    read_bytes,
    start_of,
)
from surgeon.core.scoring.score import PYTHON_DOCS
from surgeon.errors import DataError

# Position 0 is left out of averages, so one token tells nothing; and a BOS token may take one place.
_SHORTEST = 3


@dataclass(frozen=True)
class Calibration:
    """Sequences of equal length, (sequences, length), and the digest of the text they come from.

    `targets_BT` holds the label of each position or -1. Where rows have an answer, the one label of a row is the
    answer's first token, at the last token of the prompt; otherwise every position but the first is labelled with
    what follows.
    """

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    digest: str


@dataclass(frozen=True)
class _Document:
    """A text; `answer` continues `text` and is empty where a row is plain text."""

    text: str
    answer: str = ""


def read_calibration(
    data: str | None, root: Path, tokenizer: Any, *, sequences: int, length: int, seed: int
) -> Calibration:
    """Read a text, shuffle its documents by `seed`, and pack the first tokens into `sequences` of `length`.

    Every sequence starts as the model's tokenizer starts a text: with its BOS token if it adds one, otherwise not.

    `data` is a file of JSON lines or plain text, relative to `root`, or None for the built-in text.

    Raises:
        DataError: it cannot be read, a row is of no known form, or it is too short.
    """
    if sequences < 1 or length < _SHORTEST:
        raise DataError(
            f"{sequences} sequences of {length} tokens measure nothing",
            allowed=f"at least 1 sequence of {_SHORTEST} tokens",
        )
    name = data or PYTHON_DOCS
    documents, digest = _documents(name, root, tokenizer)
    random.Random(seed).shuffle(documents)
    start = start_of(tokenizer)
    room = length - len(start)
    wanted = sequences * room
    ids: list[int] = []
    labels: list[int] = []
    for document in documents:
        more, more_labels = _tokenize(document, tokenizer)
        ids += more
        labels += more_labels
        if len(ids) >= wanted:
            break
    if len(ids) < wanted:
        raise DataError(
            f"holds {len(ids)} tokens",
            where=name,
            allowed=f"at least {wanted} ({sequences} sequences of {length})",
            hint="give a longer file, or fewer or shorter sequences",
        )
    cuts = range(0, wanted, room)
    tokens_BT = torch.tensor([start + ids[at : at + room] for at in cuts])
    targets_BT = torch.tensor([[-1] * len(start) + labels[at : at + room] for at in cuts])
    if not (targets_BT >= 0).any():
        targets_BT = torch.cat([tokens_BT[:, 1:], torch.full((sequences, 1), -1)], dim=1)
        targets_BT[:, 0] = -1
    return Calibration(tokens_BT, targets_BT, digest)


def _tokenize(document: _Document, tokenizer: Any) -> tuple[list[int], list[int]]:
    if not document.answer:
        ids: list[int] = tokenizer(document.text + "\n\n", add_special_tokens=False)["input_ids"]
        return ids, [-1] * len(ids)
    prompt = tokenizer(document.text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(document.answer + "\n\n", add_special_tokens=False)["input_ids"]
    return prompt + answer, [-1] * (len(prompt) - 1) + answer[:1] + [-1] * len(answer)


def _documents(name: str, root: Path, tokenizer: Any) -> tuple[list[_Document], str]:
    """Return the documents of the built-in text, a data set on the hub or a file, and the digest of their text."""
    if name == PYTHON_DOCS:
        return list(map(_Document, python_docs())), python_docs_digest()
    if not is_hub_data(name, root):
        return _read(root / Path(name).expanduser(), tokenizer)
    rows = (_row_text(row, f"{name}, row {number}", tokenizer) for number, row in enumerate(hub_rows(name)))
    return [row for row in rows if row.text.strip()], hub_digest(name)


def _read(path: Path, tokenizer: Any) -> tuple[list[_Document], str]:
    raw = read_bytes(path, f"a .jsonl or .txt file, or {PYTHON_DOCS}")
    text = decoded(raw, path)
    is_json = path.suffix in (".jsonl", ".json")
    rows = _rows(text, path, tokenizer) if is_json else map(_Document, text.split("\n\n\n"))
    return [row for row in rows if row.text.strip()], digest_of_bytes(raw)


def _rows(text: str, path: Path, tokenizer: Any) -> Iterator[_Document]:
    for row, where in json_lines(text, path):
        yield _row_text(row, where, tokenizer)


def _row_text(row: Any, where: str, tokenizer: Any) -> _Document:
    if isinstance(row, Mapping):
        if isinstance(row.get("text"), str):
            return _Document(str(row["text"]))
        messages = row.get("messages")
        answer = row.get("response", row.get("chosen"))
        if messages is None and isinstance(row.get("prompt"), str) and isinstance(answer, str):
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
        if isinstance(messages, list) and messages:
            return _chat_text(messages, where, tokenizer)
    raise DataError(
        "has no text", where=where, allowed='{"text"}, {"messages"}, {"prompt", "response"} or {"prompt", "chosen"}'
    )


def _chat_text(messages: list[Any], where: str, tokenizer: Any) -> _Document:
    if getattr(tokenizer, "chat_template", None):
        try:
            whole = chat_text(tokenizer, messages, prompt=False)
            prompt = chat_text(tokenizer, messages[:-1], prompt=True) if messages[1:] else ""
        except Exception as error:  # a template may raise anything, from jinja2 or its own checks
            raise DataError(f"does not fit the model's chat template: {error}", where=where) from error
        answered = bool(prompt) and messages[-1].get("role") == "assistant" and whole.startswith(prompt)
        return _Document(prompt, whole.removeprefix(prompt)) if answered else _Document(whole)
    try:
        lines = [str(message["content"]) for message in messages]
    except (TypeError, KeyError) as error:
        raise DataError('has messages without "content"', where=where, allowed='[{"role", "content"}, …]') from error
    return _Document("\n".join(lines[:-1]) + "\n", lines[-1]) if lines[1:] else _Document(lines[0])
