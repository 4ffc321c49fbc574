"""Whole courses of each objective, against loops in float64 that run one unpadded sequence at a time."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax, logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from surgeon.backend.data.examples import examples_of_step
from surgeon.backend.model.dropout import without_dropout
from surgeon.errors import DataError
from tests.backend.tiny_models import load_plainly, make_tiny, write_tokenizer
from tests.backend.training_recipes import learn_args, pupil, training
from tests.jobs import keep_silent, never, perform

LENGTH, STEPS, BATCH = 24, 5, 4
Row = dict[str, Any]
Loss = Callable[[Any, Any, Sequence[Row]], torch.Tensor]
ROWS: Sequence[Row] = [
    {
        "prompt": f"what is {at}" + " and more" * (at % 2),
        "chosen": f"it is {at} " + "or so " * (at % 3),
        "rejected": "no" + " idea" * (at % 4),
    }
    for at in range(10)
]


class Talk:
    """A row's tokens, made by hand: the prompt, a line end, the answer, its end; cut at the length."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def log_probs(self, model: Any, prompt: str, answer: str) -> torch.Tensor:
        """Return the model's log-probability of each token of the answer that is within the length."""
        asked, told = (self.tokenizer(text)["input_ids"] for text in (f"{prompt}\n", f"{answer}</s>"))
        tokens = torch.tensor([*asked, *told])[:LENGTH]
        every = log_softmax(model(input_ids=tokens[None]).logits[0], -1)
        return torch.stack([every[at - 1, tokens[at]] for at in range(len(asked), len(tokens))])

    def ratios(self, model: Any, reference: Any, row: Row, which: str) -> torch.Tensor:
        """Return the log-ratios of an answer's tokens."""
        with torch.no_grad():
            before = self.log_probs(reference, row["prompt"], row[which])
        return self.log_probs(model, row["prompt"], row[which]) - before


def losses_by_hand(path: Path, loss: Loss) -> list[float]:
    """Train in float64 and return the loss of each step; the reference is a copy of the model at the start."""
    model = load_plainly(path).double()
    reference, losses = copy.deepcopy(model), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(STEPS):
        value = loss(model, reference, [ROWS[at] for at in examples_of_step(step, BATCH, len(ROWS), 0)])
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(value.item())
    return losses


def losses_of(path: Path, rows: Sequence[Row], *before: Any, **fields: Any) -> list[float]:
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    usual = {"data": "rows.jsonl", "steps": STEPS, "batch_size": BATCH, "max_length": LENGTH, "learning_rate": 1e-3}
    step = training(scheduler="constant", warmup_ratio=0.0, gradient_accumulation_steps=2, **{**usual, **fields})
    result = perform("learn", learn_args(path, *before, step, device="cpu"), keep_silent, never)
    report = list(result["reports"].values())[-1]
    return list(report["losses"])


@pytest.mark.parametrize("settings", [{}, {"keep_rejected": 1.0}])
def test_a_preference_course_is_that_of_the_formula(settings: dict[str, float], tmp_path: Path) -> None:
    """Answers of all lengths, some of them cut, in batches of two parts; a selection of all tokens is none.

    A smaller one cannot be compared: at the first step all log-ratios are 0, and rounding decides which are lowest.
    """
    path = pupil(tmp_path)
    talk = Talk(path)

    def loss(model: Any, reference: Any, rows: Sequence[Row]) -> torch.Tensor:
        total = torch.tensor(0.0, dtype=torch.float64)
        for row in rows:
            chosen = talk.ratios(model, reference, row, "chosen")
            rejected = talk.ratios(model, reference, row, "rejected")
            total = total - logsigmoid(0.5 * (chosen.sum() - rejected.sum()))
        return total / len(rows)

    found = losses_of(path, ROWS, objective={"dpo": {"beta": 0.5, **settings}})
    assert found[0] == pytest.approx(math.log(2))
    assert found == pytest.approx(losses_by_hand(path, loss), abs=1e-4)
    assert found[-1] < 0.98 * found[0]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "falcon"])
