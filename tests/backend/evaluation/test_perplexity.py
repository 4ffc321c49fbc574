"""Perplexity against a loop over transformers that shares nothing with surgeon: own windows, float64 throughout.

What is measured, as `surgeon evaluate --help` and the README define it: documents follow each other, an end-of-text
token behind each; a window predicts `max_length` tokens, and begins with the token before the first of them (BOS, where
the tokenizer adds one; the end-of-text token before the first document). End-of-text tokens are read and not predicted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.export.replaying import job_args
from tests.jobs import keep_silent, never, perform

TEXTS = [f"Document {number}: " + "the quick brown fox, and its lazy dog. " * (1 + number % 4) for number in range(9)]
TALK = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def perplexity(model: Path, texts: Sequence[str], length: int, *, bos: bool) -> float:
    """The perplexity of texts, in float64 but for the model's own arithmetic, which is float32."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    live: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    end: int = tokenizer.eos_token_id
    nats = tokens = 0.0
    for read, predicted in windows([tokenizer.encode(text, add_special_tokens=False) for text in texts], end, length):
        ids = [tokenizer.bos_token_id, *read[1:]] if bos else read
        with torch.no_grad():
            logits_TV = live(torch.tensor([ids])).logits[0].to(torch.float64)
        for logits_V, token in zip(logits_TV, predicted, strict=True):
            if token is not None:
                nats += (torch.logsumexp(logits_V, 0) - logits_V[token]).item()
                tokens += 1
    return math.exp(nats / tokens)


def windows(documents: Sequence[Sequence[int]], end: int, length: int) -> Iterator[tuple[list[int], list[int | None]]]:
    """Yield what a window reads, and what is predicted at each of its positions; None for end-of-text tokens."""
    stream: list[tuple[int, bool]] = [(end, False)]
    for document in documents:
        stream += [(token, True) for token in document]
        stream.append((end, False))
    for at in range(1, len(stream), length):
        wanted = stream[at : at + length]
        yield (
            [token for token, _ in stream[at - 1 : at - 1 + len(wanted)]],
            [token if is_text else None for token, is_text in wanted],
        )


def evaluated(model: Path, root: Path, rows: Sequence[Any], *lengths: int) -> list[float]:
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [{"evaluate": {"data": "rows.jsonl", "max_length": length}} for length in lengths]
    found: Any = perform("run", job_args(model, root / "out", steps, root=str(root)), keep_silent, never)["evaluations"]
    return [float(one["figures"]["perplexity"]["value"]) for one in found]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_is_that_of_an_independent_loop_over_transformers(family: str, bos: bool, tmp_path: Path) -> None:
    """To 1e-6 of it: windows that end with a document or within one, of one token and of more than there are."""
    model = save_tiny(family, tmp_path / "model")
    write_tokenizer(model, bos=bos)
    lengths = (5, 60)
    got = evaluated(model, tmp_path, [{"text": text} for text in TEXTS], *lengths)
    assert got == pytest.approx([perplexity(model, TEXTS, length, bos=bos) for length in lengths], rel=1e-6)


def test_the_perplexity_of_dialogues_is_that_of_their_text_in_the_chat_template(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model")
    write_tokenizer(model, template=TALK)
    rows = [{"prompt": f"What is {number}?", "completion": "A number."} for number in range(9)]
    texts = [f"[user]{row['prompt']}[assistant]{row['completion']}" for row in rows]
    expected = perplexity(model, texts, 16, bos=False)
    assert evaluated(model, tmp_path, rows, 16) == pytest.approx([expected], rel=1e-6)


def test_the_demo_models_perplexity_is_that_of_an_independent_loop(demo_model: Path, tmp_path: Path) -> None:
    """Over its vocabulary of 49,152 a float32 softmax that adds up one by one is off by 9e-6."""
    texts = TEXTS[:3]
    got = evaluated(demo_model, tmp_path, [{"text": text} for text in texts], 24)
    assert got == pytest.approx([perplexity(demo_model, texts, 24, bos=False)], rel=1e-6)
