"""The demo model itself: a checkpoint like any other, and the words it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surgeon.core.checkpoint.checkpoint import open_checkpoint


def test_the_demo_model_is_a_checkpoint_like_any_other(demo_model: Path) -> None:
    """Thirty Llama layers with tied embeddings in bfloat16, its licence beside it, no name of a training run."""
    config = json.loads((demo_model / "config.json").read_text())
    assert config["num_hidden_layers"] == 30
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "bfloat16"
    assert config["rms_norm_eps"] == 1e-5
    assert "_model_name_or_path" not in config
    generation = json.loads((demo_model / "generation_config.json").read_text())
    assert {key: generation[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")} == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert "Apache License" in (demo_model / "LICENSE").read_text()
    assert "license: apache-2.0" in (demo_model / "README.md").read_text()
    assert (demo_model / "model.safetensors").stat().st_mode == (demo_model / "config.json").stat().st_mode
    assert len(open_checkpoint(demo_model).tensors) == 272


def test_the_demo_tokenizer_splits_as_the_model_was_trained(demo_model: Path) -> None:
    """No token in front, each digit alone, spaces before a number together, and every text comes back."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    assert tokenizer("Hello world").input_ids == [19556, 905]
    assert tokenizer.tokenize("x =  12345") == ["x", "Ġ=", "ĠĠ", "1", "2", "3", "4", "5"]
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.model_max_length == 8192
    text = "Layers 0-29, naïve café: \t “quoted” — 3.14!\n\n  end"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_demo_model_answers_a_question(demo_model: Path) -> None:
    """Vanilla transformers finds every weight, and the chat template and the end token fit together."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    load: Any = AutoModelForCausalLM.from_pretrained
    model, loading = load(demo_model, output_loading_info=True)
    assert not any(loading.values())
    assert model.num_parameters() == 134_515_008
    tokenizer: Any = AutoTokenizer.from_pretrained(demo_model)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
