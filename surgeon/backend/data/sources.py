"""Sources of rows: what a name means, in which form a file is written, and its rows as plain mappings.

The form is told by the suffix where that is known, and by the content otherwise. Compressed files are unpacked first.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.backend.data.forms import COLUMNS
from surgeon.backend.data.hub_data import HUB_FORMS, hub_data, hub_digest, hub_rows
from surgeon.backend.data.table_files import SEPARATORS, header_of, table_rows
from surgeon.backend.data.text_sources import (
    decoded,
    digest_of_bytes,
    documents,
    json_rows,
    python_docs,
    python_docs_digest,
)
from surgeon.core.scoring.score import PYTHON_DOCS
from surgeon.errors import DataError

FORMATS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".txt": "text", ".md": "text", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
"""How a file is written, by its suffix."""
_PACKED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "bzip2": bz2.decompress, "xz": lzma.decompress}
_TABLES = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_JSON = re.compile(r'\s*(\{\s*"|\[\s*(\{|\Z))')
READ = "a .jsonl, .json, .csv, .tsv, .parquet, .arrow or .txt file, also compressed"

Plain = Iterator[tuple[Any, str]]


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    format: how they are written.   rows: yields the first so many, or all, as plain values, each with where it stands.
    streamed: whether rows that are not asked for are not fetched.   digest: names its content; computed when called.
    kind: what tells the same bytes apart that are read in another way.   cleaned: a byte order mark or other line
    ends are not read as text.
    """

    name: str
    format: str
    rows: Callable[[int | None], Plain]
    digest: Callable[[], str]
    kind: str = ""
    streamed: bool = False
    cleaned: bool = False


def open_source(data: str | None, root: Path) -> Source:
    """Return the source that a name means: a file relative to `root`, a data set on the hub, or the built-in text.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if data in (None, PYTHON_DOCS):
        return Source(PYTHON_DOCS, "built-in text", _docs, python_docs_digest)
    on_hub = hub_data(str(data), root)
    if on_hub is not None:
        return Source(
            str(data), "hub data set", lambda most: hub_rows(on_hub, most), lambda: hub_digest(on_hub), streamed=True
        )
    return _file(str(data), root / Path(str(data)).expanduser())


def _docs(_: int | None) -> Plain:
    return (({"text": text}, PYTHON_DOCS) for text in python_docs())


def _file(name: str, path: Path) -> Source:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            kind = next((kind for magic, kind in _TABLES.items() if start.startswith(magic)), None)
            if kind is not None and FORMATS.get(path.suffix.lower(), kind) == kind:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:16] if file.seek(0) == 0 else ""
                return Source(name, kind, lambda _: table_rows(path, kind), lambda: digest, f"-{kind}")
            raw = start + file.read()
    except OSError as error:
        allowed = f"{READ}; {HUB_FORMS}; {PYTHON_DOCS}"
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), allowed=allowed) from error
    return _unpacked_file(name, path, raw)


def _unpacked_file(name: str, path: Path, raw: bytes) -> Source:
    packed = next((kind for magic, kind in _MAGIC.items() if raw.startswith(magic)), None)
    content = _unpacked(raw, packed, path) if packed else raw
    inner = path.with_suffix("") if packed and path.suffix.lower() in _PACKED else path
    kind = FORMATS.get(inner.suffix.lower())
    digest = digest_of_bytes(raw)
    if kind in ("parquet", "arrow") or (kind is None and content.startswith((b"PAR1", b"ARROW1"))):
        raise DataError(
            f"is no {kind or 'plain'} file" if not packed else "is a table inside another compression",
            where=str(path), hint="parquet and arrow files compress themselves: unpack it, or write it anew",
        )  # fmt: skip
    text = decoded(content, path)
    kind = kind or _told_by(text)
    if kind in SEPARATORS:
        return Source(name, kind, lambda _: table_rows(path, kind, text), lambda: digest, f"-{kind}")
    if kind == "json":
        return Source(name, "JSON", lambda _: json_rows(text, path), lambda: digest)
    cleaned = "\r\n" in text or content.startswith(b"\xef\xbb\xbf")
    return Source(name, "text", lambda _: documents(text, path), lambda: digest, "-text", cleaned=cleaned)


def _unpacked(raw: bytes, packed: str, path: Path) -> bytes:
    try:
        if packed == "zstd":
            import zstandard  # type: ignore[import-not-found, unused-ignore]

            unpacked: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
            return unpacked
        return _UNPACK[packed](raw)
    except ImportError as error:
        raise DataError(
            "is compressed with zstd, which needs the package zstandard", where=str(path), hint="pip install zstandard"
        ) from error
    except Exception as error:  # each of the four has errors of its own
        raise DataError(f"cannot be unpacked as {packed}: {error}", where=str(path)) from error


def _told_by(text: str) -> str:
    """Return how a file is written whose suffix says nothing."""
    if _JSON.match(text):
        return "json"
    for kind, separator in SEPARATORS.items():
        header = header_of(text, separator)
        if len(header) > 1 and set(header) <= COLUMNS:
            return kind
    return "text"
