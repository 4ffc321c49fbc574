"""Where texts come from, for calibration and for training alike: files, the built-in text, and how a text begins."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from surgeon.errors import DataError


def python_docs() -> list[str]:
    """Return the documents of the built-in text."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def python_docs_digest() -> str:
    """Return the digest of the built-in text."""
    return digest_of_bytes("\0".join(python_docs()).encode())


def digest_of_bytes(raw: bytes) -> str:
    """Return sixteen hex digits that name a source's bytes."""
    return hashlib.sha256(raw).hexdigest()[:16]


def read_bytes(path: Path, allowed: str) -> bytes:
    """Read a file; `allowed` is what may stand in its place, for the message.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), allowed=allowed) from error


def decoded(raw: bytes, path: Path) -> str:
    """Return a file's bytes as text.

    Raises:
        DataError: they are not UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=str(path)) from error


def json_lines(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the value of every line that is not blank, and where it stands.

    Raises:
        DataError: a line is no JSON.
    """
    # Not splitlines: JSON strings may hold the other line ends of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield parsed_json(line, where), where


def parsed_json(text: str, where: str) -> Any:
    """Return the value that a text says.

    Raises:
        DataError: it is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"is not valid JSON: {error.msg}", where=where) from error


def start_of(tokenizer: Any) -> list[int]:
    """Return what the model's tokenizer starts a text with: its BOS token if it adds one."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_ONE_DAY = date(2024, 7, 26)
"""The day of every dialogue, which Llama's templates name where they cannot tell today's."""


def chat_text(tokenizer: Any, messages: Sequence[Any], *, prompt: bool) -> str:
    """Return a dialogue in the model's chat template; with `prompt` up to where its answer begins.

    A template that writes today's date is given one day: what is learned or measured must not depend on when.
    """
    template = _NOW.sub(lambda found: repr(_ONE_DAY.strftime(found[2])), tokenizer.get_chat_template())
    return str(
        tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
    )
