"""Trained adapters added to the weights: the same function as with the adapters on, in a plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from surgeon.backend.model.adapters import without_deprecations
from surgeon.core.plan.learned_results import adapter_tensors, result_directory
from surgeon.errors import RecipeError
from tests.backend.tiny_models import load_plainly, save_tiny, some_tokens, write_tokenizer
from tests.export.replaying import digests, run

_TRAIN: dict[str, Any] = {
    "train": {"objective": "lm", "data": "t.jsonl", "steps": 3, "batch_size": 1, "max_length": 32,
              "learning_rate": 0.05, "scheduler": "constant"}
}  # fmt: skip
_LORA: dict[str, Any] = {"masked_lora": {"layers": "1-2", "rank": 4, "alpha": 6.0, "gate": 0.7}}
_MERGE: dict[str, Any] = {"merge_adapters": {}}


def _base(family: str, directory: Path, dtype: torch.dtype) -> Path:
    place = save_tiny(family, directory / "base", dtype)
    write_tokenizer(place)
    (directory / "t.jsonl").write_text('{"text": "It was a bright cold day in April."}\n' * 3)
    return place


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gpt_neox", "qwen2"])
def test_a_merged_model_is_the_model_with_its_adapter(family: str, tmp_path: Path) -> None:
    """By plain PEFT on the adapter's own export, after an operation that moves layers; verified bit for bit."""
    base = _base(family, tmp_path, torch.float32)
    steps: list[Any] = [{"prune": {"layers": [0]}}, _LORA, _TRAIN]
    run(base, tmp_path / "apart", *steps, root=str(tmp_path))
    proof = run(base, tmp_path / "merged", *steps, _MERGE, root=str(tmp_path), verify=True)["proof"]

    merged, plain = load_plainly(tmp_path / "merged"), load_plainly(tmp_path / "apart")
    without = plain(some_tokens()).logits
    with without_deprecations():
        adapted: Any = PeftModel.from_pretrained(plain, str(tmp_path / "apart" / "adapter"))
    expected = adapted(some_tokens()).logits
    assert (expected - without).abs().max() > 0.01
    assert torch.allclose(merged(some_tokens()).logits, expected, atol=2e-5)
    assert not (tmp_path / "merged" / "adapter").exists()
    assert "bit for bit" in proof["logits"]["detail"]


def test_the_sum_is_rounded_once(tmp_path: Path) -> None:
    """Every merged matrix against float64 from the trained values; every other tensor is the base's."""
    base = _base("llama", tmp_path, torch.bfloat16)
    result = run(base, tmp_path / "out", _LORA, _TRAIN, _MERGE, root=str(tmp_path), verify=True)
    before, after = (load_file(place / "model.safetensors") for place in (base, tmp_path / "out"))
    learned = load_file(
        result_directory(result["recipe"]["steps"][1]["resolved"]["learned"][0]) / "learned.safetensors"
    )

    stack = next(iter(learned)).partition("/")[0]
    merged = 0
    for name, weight in after.items():
        position, _, suffix = name.partition("layers.")[2].removesuffix(".weight").partition(".")
        values = [learned.get(one) for one in adapter_tensors(f"{stack}/{position}/{suffix}")]
        if values[0] is None or values[1] is None or values[2] is None:
            assert torch.equal(weight, before[name])
            continue
        a, b, gate = (one.double() for one in values if one is not None)
        exact = before[name].double() + torch.sigmoid(gate) * 1.5 * (b @ a)
        assert (weight.double() - exact).abs().le(exact.abs() * 2**-8 * 1.001 + 1e-12).all()
        assert not torch.equal(weight, before[name])
        merged += 1
    assert merged == 14


@pytest.mark.parametrize(("learning_rate", "said"), [(1e-4, True), (0.05, False)])
def test_it_is_told_where_most_of_an_update_is_lost_to_rounding(
    learning_rate: float, said: bool, tmp_path: Path
) -> None:
    """A few small steps are below half a unit of bfloat16; the share that is told is the share in the files."""
    base = _base("llama", tmp_path, torch.bfloat16)
    train = {"train": {**_TRAIN["train"], "learning_rate": learning_rate}}
    warned = []
    for name in ("first", "again"):
        heard: list[str] = []
        run(
            base, tmp_path / name, _LORA, train, _MERGE, root=str(tmp_path),
            emit=lambda _kind, body, told=heard: told.append(str(body.get("text", ""))),  # type: ignore[misc]
        )  # fmt: skip
        warned.append([text for text in heard if text.startswith("merge_adapters: ") and "fell back" in text])
    before, after = (load_file(place / "model.safetensors") for place in (base, tmp_path / "first"))
    touched = [name for name in before if "layers.1." in name or "layers.2." in name if "proj" in name]
    count = sum(before[name].numel() for name in touched)
    lost = 1 - sum(int((after[name] != before[name]).sum()) for name in touched) / count
    assert (lost > 0.5) == said
    assert warned == ([[f"merge_adapters: {lost:.0%} of the {count:,} weights that moved fell back when they were "
                        "rounded to bfloat16: take a larger learning_rate, more steps, or a base in float32"]] * 2
                      if said else [[], []])  # fmt: skip


def test_a_replay_merges_nothing_again_and_writes_the_same_bytes(tmp_path: Path) -> None:
    """The result is kept by what made it."""
    base = _base("llama", tmp_path, torch.bfloat16)
    first = run(base, tmp_path / "a", _LORA, _TRAIN, _MERGE, root=str(tmp_path))
    kept = sorted((place.name, place.stat().st_mtime_ns) for place in result_directory("x").parent.iterdir())
    run(base, tmp_path / "b", *first["recipe"]["steps"], root=str(tmp_path))
    assert sorted((place.name, place.stat().st_mtime_ns) for place in result_directory("x").parent.iterdir()) == kept
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize(("steps", "said"), [([], "there are no adapters"), ([_LORA], "no adapter was trained")])
def test_what_was_not_trained_is_not_merged(steps: list[Any], said: str, tmp_path: Path) -> None:
    """It would change nothing, and say otherwise."""
    base = _base("llama", tmp_path, torch.float32)
    with pytest.raises(RecipeError, match=said):
        run(base, tmp_path / "out", *steps, _MERGE, root=str(tmp_path))


def test_training_goes_on_from_the_merged_weights(tmp_path: Path) -> None:
    """LoRA healing, then a few whole layers: the second training starts where the first one ended."""
    base = _base("llama", tmp_path, torch.float32)
    steps: list[Any] = [_LORA, _TRAIN, _MERGE]
    run(base, tmp_path / "merged", *steps, root=str(tmp_path))
    freeze = {"freeze": {"except": "last 1"}}
    result = run(base, tmp_path / "out", *steps, freeze, _TRAIN, root=str(tmp_path), verify=True)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "out"))
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    assert all(name.startswith("model.layers.5.") for name in moved)
    assert result["proof"]["logits"]["passed"]
