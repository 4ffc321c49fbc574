"""Calibration text as sequences of token ids: read, tokenised, packed without padding."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgeon.errors import DataError

PYTHON_DOCS = "python_docs"
"""The built-in text: Python's own language reference, which every interpreter carries."""


# Position 0 is left out of averages, so one token tells nothing; and a BOS token may take one place.
_SHORTEST = 3


@dataclass(frozen=True)
class Calibration:
    """Sequences of equal length, (sequences, length), and the digest of the text they come from."""

    tokens_BT: torch.Tensor
    digest: str


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
    texts, digest = _python_docs() if name == PYTHON_DOCS else _read(root / Path(name).expanduser(), tokenizer)
    random.Random(seed).shuffle(texts)
    start = _start(tokenizer)
    room = length - len(start)
    wanted = sequences * room
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]
        if len(ids) >= wanted:
            break
    if len(ids) < wanted:
        raise DataError(
            f"holds {len(ids)} tokens",
            where=name,
            allowed=f"at least {wanted} ({sequences} sequences of {length})",
            hint="give a longer file, or fewer or shorter sequences",
        )
    rows = [start + ids[at : at + room] for at in range(0, wanted, room)]
    return Calibration(torch.tensor(rows), digest)


def _start(tokenizer: Any) -> list[int]:
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _python_docs() -> tuple[list[str], str]:
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    return texts, hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _read(path: Path, tokenizer: Any) -> tuple[list[str], str]:
    try:
        raw = path.read_bytes()
        text = raw.decode()
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", where=str(path), allowed=f"a .jsonl or .txt file, or {PYTHON_DOCS}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=str(path)) from error
    rows = _rows(text, path, tokenizer) if path.suffix in (".jsonl", ".json") else iter(text.split("\n\n\n"))
    texts = [row for row in rows if row.strip()]
    return texts, hashlib.sha256(raw).hexdigest()[:16]


def _rows(text: str, path: Path, tokenizer: Any) -> Iterator[str]:
    # Not splitlines: JSON strings may hold the other line ends of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"is not valid JSON: {error.msg}", where=f"{path}, line {number}") from error
        yield _row_text(row, f"{path}, line {number}", tokenizer)


def _row_text(row: Any, where: str, tokenizer: Any) -> str:
    if isinstance(row, Mapping):
        if isinstance(row.get("text"), str):
            return str(row["text"])
        messages = row.get("messages")
        answer = row.get("response", row.get("chosen"))
        if messages is None and isinstance(row.get("prompt"), str) and isinstance(answer, str):
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
        if isinstance(messages, list):
            return _chat_text(messages, where, tokenizer)
    raise DataError(
        "has no text", where=where, allowed='{"text"}, {"messages"}, {"prompt", "response"} or {"prompt", "chosen"}'
    )


def _chat_text(messages: list[Any], where: str, tokenizer: Any) -> str:
    if getattr(tokenizer, "chat_template", None):
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # a template may raise anything, from jinja2 or its own checks
            raise DataError(f"does not fit the model's chat template: {error}", where=where) from error
    try:
        return "\n".join(str(message["content"]) for message in messages)
    except (TypeError, KeyError) as error:
        raise DataError('has messages without "content"', where=where, allowed='[{"role", "content"}, …]') from error
