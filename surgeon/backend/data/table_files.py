"""Tables as rows: csv, tsv, parquet and arrow files, compressed or not, through the package `datasets`, streaming."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surgeon.backend.data.hub_data import without_nulls
from surgeon.errors import DataError

SEPARATORS = {"csv": ",", "tsv": "\t"}
_BEYOND = "cells beyond the header"


def table_rows(path: Path, kind: str, text: str = "") -> Iterator[tuple[Any, str]]:
    """Yield the rows of a table, and where each stands, counted from 0; `text` is what a csv or tsv file says.

    Cells of csv and tsv are text, as they are written; an empty one says nothing.

    Raises:
        DataError: it cannot be read, or a row of a csv or tsv file has more or fewer cells than the header.
    """
    with _in_words(path, kind):
        from datasets import load_dataset

        builder = kind if kind in ("parquet", "arrow") else "csv"
        settings = _csv_settings(path, SEPARATORS[kind], text) if kind in SEPARATORS else {}
        rows = load_dataset(builder, data_files=str(path), split="train", streaming=True, **settings)
        for number, row in enumerate(rows):
            where = f"{path}, row {number}"
            yield (_cells(row, where) if kind in SEPARATORS else without_nulls(dict(row))), where


def header_of(text: str, separator: str) -> list[str]:
    """Return the cells of the first record."""
    try:
        return next(csv.reader(io.StringIO(text), delimiter=separator), [])
    except csv.Error:
        return []


def _csv_settings(path: Path, separator: str, text: str) -> dict[str, Any]:
    """Return settings with which pandas guesses nothing.

    By itself it takes numbers, NA and null for other things than text, and where rows have a cell more than the header
    the first column for row names: a column too many makes that a fault to be seen.
    """
    from datasets import Features, Value

    names = header_of(text, separator)
    if not names:
        raise DataError("is empty", where=str(path), allowed="a header and rows")
    if len(set(names)) < len(names):
        raise DataError("names a column twice in its header", where=str(path), allowed="each column once")
    names = [*names, _BEYOND]
    return {
        "sep": separator, "header": 0, "names": names, "encoding": "utf-8-sig", "keep_default_na": False,
        "features": Features({name: Value("string") for name in names}),
    }  # fmt: skip


def _cells(row: Mapping[str, Any], where: str) -> dict[str, str]:
    known = {name: cell for name, cell in row.items() if name != _BEYOND}
    missing = [name for name, cell in known.items() if cell is None]
    if missing or row.get(_BEYOND) is not None:
        how = f"fewer cells than the header: none for {missing[0]!r}" if missing else "more cells than the header"
        raise DataError(f"has {how}", where=where, hint="put cells that hold the separator in quotes")
    return {name: cell for name, cell in known.items() if cell}


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
