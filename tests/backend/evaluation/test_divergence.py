"""KL divergence of the base from an edited model: against two separate models in float64, and where it must be 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgeon.backend.evaluation.items import read_items
from surgeon.backend.model.adapters import without_deprecations
from surgeon.core.recipe.evaluation_metrics import Measure
from surgeon.errors import GateError
from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.export.replaying import run

PRUNE = {"prune": {"layers": [2]}}
ADAPTERS = {"masked_lora": {"layers": "all", "rank": 4}}
TRAIN = {"train": {"objective": "lm", "data": "text.jsonl", "steps": 3, "max_length": 24, "learning_rate": 0.05}}


@pytest.fixture(params=["llama", "gpt2", "mixtral"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = save_tiny(request.param, tmp_path / "model")
    write_tokenizer(model)
    rows = [
        {"text": f"row {number}: " + "a quick brown fox and its lazy dog " * (1 + number % 3)} for number in range(8)
    ]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model


def kl(**more: Any) -> dict[str, dict[str, Any]]:
    return {"evaluate": {"metric": "kl", "data": "text.jsonl", "max_length": 16, **more}}


def figures(base: Path, *steps: Any, out: str = "out") -> list[dict[str, Any]]:
    """Run a recipe; return the figures of its evaluations."""
    root = base.parent
    return [one["figures"] for one in run(base, root / out, *steps, root=str(root), device="cpu")["evaluations"]]


def load(directory: Path) -> torch.nn.Module:
    """Load a checkpoint with plain transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    loaded: torch.nn.Module = model.eval()
    return loaded


def by_two_models(base: torch.nn.Module, edited: torch.nn.Module, directory: Path) -> tuple[float, float]:
    """KL and agreement of two models that share nothing, window by window, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    measure = Measure(kind="divergence", data="text.jsonl", max_length=16)
    items = read_items(measure, "text.jsonl", directory.parent, tokenizer)
    total, same, count = 0.0, 0, 0
    for (window,) in items.examples:
        ids = torch.tensor([window.tokens])
        with torch.no_grad():
            p, q = (model(ids).logits[0].double().log_softmax(-1) for model in (base, edited))
        for at, label in enumerate(window.labels):
            if label >= 0:
                total += (p[at].exp() * (p[at] - q[at])).sum().item()
                same += int(p[at].argmax() == q[at].argmax())
                count += 1
    return total / count, same / count


def test_it_is_what_two_separate_models_give_in_float64(base: Path) -> None:
    (found,) = figures(base, PRUNE, kl())
    expected, same = by_two_models(load(base), load(base.parent / "out"), base)
    assert found["kl"]["value"] == pytest.approx(expected, rel=1e-4)
    assert found["kl"]["value"] > 0
    assert found["kl"]["error"] > 0
    assert found["top1_agreement"]["value"] == pytest.approx(same)


def test_adapters_count_and_the_base_is_without_them(base: Path) -> None:
    if json.loads((base / "config.json").read_text())["model_type"] == "mixtral":
        pytest.skip("the experts carry no adapters; the other families show it")
    (found,) = figures(base, ADAPTERS, TRAIN, kl())
    with without_deprecations():
        adapted: Any = PeftModel.from_pretrained(load(base), str(base.parent / "out"))
    expected, _ = by_two_models(load(base), adapted.eval(), base)
    assert found["kl"]["value"] == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-4


def test_nothing_but_identities_diverges_by_nothing(base: Path) -> None:
    """To the last bit: the same weights in the same order."""
    before, after = figures(base, kl(), {"expand": {"after": "0,1"}}, kl())
    for found in (before, after):
        assert found["kl"]["value"] == 0.0
        assert found["top1_agreement"]["value"] == 1.0


def test_the_base_is_whole_again_after_each_comparison(base: Path) -> None:
    """What is measured afterwards on the edited model, and on the base, is what is measured without a comparison."""
    perplexity = {"evaluate": {"metric": "perplexity", "data": "text.jsonl", "max_length": 16}}
    alone = figures(base, perplexity, PRUNE, perplexity, out="alone")
    mixed = figures(base, kl(), perplexity, PRUNE, kl(), perplexity, kl(rows=4), out="mixed")
    assert [mixed[1], mixed[3]] == alone


def test_a_gate_on_it_stops_the_run(base: Path) -> None:
    gate = {"require": {"kl": {"data": "text.jsonl", "max_length": 16, "at_most": 1e-9}}}
    with pytest.raises(GateError, match="kl is"):
        figures(base, PRUNE, gate)
    assert not (base.parent / "out").exists()
    assert figures(base, {"require": {"kl": {**gate["require"]["kl"], "at_most": 1e9}}}, PRUNE)[0]["kl"]["value"] == 0
