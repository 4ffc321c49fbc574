"""A tiny model, a little text, and the arguments of jobs that train the one on the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.backend.tiny_models import save_tiny, write_tokenizer

Step = Mapping[str, Mapping[str, Any]]
LINES = ("the quick brown fox", "jumps over the lazy dog", "and nobody minds", "on a long afternoon", "1 + 1 = 2")


def pupil(directory: Path, **changes: Any) -> Path:
    """Save a tiny model with a tokenizer, and a text beside it; return the model's directory."""
    model = save_tiny("llama", directory / "model", num_hidden_layers=2, **changes)
    write_tokenizer(model)
    rows = [f"{LINES[at % 5].upper() if at % 3 else LINES[at % 5]}, {at} times over" for at in range(60)]
    (directory / "text.jsonl").write_text("".join('{"text": "' + row + '"}\n' for row in rows))
    return model


def training(**fields: Any) -> Step:
    """Return a short training step on that text."""
    usual = {"objective": "lm", "data": "text.jsonl", "steps": 6, "batch_size": 4, "max_length": 24}
    return {"train": {**usual, "learning_rate": 1e-2, **fields}}


def learn_args(model: Path, *steps: Step, **more: Any) -> dict[str, Any]:
    """Return the arguments of a learn job."""
    return {"recipe": recipe(model, steps), "root": str(model.parent), **more}


def recipe(model: Path, steps: Sequence[Step]) -> dict[str, Any]:
    """Return a recipe as plain data."""
    return {"version": 1, "base": {"model": str(model)}, "steps": list(steps)}


def as_dtype(model: Path, dtype: torch.dtype) -> None:
    """Rewrite a checkpoint in another dtype."""
    path, config = model / "model.safetensors", json.loads((model / "config.json").read_text())
    save_file({name: one.to(dtype) for name, one in load_file(path).items()}, path, metadata={"format": "pt"})
    (model / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
