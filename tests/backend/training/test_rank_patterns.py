"""Adapters whose ranks a score says: what PEFT is told, that they train and load, that a replay asks for no score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from surgeon.backend import replay
from surgeon.backend.model.adapters import without_deprecations
from surgeon.core.recipe.recipe import step_of
from surgeon.errors import RecipeError, SelectionError
from tests.backend.tiny_models import LAYERS, save_tiny, some_tokens, write_tokenizer
from tests.export.replaying import run
from tests.scores.sample_models import scores

ROLES = ["attention.query", "mlp.down"]
RANKS = {"by": "taylor", "mean": 6, "least": 2}
STEP: Any = {"masked_lora": {"layers": "1-4", "roles": ROLES, "alpha": 12, "rank": RANKS}}
TRAIN = {"train": {"objective": "lm", "data": "text.txt", "steps": 2, "max_length": 16, "learning_rate": 0.05}}
SCORED: Any = {"sequences": 2, "length": 16, "device": "cpu"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = save_tiny("llama", tmp_path_factory.mktemp("ranks") / "base")
    write_tokenizer(model)
    (model.parent / "text.txt").write_text("a quick brown fox and its lazy dog " * 20)
    return model


def adapted(base: Path, out: Path, *steps: Any) -> dict[str, Any]:
    return run(base, out, *steps, root=str(base.parent), **SCORED)


def test_the_adapter_has_the_ranks_and_one_scale(base: Path, tmp_path: Path) -> None:
    found = adapted(base, tmp_path / "out", STEP, TRAIN)
    ranks = dict(text.split("=") for text in found["recipe"]["steps"][0]["resolved"]["rank"])
    assert len(ranks) == 4 * len(ROLES)
    assert sum(map(int, ranks.values())) == 6 * len(ranks)
    assert min(map(int, ranks.values())) >= 2
    assert len(set(ranks.values())) > 1
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with without_deprecations():
        loaded: Any = PeftModel.from_pretrained(model, str(tmp_path / "out"))
    for layer in range(LAYERS):
        block = loaded.base_model.model.model.layers[layer]
        for role, module in (("attention.query", block.self_attn.q_proj), ("mlp.down", block.mlp.down_proj)):
            if 1 <= layer <= 4:
                rank = int(ranks[f"{layer}.{role}"])
                assert module.lora_A["default"].weight.shape[0] == rank
                assert module.scaling["default"] == pytest.approx(12 / 6)
            else:
                assert not hasattr(module, "lora_A")
    assert config["rank_pattern"]
    with torch.no_grad():
        assert torch.isfinite(loaded(some_tokens()).logits).all()


def test_the_more_important_the_higher(base: Path, tmp_path: Path) -> None:
    """Against the score's own numbers, shared out by hand."""
    rank = {"by": "stable_rank", "mean": 12, "least": 1}
    found = adapted(base, tmp_path / "out", {"masked_lora": {"layers": "all", "roles": ["mlp.down"], "rank": rank}})
    ranks = [int(text.split("=")[1]) for text in found["recipe"]["steps"][0]["resolved"]["rank"]]
    score = scores(base, "stable_rank")["stable_rank"]
    values = [score.matrices[str(layer)]["mlp.down_proj.weight"] for layer in range(LAYERS)]
    for one in range(LAYERS):
        for other in range(LAYERS):
            assert values[one] < values[other] or ranks[one] >= ranks[other] - 1
    total = 12 * LAYERS - LAYERS
    shares = [1 + total * value / sum(values) for value in values]
    assert all(abs(rank - share) <= 1 for rank, share in zip(ranks, shares, strict=True))


def test_a_replay_measures_nothing_and_refuses_other_ranks(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = adapted(base, tmp_path / "first", STEP, TRAIN)
    monkeypatch.setattr(replay, "_measure", None)
    again = adapted(base, tmp_path / "again", *first["recipe"]["steps"])
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert again["recipe"]["steps"] == first["recipe"]["steps"]
    (lora, _) = first["recipe"]["steps"]
    for ranks, said in [
        (lora["resolved"]["rank"][1:2], "no rank for|in the mean"), (["1.mlp.down=60"], "6 in the mean"),
        (["1.nothing=6"], "is none"),
    ]:  # fmt: skip
        wrong = {**{key: value for key, value in lora.items() if key != "resolved_for"}, "resolved": {"rank": ranks}}
        with pytest.raises((RecipeError, SelectionError), match=said):
            adapted(base, tmp_path / "wrong", wrong)


def test_what_cannot_be_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="more than the mean"):
        step_of(
            "masked_lora", {"layers": 1, "rank": {"by": "taylor", "mean": 2, "least": 4}}, "here"
        ).operation.ranked()
    with pytest.raises(RecipeError, match=r"rank.*has to be a whole number >= 1"):
        step_of("masked_lora", {"layers": 1, "rank": 0}, "here")
    with pytest.raises(RecipeError, match="no positive value"):
        adapted(base, tmp_path / "out", {"masked_lora": {"layers": "all", "rank": {"by": "power_law_alpha"}}})
    with pytest.raises(RecipeError, match="no score"):
        adapted(base, tmp_path / "out", {"masked_lora": {"layers": 1, "rank": {"by": "nothing"}}})
