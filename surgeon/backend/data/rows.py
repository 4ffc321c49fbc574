"""The one reader of rows: scores, trainings, token rewards, evaluations and `surgeon data` read every source here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from surgeon.backend.data.forms import row_of
from surgeon.backend.data.row import READING, Row
from surgeon.backend.data.sources import Source, open_source
from surgeon.backend.data.template_checks import unread_message_keys
from surgeon.core.scoring.score import PYTHON_DOCS


def rows_of(source: Source, most: int | None = None) -> Iterator[Row]:
    """Yield the rows of a source; of one that is streamed `most` at most, of any other all.

    Raises:
        DataError: it cannot be read, or a row is of no known form.
    """
    for plain, where in source.rows(most):
        yield row_of(plain, where)


def read_rows(data: str | None, root: Path, most: int | None = None) -> tuple[list[Row], str]:
    """Read a source; return its first `most` rows, or all, and the digest of its content.

    A file is read to its end all the same: what is wrong in it is told whatever is wanted of it.

    Raises:
        DataError: it cannot be read, or a row is of no known form.
    """
    source = open_source(data, root)
    return list(rows_of(source, most))[:most], source.digest()


def source_digest(data: str | None, root: Path) -> str:
    """Return the digest of a source's content, and of how it is read.

    Files in which something means more to this reader than it did to the one before have another than then.

    Raises:
        DataError: it cannot be read.
    """
    source = open_source(data, root)
    digest = source.digest() + source.kind
    if source.streamed or data in (None, PYTHON_DOCS):
        return digest
    is_new = source.cleaned or (not source.kind and any(row.since == READING for row in rows_of(source)))
    return f"{digest}-{READING}" if is_new else digest


def unread_keys(rows: Iterable[Row], tokenizer: Any = None) -> Mapping[str, int]:
    """Count the keys of rows that no form reads; given a model's tokenizer, also those that its chat template does not.

    Keys of messages are called `messages.KEY`.
    """
    counted: Counter[str] = Counter()
    template = None if tokenizer is None else str(getattr(tokenizer, "chat_template", None) or "")
    for row in rows:
        counted.update(row.unread)
        if template is not None and row.text is None:
            counted.update(unread_message_keys(row, template))
    return dict(sorted(counted.items()))


def unread_by(data: str | None, rows: Iterable[Row], tokenizer: Any) -> str:
    """Say which keys of rows nothing reads; empty where there are none."""
    listed = ", ".join(f"{key} (in {count} rows)" for key, count in unread_keys(rows, tokenizer).items())
    return f"{data or 'data'}: keys that are not read: {listed}" if listed else ""
