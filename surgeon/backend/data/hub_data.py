"""Data sets by hub id, through the package `datasets`, where it is installed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from surgeon.errors import DataError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
_FILES = (".jsonl", ".json", ".txt", ".md")


def is_hub_data(data: str, root: Path) -> bool:
    """Whether a name means a data set on the hub: `OWNER/NAME` or `OWNER/NAME:SPLIT`, and there is no such file."""
    named = _HUB_ID.fullmatch(data) is not None and not data.endswith(_FILES)
    return named and not (root / data).exists()


@cache
def hub_rows(data: str) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a data set on the hub; of its split `train` if none is named.

    Raises:
        DataError: `datasets` is not installed, or cannot load it.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            "is no file here, and reading data sets from the hub needs the package datasets", where=data,
            allowed="a .jsonl or .txt file", hint="pip install 'model-surgeon[train]'",
        ) from error  # fmt: skip
    name, _, split = data.partition(":")
    try:
        return [dict(row) for row in load_dataset(name, split=split or "train")]
    except Exception as error:  # it raises errors of its own, of huggingface_hub, of pyarrow and of the network
        first = str(error).strip().partition("\n")[0]
        raise DataError(
            f"cannot be loaded: {first}", where=data, allowed="OWNER/NAME or OWNER/NAME:SPLIT of a data set on the hub"
        ) from error


def hub_digest(data: str) -> str:
    """Return the digest of a hub data set's rows: a data set may change under its name."""
    digest = hashlib.sha256()
    for row in hub_rows(data):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
