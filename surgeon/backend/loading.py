"""Loads a checkpoint with plain transformers, and keeps the last one for the next job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from surgeon.core.checkpoint import Checkpoint
from surgeon.errors import ArchitectureError, CheckpointError

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Loaded:
    """A model in memory. `report` holds the missing, unexpected and mismatched keys that transformers told of."""

    model: nn.Module
    report: dict[str, Any]


_resident: tuple[tuple[object, ...], Loaded] | None = None


def load_model(path: Path, dtype: torch.dtype | None, device: torch.device) -> Loaded:
    """Load a checkpoint in evaluation mode; `dtype` None keeps its own.

    Raises:
        ArchitectureError: transformers has no causal language model for it.
        CheckpointError: transformers cannot load it.
    """
    try:
        AutoConfig.from_pretrained(path)
        model, report = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto", output_loading_info=True)
    except (ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ArchitectureError(f"transformers cannot build it: {first}", where=str(path / "config.json")) from error
    except (OSError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"transformers cannot load it: {first}", where=str(path)) from error
    return Loaded(model.eval().to(device), {key: sorted(map(str, value)) for key, value in report.items() if key.endswith("_keys")})


def resident_model(checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device) -> Loaded:
    """Return the loaded base of a checkpoint, kept from the last job if it is the same."""
    global _resident  # noqa: PLW0603 - one model at a time is what a worker is for
    key = (checkpoint.path.resolve(), checkpoint.fingerprint, dtype, device)
    if _resident is None or _resident[0] != key:
        _resident = None
        _resident = (key, load_model(checkpoint.path, dtype, device))
    return _resident[1]


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
        raise CheckpointError(f"has no tokenizer that transformers can load: {first}", where=str(path), hint="copy the tokenizer files of the model into it") from error
