"""The address of a result changes with everything that makes the result, and with nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.backend.open_base import open_base
from surgeon.backend.training.result_cache_key import result_cache_key
from surgeon.backend.training.training_request import TrainingRequest
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.errors import CheckpointError
from tests.backend.tiny_models import write_tokenizer
from tests.backend.training_recipes import pupil, recipe, training
from tests.jobs import job_context

Step = Mapping[str, Mapping[str, Any]]
FORGETTING: dict[str, Any] = {"objective": {"npo": {"rewriter": "model"}}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    pupil(tmp_path)
    return tmp_path


def address(place: Path, *before: Step, seed: int = 0, names: Mapping[str, str] | None = None, **fields: Any) -> str:
    """Return the address of a training step after other steps."""
    plain = {**recipe(place / "model", (*before, training(**fields))), "seed": seed, "data": dict(names or {})}
    read = recipe_from_builtins(plain)
    draft = fold(open_base(read, "recipe", place), read.steps[:-1])
    operation = read.steps[-1].operation
    assert isinstance(operation, LearningStep)
    return result_cache_key(
        TrainingRequest(draft, operation, read.data, place, read.seed, torch.device("cpu"), job_context())
    )


def _written(place: Path, name: str, text: str) -> None:
    (place / name).write_text(text)


def _moved_weight(place: Path) -> None:
    path = place / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] += 1e-6
    save_file(tensors, path, metadata={"format": "pt"})


def _other_config(place: Path) -> None:
    path = place / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 1e-3}))


MAKING: Mapping[str, Callable[[Path], None]] = {
    "another tokenizer": lambda place: write_tokenizer(place / "model", bos=True),
    "a chat template": lambda place: _written(place, "model/chat_template.jinja", "{{ messages }}"),
    "another text": lambda place: _written(place, "text.jsonl", '{"text": "something else"}\n'),
    "one weight": _moved_weight,
    "the config": _other_config,
}


@pytest.mark.parametrize("change", MAKING)
def test_what_makes_the_result_is_in_its_address(place: Path, change: str) -> None:
    """Files first: a base whose chat template was mended is not trained as before."""
    before = address(place)
    MAKING[change](place)
    assert address(place) != before


@pytest.mark.parametrize("fields", [
    {"seed": 1}, {"steps": 7}, {"batch_size": 5}, {"learning_rate": 2e-2}, {"held_out": "20%"}, {"max_length": 23},
    {"scheduler": "linear"}, {"warmup_ratio": 0.1}, {"weight_decay": 0.1}, {"max_grad_norm": 2.0}, {"epsilon": 0.1},
    {"mixed_precision": "bf16"}, {"objective": "distill"}, {"objective": {"distill": {"temperature": 2.0}}},
])  # fmt: skip
def test_so_is_every_setting_that_moves_a_weight(place: Path, fields: dict[str, Any]) -> None:
    """One at a time."""
    assert address(place, **fields) not in (address(place), address(place, objective="distill", seed=2))


@pytest.mark.parametrize("step", [
    {"prune": {"layers": 0}}, {"freeze": {"layers": 0}}, {"untie": {}}, {"expand": {"after": [0]}},
    {"masked_lora": {"matrices": "all.mlp", "rank": 2}},
])  # fmt: skip
def test_so_are_the_steps_before(place: Path, step: Step) -> None:
    """Freezes too: they say what is trained."""
    if "untie" in step:
        shutil.rmtree(place / "model")
        pupil(place, tie_word_embeddings=True)
    assert address(place, step) != address(place)


def test_a_text_is_another_one_when_it_is_read_in_another_way(place: Path) -> None:
    """The same bytes as JSON lines and as plain text: whoever gives a file its right ending trains on other rows."""
    shutil.copy(place / "text.jsonl", place / "text.txt")
    assert address(place, data="text.txt") != address(place)


def test_what_changes_no_weight_is_not_in_the_address(place: Path) -> None:
    """How often a run is saved and looked at, files for people, when answers end, what the text is called."""
    before = address(place)
    assert address(place, save_steps=3, eval_steps=2, gradient_checkpointing=True) == before
    assert address(place, data="docs", names={"docs": "text.jsonl"}) == before
    _written(place, "model/README.md", "hello")
    _written(place, "model/LICENSE", "mine")
    _written(place, "model/generation_config.json", '{"eos_token_id": 5}')
    (place / "text.jsonl").rename(place / "other.jsonl")
    assert address(place, data="other.jsonl") == before


def test_a_rewriter_is_known_by_its_bytes(place: Path) -> None:
    """Wherever it lies; its tokenizer is part of it."""
    before = address(place, **FORGETTING)
    shutil.copytree(place / "model", place / "rewriter")
    assert address(place, objective={"npo": {"rewriter": "rewriter"}}) == before
    assert address(place, objective={"npo": {"rewriter": "./rewriter"}}) == before
    with pytest.raises(CheckpointError, match="no such directory"):  # not one of the current directory
        address(place, objective={"npo": {"rewriter": "./surgeon"}})
    write_tokenizer(place / "rewriter", template="{{ messages }}")
    assert address(place, objective={"npo": {"rewriter": "rewriter"}}) != before
