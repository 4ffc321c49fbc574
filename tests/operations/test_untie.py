"""The output head untied from the embedding: exact, visible, and trained without the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend.model.in_memory_executor import apply_draft
from surgeon.cli.dry_run import fold_recipe
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.tied_head import tied_names
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins, step_of
from surgeon.errors import ArchitectureError, RecipeError
from tests.architectures.building import small_config, tiny_model
from tests.backend.tiny_models import load_plainly, save_tiny, some_tokens, write_tokenizer
from tests.export.replaying import digests, run

_UNTIE: Mapping[str, Any] = {"untie": {}}
_TIED = ("llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "mixtral")


def _tied(family: str, directory: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    place = save_tiny(family, directory, dtype, tie_word_embeddings=True)
    write_tokenizer(place)
    return place


@pytest.mark.parametrize("family", _TIED)
def test_an_untied_model_gives_the_same_logits_with_a_head_of_its_own(family: str, tmp_path: Path) -> None:
    """Reloaded with plain transformers; the head is a byte copy, the config says so, and nothing else has changed."""
    base = _tied(family, tmp_path / "base")
    proof = run(base, tmp_path / "out", _UNTIE, verify=True)["proof"]
    before, after = load_plainly(base), load_plainly(tmp_path / "out")

    assert "bit for bit" in proof["logits"]["detail"]
    assert torch.equal(before(some_tokens()).logits, after(some_tokens()).logits)
    assert before.get_output_embeddings().weight is before.get_input_embeddings().weight
    assert after.get_output_embeddings().weight is not after.get_input_embeddings().weight
    assert torch.equal(after.get_output_embeddings().weight, before.get_input_embeddings().weight)
    assert after.config.tie_word_embeddings is False
    stored = [load_file(place / "model.safetensors") for place in (base, tmp_path / "out")]
    (head,) = stored[1].keys() - stored[0].keys()
    assert head == ("embed_out.weight" if family == "gpt_neox" else "lm_head.weight")
    assert all(torch.equal(stored[1][name], value) for name, value in stored[0].items())


def test_it_costs_no_arithmetic_and_shows_what_it_adds(tmp_path: Path) -> None:
    """The preview says so before anything is done."""
    base = _tied("llama", tmp_path / "base")
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": [dict(_UNTIE)]})
    folded = fold_recipe(recipe)
    (report,) = folded.reports
    assert report.parameters_change == 96 * 32
    assert report.bytes_change == 2 * 96 * 32
    assert report.changes == "untied the head"
    assert folded.dry_run.config == {"tie_word_embeddings": (True, False)}


def test_head_and_last_layers_are_trained_while_the_embedding_stays(tmp_path: Path) -> None:
    """Healing as in arXiv:2411.15558: everything else is the base's, byte for byte; a replay gives the same bytes."""
    base = _tied("llama", tmp_path / "base")
    (tmp_path / "t.jsonl").write_text('{"text": "It was a bright cold day in April."}\n' * 3)
    steps: list[Any] = [
        {"prune": {"layers": [3]}}, _UNTIE, {"freeze": {"layers": "0-1", "outside": ["embedding"]}},
        {"train": {"objective": "lm", "data": "t.jsonl", "steps": 2, "batch_size": 1, "max_length": 32,
                   "learning_rate": 0.01, "scheduler": "constant"}},
    ]  # fmt: skip
    result = run(base, tmp_path / "out", *steps, verify=True, root=str(tmp_path))
    before, after = (load_file(place / "model.safetensors") for place in (base, tmp_path / "out"))

    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(after["lm_head.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    for name in after:
        if name.startswith(("model.layers.0.", "model.layers.1.")):
            assert torch.equal(after[name], before[name])
    assert not torch.equal(after["model.layers.4.mlp.up_proj.weight"], before["model.layers.5.mlp.up_proj.weight"])
    assert result["proof"]["logits"]["passed"]

    run(base, tmp_path / "again", *result["recipe"]["steps"], verify=True, root=str(tmp_path))
    assert digests(tmp_path / "again") == digests(tmp_path / "out")


def test_a_head_untied_after_training_begins_as_the_trained_embedding(tmp_path: Path) -> None:
    """And what is trained afterwards goes to the one that was trained."""
    base = _tied("llama", tmp_path / "base", torch.float32)
    (tmp_path / "t.jsonl").write_text('{"text": "It was a bright cold day in April."}\n' * 3)
    train = {"train": {"objective": "lm", "data": "t.jsonl", "steps": 1, "batch_size": 1, "max_length": 32,
                       "learning_rate": 0.01, "scheduler": "constant"}}  # fmt: skip
    frozen = {"freeze": {"layers": "all"}}
    run(base, tmp_path / "a", frozen, train, _UNTIE, verify=True, root=str(tmp_path))
    run(base, tmp_path / "b", frozen, train, _UNTIE, {"freeze": {"outside": ["head", "norm"]}}, train, verify=True,
        root=str(tmp_path))  # fmt: skip
    plain, first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "a", "b"))

    assert not torch.equal(first["model.embed_tokens.weight"], plain["model.embed_tokens.weight"])
    assert torch.equal(first["lm_head.weight"], first["model.embed_tokens.weight"])
    assert torch.equal(second["lm_head.weight"], first["lm_head.weight"])
    assert not torch.equal(second["model.embed_tokens.weight"], first["model.embed_tokens.weight"])


