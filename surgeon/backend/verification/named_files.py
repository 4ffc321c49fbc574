"""Whether the files that a model's own files name are there: code that classes are mapped to, parts of a pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surgeon.backend.verification.checks import Check

_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_MODULES = "modules.json"
"""Names the parts of a sentence-transformers pipeline, each a folder."""


def check_named_files(directory: Path, base: Path | None) -> Check:
    """Look for every file that an export's files name; one that the base lacks too is the base's affair."""
    named = dict(_named(directory))
    gone = [name for name in named if not (directory / name).exists()]
    lost = [name for name in gone if base is None or (base / name).exists()]
    if lost:
        return Check("files", False, f"{named[lost[0]]} names {lost[0]}, which is not there")
    if gone:
        return Check("files", True, f"{named[gone[0]]} names {gone[0]}, which the base lacks too", proved=False)
    return Check("files", True, f"{len(named)} files that others name are there" if named else "none names another")


def _named(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield each named file and what names it."""
    for config in _CONFIGS:
        plain = _read(directory / config)
        mapped = plain.get("auto_map") if isinstance(plain, dict) else None
        for classes in mapped.values() if isinstance(mapped, dict) else ():
            for one in classes if isinstance(classes, list) else [classes]:
                if isinstance(one, str) and "." in one and "--" not in one:  # REPO--MODULE is elsewhere
                    yield f"{one.rpartition('.')[0].replace('.', '/')}.py", config
    modules = _read(directory / _MODULES)
    for module in modules if isinstance(modules, list) else ():
        path = module.get("path") if isinstance(module, dict) else None
        if path and isinstance(path, str):
            yield path, _MODULES


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
