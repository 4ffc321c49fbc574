"""Data sets by hub id, `OWNER/NAME/CONFIG:SPLIT@REVISION`, through the package `datasets`, a row at a time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from surgeon.errors import DataError

HUB_FORMS = (
    "OWNER/NAME, OWNER/NAME/CONFIG, OWNER/NAME:SPLIT or OWNER/NAME/CONFIG:SPLIT@REVISION of a data set on the hub"
)
_WORD = r"[A-Za-z0-9][\w.-]*"
_HUB_ID = re.compile(
    rf"(?P<name>{_WORD}/{_WORD})(/(?P<config>{_WORD}))?(:(?P<split>[\w.-]+))?(@(?P<revision>[\w./-]+))?"
)
_FILE = re.compile(r"\.(jsonl|ndjson|json|txt|md|csv|tsv|parquet|arrow|feather|gz|bz2|xz|zst|zip|lz4|yaml|yml)$")


@dataclass(frozen=True)
class HubData:
    """A data set on the hub: which part of it, and at which revision. `said` is how a person wrote it."""

    said: str
    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None


def hub_data(data: str, root: Path) -> HubData | None:
    """Return the data set on the hub that a name means; None where there is such a file, or it looks like one."""
    found = _HUB_ID.fullmatch(data)
    if found is None or _FILE.search(data) or (root / data).exists():
        return None
    return HubData(data, found["name"], found["config"], found["split"] or "train", found["revision"])


def is_hub_data(data: str, root: Path) -> bool:
    """Whether a name means a data set on the hub."""
    return hub_data(data, root) is not None


def hub_rows(data: HubData, most: int | None = None) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the first rows of a data set, `most` of them or all, and where each stands; no others are fetched.

    Raises:
        DataError: `datasets` cannot load it.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            "is no file here, and reading data sets from the hub needs the package datasets", where=data.said,
            allowed="a file that is there", hint="pip install datasets",
        ) from error  # fmt: skip
    try:
        rows = load_dataset(
            data.name, data.config, split=data.split, revision=pinned(data) or data.revision, streaming=True
        )
        for number, row in enumerate(islice(rows, most)):
            yield without_nulls(dict(row)), f"{data.said}, row {number}"
    except Exception as error:  # it raises errors of its own, of huggingface_hub, of pyarrow and of the network
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"is no file here, and cannot be loaded from the hub: {first}", where=data.said, allowed=HUB_FORMS
        ) from error


def without_nulls(value: Any) -> Any:
    """Return a row of a table without the keys that it has only because another row has them."""
    if isinstance(value, Mapping):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


@cache
def pinned(data: HubData) -> str | None:
    """Return the commit that a data set's revision means now; None where the hub cannot be asked."""
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(data.name, revision=data.revision).sha
    except Exception:  # offline, no such data set, no right to read it: what loads it says so
        return None


def hub_digest(data: HubData) -> str:
    """Return the digest of a data set's commit, or of its rows where the hub cannot be asked for one.

    A data set may change under its name.
    """
    digest = hashlib.sha256()
    commit = pinned(data)
    if commit is not None:
        digest.update(json.dumps([data.name, data.config, data.split, commit]).encode())
    else:
        for row, _ in hub_rows(data):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