def test_the_live_model_is_tied_again_afterwards(tmp_path: Path) -> None:
    """The resident base serves the next job as if nothing had been."""
    base = _tied("llama", tmp_path / "base")
    draft = fold(draft_of(read_structure(open_checkpoint(base))), [step_of("untie", {}, "test")])
    model = load_plainly(base)
    edited: Any
    with apply_draft(model, draft) as edited:
        assert edited.lm_head.weight is not edited.model.embed_tokens.weight
        assert edited.config.tie_word_embeddings is False
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings is True


def test_what_is_not_tied_is_refused_by_the_field(tmp_path: Path) -> None:
    """Also a second time."""
    free = draft_of(read_structure(open_checkpoint(save_tiny("llama", tmp_path / "free"))))
    with pytest.raises(ArchitectureError, match="config field tie_word_embeddings: nothing is tied"):
        fold(free, [step_of("untie", {}, "test")])
    tied = draft_of(read_structure(open_checkpoint(_tied("llama", tmp_path / "tied"))))
    with pytest.raises(RecipeError, match="untied already"):
        fold(tied, [step_of("untie", {}, "test")] * 2)


def _names_in_transformers(model_type: str) -> tuple[str, str] | None:
    cls = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    keys = getattr(cls, "_tied_weights_keys", None) or {}
    pairs = [(head, embedding) for head, embedding in keys.items() if "bias" not in head]
    return pairs[0] if len(pairs) == 1 else None


_CHECKED = (
    "bart", "biogpt", "bloom", "codegen", "cohere", "ctrl", "falcon", "falcon_mamba", "gemma", "gemma3_text", "glm",
    "gpt_neo", "granite", "mamba", "olmo", "openai-gpt", "opt", "phi", "phi3", "qwen2", "smollm3", "starcoder2",
    "trocr", "whisper", "roberta", "rwkv", "xlnet",
)  # fmt: skip


@pytest.mark.parametrize("model_type", _CHECKED)
def test_names_are_those_that_transformers_ties_or_the_step_is_refused(model_type: str, tmp_path: Path) -> None:
    """A wrong name would be an unexpected key and a random head after reloading."""
    config = small_config(model_type)
    config.tie_word_embeddings = True
    model: Any = tiny_model(config)
    model.save_pretrained(tmp_path / "base")
    draft = draft_of(read_structure(open_checkpoint(tmp_path / "base")))
    known = _names_in_transformers(model_type)
    try:
        names = tied_names(draft.structure)
    except ArchitectureError as error:
        assert "tie_word_embeddings" in error.where
        assert model_type in ("opt", "roberta", "rwkv", "xlnet"), error
        return
    assert tuple(draft.structure.memory_names(names)) == known
    result = run(tmp_path / "base", tmp_path / "out", _UNTIE, verify=True)
    assert result["proof"]["keys"]["passed"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_every_type_this_file_names_exists() -> None:
    """A type that transformers drops must not turn into a silent skip."""
    assert set(_CHECKED) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
