"""Texts and JSON as rows: the built-in text, plain text, JSON lines and arrays; every fault is named by its line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surgeon.errors import DataError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


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


def decoded(raw: bytes, path: Path) -> str:
    """Return a file's bytes as text, without a byte order mark.

    Raises:
        DataError: they are not UTF-8.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"is not UTF-8 text: line {line}", where=str(path), hint="save it as UTF-8") from error


def documents(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the parts of plain text, cut where two lines in a row are empty; and where they stand."""
    for part in text.replace("\r\n", "\n").split("\n\n\n"):
        if part.strip():
            yield {"text": part}, str(path)


def json_rows(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the rows of JSON lines, or of one array, and where each stands.

    Raises:
        DataError: a line is no JSON, or holds half a surrogate pair.
    """
    if not text.lstrip().startswith("["):
        yield from json_lines(text, path)
        return
    rows = parsed_json(text, str(path))
    if not isinstance(rows, list):
        raise DataError("is no array of rows", where=str(path), allowed="JSON lines, or one array of rows")
    has_halves = _SURROGATE.search(text) is not None
    for number, row in enumerate(rows):
        where = f"{path}, row {number}"
        if has_halves:
            _refuse_half_characters(row, where)
        yield row, where


def json_lines(text: str, path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the value of every line that is not blank, and where it stands.

    Raises:
        DataError: a line is no JSON, or holds half a surrogate pair.
    """
    # Not splitlines: JSON strings may hold the other line ends of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            row = parsed_json(line, where)
            if _SURROGATE.search(line):
                _refuse_half_characters(row, where)
            yield row, where


def parsed_json(text: str, where: str) -> Any:
    """Return the value that a text says.

    Raises:
        DataError: it is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if where.endswith(", line 1") and text.strip() in ("{", "["):
            hint = "JSON lines hold a whole row in each line; rows over many lines stand in one array, [ ... ]"
            raise DataError(f"is not valid JSON: {error.msg}", where=where, hint=hint) from error
        raise DataError(f"is not valid JSON: {error.msg}", where=where) from error
    except (ValueError, RecursionError) as error:  # a number of many thousand digits, bottomless nesting
        raise DataError(f"is not valid JSON: {error}", where=where) from error


def _refuse_half_characters(row: Any, where: str) -> None:
    r"""Refuse half a surrogate pair: JSON may write `\ud83d` alone, and no tokenizer can read it."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"holds half a surrogate pair, {half}, which is no character", where=where,
            hint="write the whole character, or U+FFFD in its place",
        ) from error  # fmt: skip
