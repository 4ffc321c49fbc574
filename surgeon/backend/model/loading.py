"""Loads a checkpoint with plain transformers, and keeps the last one for the next job."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from surgeon.backend.model.quantised_loading import bitsandbytes_config, keep_packing
from surgeon.backend.model.quantised_models import cast_dequantised, require_known_quantisation
from surgeon.backend.model.streaming import offload_map, unmapped_reading
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.structure.structure import Structure
from surgeon.errors import ArchitectureError, CheckpointError

transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def model_class(path: Path) -> Any:
    """Return the class of transformers that the config names, or AutoModelForCausalLM where it names none."""
    config = AutoConfig.from_pretrained(path)
    found = (getattr(transformers, name, None) for name in config.architectures or ())
    # Some types borrow another's class but not its config: only the Auto class keeps them apart.
    return next((cls for cls in found if getattr(cls, "config_class", None) is type(config)), AutoModelForCausalLM)


@dataclass(frozen=True)
class Loaded:
    """A model in memory. `report` holds the missing, unexpected and mismatched keys that transformers told of."""

    model: nn.Module
    report: dict[str, Any]


_resident: tuple[tuple[object, ...], Loaded] | None = None


def load_model(
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    device_map: dict[str, str] | None = None,
    held_in: BitsAndBytesConfig | None = None,
) -> Loaded:
    """Load a checkpoint in evaluation mode; `dtype` None keeps its own. A `device_map` may leave modules on disk.

    Raises:
        ArchitectureError: transformers has no causal language model for it, or does not know that it is quantised.
        CheckpointError: transformers cannot load it.
    """
    quantisation = require_known_quantisation(path, device)
    try:
        offload: dict[str, Any] = (
            {"device_map": device_map, "offload_folder": offload_directory()} if device_map else {}
        )
        if held_in is not None:  # quantised where it goes to: moving it afterwards is not possible
            offload = {"device_map": {"": str(device)}, "quantization_config": held_in}
        with unmapped_reading() if device_map else nullcontext():
            model, report = model_class(path).from_pretrained(
                path, dtype=dtype or "auto", output_loading_info=True, **offload
            )
    except (ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ArchitectureError(f"transformers cannot build it: {first}", where=str(path / "config.json")) from error
    except (OSError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"transformers cannot load it: {first}", where=str(path)) from error
    if quantisation is not None:
        cast_dequantised(model, dtype)
    if held_in is not None:
        keep_packing(model)
    placed = model if device_map or held_in is not None else model.to(device)
    return Loaded(
        placed.eval(), {key: sorted(map(str, value)) for key, value in report.items() if key.endswith("_keys")}
    )


def resident_model(
    structure: Structure,
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    stream: bool = False,
    held_in: str | None = None,
) -> Loaded:
    """Return the loaded base of a checkpoint, kept from the last job if it is the same.

    With `stream` its layers stay on disk until they are used; see `surgeon.backend.model.streaming`.
    """
    global _resident  # noqa: PLW0603 - one model at a time is what a worker is for
    checkpoint = structure.checkpoint
    key = (checkpoint.path.resolve(), checkpoint.fingerprint, _written(checkpoint), dtype, device, stream, held_in)
    if _resident is None or _resident[0] != key:
        _resident = None
        device_map = offload_map(meta_model(checkpoint.path), structure, device) if stream else None
        quantised = bitsandbytes_config(held_in, checkpoint, dtype) if held_in is not None else None
        _resident = (key, load_model(checkpoint.path, dtype, device, device_map, quantised))
    return _resident[1]


def _written(checkpoint: Checkpoint) -> tuple[tuple[int, int, int], ...]:
    """Tell one state of the shards from the next; the fingerprint knows headers only."""
    shards = sorted({tensor.shard for tensor in checkpoint.tensors.values()})
    return tuple((status.st_size, status.st_mtime_ns, status.st_ino) for status in map(Path.stat, shards))


def _from_config(path: Path) -> nn.Module:
    cls: Any = model_class(path)
    config = AutoConfig.from_pretrained(path)
    make: Any = cls.from_config if cls is AutoModelForCausalLM else cls._from_config
    built: nn.Module = make(config)
    return built


def meta_model(path: Path) -> nn.Module:
    """Return the model without any weights."""
    with torch.device("meta"):
        model: nn.Module = _from_config(path)
    return model


@cache
def offload_directory() -> str:
    """Return a directory, removed at exit, for tensors that change on loading and so cannot stay where they are."""
    directory = tempfile.mkdtemp(prefix="surgeon-offload-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def forget_model() -> None:
    """Drop the resident model."""
    global _resident  # noqa: PLW0603 - see resident_model
    _resident = None


def load_tokenizer(path: Path) -> Any:
    """Return the checkpoint's tokenizer.

    Raises:
        CheckpointError: there is none that transformers can load.
    """
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"has no tokenizer that transformers can load: {first}",
            where=str(path),
            hint="copy the tokenizer files of the model into it",
        ) from error
