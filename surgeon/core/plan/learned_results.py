"""Results of learned steps, kept by the address of everything that made them. Reads headers and small JSON alone.

A result is a directory in the cache: `learned.safetensors` with the tensors that changed, in the checkpoint's own
layout and dtype, and `result.json` with what the step found out. Names do not depend on positions, so a result stays
right when layers in front of it come and go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from surgeon.core.checkpoint.headers import read_header
from surgeon.core.checkpoint.model_location import cache_directory
from surgeon.core.checkpoint.tensors import Tensor
from surgeon.errors import LearningError

TENSORS = "learned.safetensors"
REPORT = "result.json"
PENDING = "pending"
"""The address of a result that is not known yet, as in a rehearsal."""


def result_directory(address: str) -> Path:
    """Where the result of that address lies, or would."""
    return cache_directory() / "learned" / address


def is_learned(address: str) -> bool:
    """Whether a result is there, whole: it is published by rename, so it never lies there in part."""
    return (result_directory(address) / REPORT).is_file()


def result_tensors(address: str) -> Mapping[str, Tensor]:
    """Return the tensors of a result by name.

    Raises:
        LearningError: it is not there.   CheckpointError: its file is damaged.
    """
    path = result_directory(address) / TENSORS
    try:
        written_ns = path.stat().st_mtime_ns
    except FileNotFoundError as error:
        raise LearningError(
            "was learned once and is not there any more", where=str(path), hint="run the recipe again"
        ) from error
    return _read(path, written_ns)


@cache
def _read(path: Path, written_ns: int) -> Mapping[str, Tensor]:
    del written_ns
    return {tensor.name: tensor for tensor in read_header(path).tensors}


def result_report(address: str) -> Mapping[str, Any]:
    """Return what a learned step found out: losses, held-out figures, scores."""
    return json.loads((result_directory(address) / REPORT).read_bytes())  # type: ignore[no-any-return]


def layer_tensor(stack: str, key: str, suffix: str) -> str:
    """Name a tensor of a layer in a result; `key` is the layer's, see `draft.Layer.key`."""
    return f"{stack}/{key}/{suffix}"


def outside_tensor(name: str) -> str:
    """Name a tensor outside the layers in a result."""
    return f"outside/{name}"


def adapter_tensors(name: str) -> tuple[str, str, str]:
    """Name A, B and the gate of an adapter in a result; `name` is the adapter's own, see `plan.Adapter`."""
    return f"{name}/lora_A", f"{name}/lora_B", f"{name}/gate"
