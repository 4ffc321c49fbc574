"""The one door to a model: loads a checkpoint that fits with plain transformers, and keeps the last for the next job.

Nothing else loads one. Code that a checkpoint brings is never run unless it was opened with `trust_remote_code`.
"""

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
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgeon.backend.model.fit import code_refused, explained, model_class, own_config, require_fit
from surgeon.backend.model.quantised_models import cast_dequantised, known_quantisation
from surgeon.backend.model.streaming import offload_map, unmapped_reading
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.checkpoint.fit import Fit, judgement
from surgeon.core.structure.structure import Structure
from surgeon.errors import CheckpointError


@dataclass(frozen=True)
class Loaded:
    """A model in memory, and what transformers said of it on loading."""

    model: nn.Module
    fit: Fit


_resident: tuple[tuple[object, ...], Loaded] | None = None


def load_model(
    checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device, device_map: dict[str, str] | None = None,
    *, whole: bool = True,
) -> Loaded:  # fmt: skip
    """Load a checkpoint in evaluation mode; `dtype` None keeps its own. A `device_map` may leave modules on disk.

    With `whole` False it is loaded even if it does not fit, to look at what is wrong with it.

    Raises:
        ArchitectureError: transformers has no class for it, lacks a package, would run code that it brings, or does not
            know that it is quantised.
        CheckpointError: it lacks tensors, some have another shape, or transformers cannot load it.
    """
    quantisation = known_quantisation(checkpoint, device)
    if whole:
        require_fit(checkpoint)
    offload = {"device_map": device_map, "offload_folder": offload_directory()} if device_map else {}
    with explained(checkpoint), unmapped_reading() if device_map else nullcontext():
        model, report = model_class(checkpoint).from_pretrained(
            checkpoint.path, dtype=dtype or "auto", output_loading_info=True, ignore_mismatched_sizes=True,
            trust_remote_code=checkpoint.trust_remote_code, **offload,
        )  # fmt: skip
    fit = judgement(type(model).__name__, report, transformers.__version__)
    if whole:
        fit.require(checkpoint)
    if quantisation is not None:
        cast_dequantised(model, dtype)
    placed = model if device_map else model.to(device)
    return Loaded(placed.eval(), fit)


def resident_model(
    structure: Structure, dtype: torch.dtype | None, device: torch.device, *, stream: bool = False
) -> Loaded:
    """Return the loaded base of a checkpoint, kept from the last job if it is the same.

    With `stream` its layers stay on disk until they are used; see `surgeon.backend.model.streaming`.
    """
    global _resident  # noqa: PLW0603 - one model at a time is what a worker is for
    checkpoint = structure.checkpoint
    made_of = (checkpoint.path.resolve(), checkpoint.fingerprint, checkpoint.trust_remote_code, _written(checkpoint))
    key = (*made_of, dtype, device, stream)
    if _resident is None or _resident[0] != key:
        _resident = None
        device_map = offload_map(meta_model(checkpoint), structure, device) if stream else None
        _resident = (key, load_model(checkpoint, dtype, device, device_map))
    return _resident[1]


def _written(checkpoint: Checkpoint) -> tuple[tuple[int, int, int], ...]:
    """Tell one state of the shards from the next; the fingerprint knows headers only."""
    shards = sorted({tensor.shard for tensor in checkpoint.tensors.values()})
    return tuple((status.st_size, status.st_mtime_ns, status.st_ino) for status in map(Path.stat, shards))


def meta_model(checkpoint: Checkpoint) -> nn.Module:
    """Return the model without any weights."""
    with explained(checkpoint), torch.device("meta"):
        config = own_config(checkpoint)
        cls: Any = model_class(checkpoint, config)
        auto = cls is AutoModelForCausalLM
        make: Any = cls.from_config if auto else cls._from_config
        built: nn.Module = make(config, **({"trust_remote_code": checkpoint.trust_remote_code} if auto else {}))
    return built


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


def load_tokenizer(source: Checkpoint | Path, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a checkpoint or a directory; a checkpoint's code is run where it was opened so.

    Raises:
        CheckpointError: there is none that transformers can load.   ArchitectureError: it would run code for it.
    """
    if isinstance(source, Checkpoint):
        path, trusted, code = source.path, source.trust_remote_code, source.own_code
    else:
        path, trusted, code = source, trust_remote_code, ()
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trusted)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if not trusted and "trust_remote_code" in str(error):
            raise code_refused(path, code) from error
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"has no tokenizer that transformers can load: {first}",
            where=str(path),
            hint="copy the tokenizer files of the model into it",
        ) from error


_donors: dict[Path, nn.Module] = {}


def donor_model(checkpoint: Checkpoint) -> nn.Module:
    """Return another model that layers are taken from, kept until another is or it is forgotten."""
    if checkpoint.path not in _donors:
        _donors.clear()
        _donors[checkpoint.path] = load_model(checkpoint, None, torch.device("cpu")).model
    return _donors[checkpoint.path]


def forget_donor() -> None:
    """Drop the other model."""
    _donors.clear()
