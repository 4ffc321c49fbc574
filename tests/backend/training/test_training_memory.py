"""What a learning step is said to take in memory is what it takes, within a tenth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backend.tiny_models import CONFIGS, save_tiny, write_tokenizer
from tests.backend.training.measured_memory import foretold_and_measured

SIZE = {
    "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 700, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 256,
}  # fmt: skip
GPT2 = {"vocab_size": 2000, "n_embd": 256, "n_layer": 4, "n_head": 8, "n_positions": 256}
WITHOUT_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
LORA = {"masked_lora": {"layers": "all", "rank": 8}}
CASES: Mapping[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "adapters": ([LORA], {}),
    "adapters in bf16": ([LORA], {"mixed_precision": "bf16"}),
    "weights": ([], {}),
    "weights in bf16": ([], {"mixed_precision": "bf16"}),
    "upper layers": ([{"freeze": {"layers": "0-1", "outside": ["embedding", "norm", "head"]}}], {}),
    "pairs": ([LORA], {"objective": "dpo", "data": "pairs.jsonl", "batch_size": 2}),
    "a teacher": ([LORA], {"objective": "distill"}),
    "half of a batch at once": ([LORA], {"gradient_accumulation_steps": 2}),
    "activations computed twice": ([LORA], {"gradient_checkpointing": True}),
}
FAMILIES = [("llama", case) for case in CASES] + [
    (family, case)
    for family in ("gpt2", "qwen3", "phi3", "gemma2", "gpt_neox", "mixtral")
    for case in (("adapters", "adapters in bf16") if family == "mixtral" else ("adapters", "weights in bf16"))
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


def saved(family: str, place: Path) -> Path:
    """Return a model of a family in bf16, with texts and pairs that are longer than is read of them."""
    model = place / family / "model"
    if not model.exists():
        changes: dict[str, Any] = {**GPT2, **WITHOUT_DROPOUT} if family == "gpt2" else dict(SIZE)
        if family == "gpt_neox":
            del changes["num_key_value_heads"]
        changes |= {"head_dim": 32} if "head_dim" in CONFIGS[family] else {}
        save_tiny(family, model, torch.bfloat16, **changes)
        write_tokenizer(model)
        text = "the quick brown fox jumps over" * 9
        texts = [{"text": f"{number} {text}"} for number in range(64)]
        pairs = [{"prompt": "fox", "chosen": f"{number} {text}", "rejected": f"{text} {number}"} for number in range(8)]
        for name, rows in (("text", texts), ("pairs", pairs)):
            (model.parent / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model


@pytest.mark.parametrize(("family", "case"), FAMILIES)
def test_the_memory_told_beforehand_is_what_is_measured(family: str, case: str, models: Path) -> None:
    steps, fields = CASES[case]
    usual = {"objective": "lm", "data": "text.jsonl", "steps": 10, "batch_size": 4, "max_length": 128}
    told, measured = foretold_and_measured(saved(family, models), *steps, {"train": {**usual, **fields}})
    assert told == pytest.approx(measured, rel=0.1)
