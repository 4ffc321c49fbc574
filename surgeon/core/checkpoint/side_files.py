"""Files beside the weights that belong to the model: which there are, and what the JSON ones say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError

INDEX_ENDING = ".index.json"
MODULES = "modules.json"
"""Names the parts of a sentence-transformers model, and the folders that hold those which are not the transformer."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Weights in other formats: they would no longer be those of this model.
WEIGHTS = (*PICKLES, ".safetensors", ".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".npz", ".tflite")
_FOLDERS = {"additional_chat_templates": "*.jinja", "custom_generate": "*"}
"""The folders that transformers reads beside the files of a checkpoint's own directory, and what it reads there."""
_MOST_BYTES = 1 << 26


def side_files(path: Path, shards: set[str]) -> list[str]:
    """Return all files that travel with the model, as paths within its directory.

    Raises:
        CheckpointError: modules.json names what does not lie inside the directory.
    """
    skipped = {"config.json", *shards}
    found = [
        file.name
        for file in path.iterdir()
        if file.is_file()
        and file.name not in skipped
        and not file.name.startswith(".")
        and file.suffix not in WEIGHTS
        and not file.name.endswith(INDEX_ENDING)
    ]
    for folder, pattern in _FOLDERS.items():
        found += [f"{folder}/{file.name}" for file in (path / folder).glob(pattern) if file.is_file()]
    return sorted([*found, *module_files(path)])


def other_weights(path: Path, shards: set[str]) -> list[str]:
    """Return files of weights that are no part of the checkpoint: another form of the same model, or of an older one.

    They do not travel.
    """
    return sorted(
        file.name for file in path.iterdir() if file.is_file() and file.suffix in WEIGHTS and file.name not in shards
    )


def module_folders(path: Path) -> list[tuple[str, str]]:
    """Return (folder, type) of the modules that modules.json names, but for those that lie in the directory itself.

    Raises:
        CheckpointError: a folder would lie outside the directory.
    """
    modules = read_document(path / MODULES)
    entries = modules if isinstance(modules, list) else ()
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("path"), str)]
    found = [(entry["path"].rstrip("/"), str(entry.get("type", ""))) for entry in named]
    for folder, _ in found:
        _require_inside(path, folder)
    return [(folder, kind) for folder, kind in found if folder not in ("", ".")]


def module_files(path: Path) -> Iterator[str]:
    """Yield the files of the folders that modules.json names; some, such as one that normalises, have none.

    Raises:
        CheckpointError: one lies outside the directory, or is a link to what does.
    """
    for folder, _ in module_folders(path):
        for place, inner, names in os.walk(path / folder):
            for name in sorted((*names, *inner)):
                file = Path(place, name)
                if name.startswith("."):
                    continue
                _require_inside(path, file.relative_to(path).as_posix())
                if file.is_file():
                    yield file.relative_to(path).as_posix()


def _require_inside(path: Path, name: str) -> None:
    whole, inner = path.resolve(), Path(name)
    # In the hub's cache every file is a link to a store beside the snapshots.
    store = (whole.parent.parent / "blobs",) if whole.parent.name == "snapshots" else ()
    target = (path / inner).resolve()
    plain = not inner.is_absolute() and ".." not in inner.parts and "\\" not in name
    if not plain or not any(target.is_relative_to(place) for place in (whole, *store)):
        raise CheckpointError(
            f"names {name!r}, which does not lie inside the directory",
            where=str(path / MODULES),
            allowed="folders of the checkpoint, without '..' and without links that lead out of it",
            hint="do not trust this checkpoint",
        )


def read_document(file: Path) -> Any:
    """Return what a JSON file holds; None if it is none, or so large that it is data."""
    try:
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return None
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None


def documents(names: Sequence[str]) -> Iterator[str]:
    """Yield the JSON files beside the weights that may speak of layers: not those of tokenizers and processors."""
    for name in names:
        if name.endswith(".json") and "/" not in name and name not in _OF_TEXT and "vocab" not in name:
            yield name


_OF_TEXT = frozenset(
    {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json",
        "chat_template.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
        "video_preprocessor_config.json", MODULES,
    }
)  # fmt: skip
