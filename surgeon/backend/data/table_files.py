"""Tables as rows: csv, tsv, parquet and arrow files, compressed or not, through the package `datasets`, streaming."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surgeon.backend.data.hub_data import without_nulls
from surgeon.errors import DataError

SEPARATORS = {"csv": ",", "tsv": "\t"}


def table_rows(path: Path, kind: str, text: str = "") -> Iterator[tuple[Any, str]]:
    """Yield the rows of a table, and where each stands; `text` is what a csv or tsv file says.

    Cells of csv and tsv are text, as they are written; an empty one says nothing.

    Raises:
        DataError: it cannot be read, or a row of a csv or tsv file has more or fewer cells than the header.
    """
    with _in_words(path, kind):
        from datasets import load_dataset

        if kind in SEPARATORS:
            names, lines = _checked(path, text, SEPARATORS[kind])
            settings = _csv_settings(names, SEPARATORS[kind])
            cells = list(load_dataset("csv", data_files=str(path), split="train", streaming=True, **settings))
            found = [
                ({name: cell for name, cell in row.items() if cell}, f"{path}, line {line}")
                for row, line in zip(cells, lines, strict=True)
            ]
        else:
            table = load_dataset(kind, data_files=str(path), split="train", streaming=True)
            found = [(without_nulls(dict(row)), f"{path}, row {number}") for number, row in enumerate(table)]
    # Read to its end before anyone looks at a row: what is left open when a row is refused would stay open.
    yield from found


def header_of(text: str, separator: str) -> list[str]:
    """Return the cells of the first record."""
    try:
        return next(_records(text, separator), ([], 0))[0]
    except csv.Error:
        return []


def _records(text: str, separator: str) -> Iterator[tuple[list[str], int]]:
    """Yield the cells of every record that is not blank, and the line it begins in."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    for cells in reader:
        if cells:
            yield cells, line
        line = reader.line_num + 1


def _checked(path: Path, text: str, separator: str) -> tuple[list[str], list[int]]:
    """Return the header, and the line of every row; refuse rows that do not fit the header.

    pandas fills the cells that a row lacks, and where rows have one too many it takes the first for their name.
    """
    header: list[str] = []
    lines: list[int] = []
    line = 1
    try:
        for cells, line in _records(text, separator):
            if not header:
                header = cells
            elif len(cells) != len(header):
                raise DataError(
                    f"has {len(cells)} cells, and the header names {len(header)}", where=f"{path}, line {line}",
                    hint="put cells that hold the separator or a line end in quotes",
                )  # fmt: skip
            else:
                lines.append(line)
    except csv.Error as error:
        raise DataError(f"is not well formed: {error}", where=f"{path}, after line {line}") from error
    if not header:
        raise DataError("is empty", where=str(path), allowed="a header and rows")
    if len(set(header)) < len(header):
        raise DataError("names a column twice in its header", where=str(path), allowed="each column once")
    return header, lines


def _csv_settings(names: list[str], separator: str) -> dict[str, Any]:
    """Return settings with which pandas takes every cell for text: numbers, NA and null too."""
    from datasets import Features, Value

    return {
        "sep": separator, "header": 0, "names": names, "encoding": "utf-8-sig", "keep_default_na": False,
        "na_filter": False, "features": Features({name: Value("string") for name in names}),
    }  # fmt: skip


@contextmanager
def _in_words(path: Path, kind: str) -> Iterator[None]:
    """Turn what `datasets`, pandas and pyarrow raise into an error in words, and keep them from logging it too."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"is a {kind} file, and reading it needs the package datasets", where=str(path), hint="pip install datasets"
        ) from error
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of pandas, pyarrow, fsspec, or of datasets itself
        first = str(error.__cause__ or error).strip().partition("\n")[0]
        raise DataError(f"cannot be read as {kind}: {first}", where=str(path)) from error
    finally:
        datasets.logging.set_verbosity(before)