@pytest.mark.parametrize("objective", ["dpo", "npo"])
def test_a_model_that_has_not_moved_is_its_reference(family: str, objective: str, tmp_path: Path) -> None:
    """Whatever dropout its config asks for, in modules or in functions: it would stand in for what training did."""
    path = tmp_path / "model"
    rates = ("dropout", "attention_dropout", "hidden_dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop", "layerdrop")
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}
    config = AutoConfig.for_model(family, **sizes, word_embed_proj_dim=32, **dict.fromkeys(rates, 0.3))
    AutoModelForCausalLM.from_config(config).save_pretrained(path)  # type: ignore[no-untyped-call]
    write_tokenizer(path)
    found = losses_of(path, ROWS, objective=objective, learning_rate=1e-12)
    assert found == pytest.approx([math.log(2)] * STEPS, abs=1e-5)


def test_the_rates_of_dropout_come_back() -> None:
    """Also after an error."""
    model: Any = make_tiny("gpt2", resid_pdrop=0.25)
    with pytest.raises(KeyError), without_dropout(model):
        assert model.transformer.h[0].mlp.dropout.p == 0
        assert model.config.resid_pdrop == 0
        raise KeyError
    assert model.transformer.h[0].mlp.dropout.p == model.config.resid_pdrop == 0.25


def test_a_forgetting_course_is_that_of_the_formula(tmp_path: Path) -> None:
    """Tokens below the threshold alone, as a mean over those of the whole batch, not of its parts or rows."""
    path = pupil(tmp_path)
    talk = Talk(path)
    rewarded = [{**row, "reward": [(at % 5) / 4 for at in range(len(row["rejected"]) + 1)]} for row in ROWS]
    rewards = {row["prompt"]: torch.tensor(row["reward"]) for row in rewarded}

    def loss(model: Any, reference: Any, rows: Sequence[Row]) -> torch.Tensor:
        losses = []
        for row in rows:
            ratios = talk.ratios(model, reference, row, "rejected")
            losses.append(-logsigmoid(-0.5 * ratios[rewards[row["prompt"]][: len(ratios)] < 0.5]))
        return torch.cat(losses).mean()

    found = losses_of(path, rewarded, objective={"npo": {"beta": 0.5}})
    assert found[0] == pytest.approx(math.log(2))
    assert found == pytest.approx(losses_by_hand(path, loss), abs=1e-4)
    assert found[-1] < 0.98 * found[0]


def test_held_out_rows_without_the_rewards_of_the_others_are_refused(tmp_path: Path) -> None:
    """Every token of theirs would be forgotten, and the held-out figures be of something else."""
    path = pupil(tmp_path)
    (tmp_path / "held.jsonl").write_text(json.dumps(ROWS[0]))
    rewarded = [{**row, "reward": [0.1] * (len(row["rejected"]) + 1)} for row in ROWS]
    with pytest.raises(DataError, match="in the other none"):
        losses_of(path, rewarded, objective="npo", held_out="held.jsonl")


def test_a_pruned_model_is_taught_by_the_model_it_was(tmp_path: Path) -> None:
    """The teacher has all layers; and without pruning there is nothing to learn, so it is another model in memory."""
    path = pupil(tmp_path)
    tokens = [
        token for row in ROWS for token in AutoTokenizer.from_pretrained(path)(f"{row['chosen']}</s>")["input_ids"]
    ]
    cuts = torch.tensor(tokens[: len(tokens) // LENGTH * LENGTH]).view(-1, LENGTH)
    model = load_plainly(path).double()
    with torch.no_grad():
        teacher = log_softmax(model(input_ids=cuts).logits[:, :-1] / 2, -1)
        del model.model.layers[1]
        small = log_softmax(model(input_ids=cuts).logits[:, :-1] / 2, -1)
    divergences = 4 * (teacher.exp() * (teacher - small)).sum(-1).mean(1)
    expected = divergences[examples_of_step(0, BATCH, len(cuts), 0)].mean().item()
    texts = [{"text": row["chosen"]} for row in ROWS]
    objective = {"distill": {"temperature": 2.0}}
    found = losses_of(path, texts, {"prune": {"layers": [1]}}, objective=objective)
    assert found[0] == pytest.approx(expected, rel=1e-4)
    assert found[-1] < found[0]
    assert losses_of(path, texts, objective=objective, steps=1) == pytest.approx([0], abs=1e-6)
