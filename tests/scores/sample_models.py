"""Tiny checkpoints with a text, and scores measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.data.calibration import Calibration
from surgeon.backend.scoring.context import Settings, calibration_of
from surgeon.backend.scoring.score_runner import measure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.core.scoring.score import Score
from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.jobs import job_context, keep_silent, never

MEASURED_FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "phi3", "mixtral")
Array = np.ndarray[Any, Any]


def patient(family: str, directory: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save a tiny checkpoint with its tokenizer."""
    base = save_tiny(family, directory, dtype, **changes)
    write_tokenizer(base)
    return base


def open_draft(base: Path, *steps: Any) -> Draft:
    """Return the draft of a recipe."""
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": list(steps)})
    return fold(draft_of(read_structure(open_checkpoint(base))), recipe.steps)


def few(base: Path, **changes: Any) -> Settings:
    """Return settings of five short sequences in three batches."""
    return Settings(base, **{"sequences": 5, "length": 16, "batch_tokens": 32, **changes})


def text_of(base: Path, **changes: Any) -> Calibration:
    """Return the text that `few` measures on."""
    return calibration_of(open_draft(base), few(base, **changes))


def scores(
    base: Path, names: str, *steps: Any, emit: Any = keep_silent, cancelled: Any = never, **changes: Any
) -> dict[str, Score]:
    """Measure scores, named in one text, after some steps."""
    from surgeon.core.scoring.requests import split_requests

    found = measure(open_draft(base, *steps), split_requests(names), few(base, **changes), job_context(emit, cancelled))
    return {score.name: score for score in found}


def values(score: Score) -> Array:
    """Return the values in the order of the layers."""
    return np.array(list(score.values.values()))
