"""Blockwise healing: what each layer learns, that it comes nearer to the base, and that nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgeon.architectures.structure_reader import read_structure
from surgeon.backend import blockwise_healing
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.layer_moves import blocks_of
from surgeon.core.plan.learned_results import result_report
from surgeon.core.recipe.apply_steps import apply_step
from surgeon.core.recipe.recipe import step_of
from surgeon.errors import RecipeError
from surgeon.objectives.blockwise import Blockwise
from tests.backend.tiny_models import LAYERS, load_plainly, save_tiny, some_tokens, write_tokenizer
from tests.export.replaying import run

PRUNE: Any = {"prune": {"layers": [2, 3]}}
HEAL: Any = {
    "train": {"objective": "blockwise", "data": "text.txt", "steps": 8, "batch_size": 2, "max_length": 24,
              "learning_rate": 0.003}
}  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = save_tiny(request.param, tmp_path_factory.mktemp("blockwise") / "base")
    write_tokenizer(model)
    (model.parent / "text.txt").write_text("a quick brown fox and its lazy dog, " * 40)
    return model


def draft_at(base: Path, *steps: Any) -> Draft:
    draft = draft_of(read_structure(open_checkpoint(base)))
    for number, step in enumerate(steps):
        ((name, fields),) = step.items()
        draft = apply_step(draft, step_of(name, fields, "here"), number)
    return draft


def healed(base: Path, out: Path, *steps: Any) -> dict[str, Any]:
    return run(base, out, *steps, device="cpu", root=str(base.parent), sequences=4, length=64)


def report_of(found: dict[str, Any]) -> Any:
    return result_report(found["recipe"]["steps"][-1]["resolved"]["learned"][0])


def hidden_of(directory: Path, tokens_BT: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What enters each layer, and what the last one puts out, before the final norm."""
    model = load_plainly(directory).float()
    layers = model.get_submodule("transformer.h" if hasattr(model, "transformer") else "model.layers")
    seen: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    with torch.no_grad():
        model(tokens_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    return tuple(seen)


def test_the_layer_in_front_of_removed_ones_comes_nearer_to_what_they_put_out(base: Path, tmp_path: Path) -> None:
    """Measured without surgeon: hidden states of plainly loaded models, on tokens that were not trained on."""
    healed(base, tmp_path / "pruned", PRUNE)
    found = healed(base, tmp_path / "healed", PRUNE, HEAL)
    report = report_of(found)
    assert list(report["layers"]) == ["1"]
    assert report["layers"]["1"]["after"] < 0.9 * report["layers"]["1"]["before"]
    assert len(report["losses"]) == 8
    tokens_BT = some_tokens()
    target = hidden_of(base, tokens_BT)[3]
    distances = {
        name: Blockwise().distance(hidden_of(tmp_path / name, tokens_BT)[1], target).item()
        for name in ("pruned", "healed")
    }
    assert distances["healed"] < distances["pruned"]


def test_nothing_else_moves_and_a_replay_finds_the_same(base: Path, tmp_path: Path) -> None:
    healed(base, tmp_path / "pruned", PRUNE)
    found = healed(base, tmp_path / "healed", PRUNE, HEAL)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("pruned", "healed"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".1." in name for name in moved)
    again = healed(base, tmp_path / "again", *found["recipe"]["steps"])
    assert again["recipe"]["steps"][-1]["resolved"] == found["recipe"]["steps"][-1]["resolved"]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "healed" / "model.safetensors"
    ).read_bytes()


def test_a_gradient_step_is_that_of_plain_torch(base: Path, tmp_path: Path) -> None:
    """One step of plain AdamW on the layer alone, its input and target from the base's own hidden states."""
    constant = {**HEAL["train"], "steps": 1, "scheduler": "constant", "warmup_ratio": 0, "batch_size": 1}
    found = healed(base, tmp_path / "one", PRUNE, {"train": constant})
    assert report_of(found)["layers"]["1"]["before"] == pytest.approx(report_of(found)["losses"][0], rel=1e-5)
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "one" / "model.safetensors")
    steps = [(after[name] - before[name]).abs().max().item() for name in after if ".1." in name]
    assert max(steps) == pytest.approx(0.003, rel=0.05)  # Adam's first step is the learning rate


def test_layers_on_disk_give_the_same(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = report_of(healed(base, tmp_path / "whole", PRUNE, HEAL))
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(blockwise_healing, "fits_in_memory", lambda *_: False)
    streamed = report_of(healed(base, tmp_path / "streamed", PRUNE, HEAL))
    assert streamed["losses"] == pytest.approx(whole["losses"], rel=1e-5)


def test_layers_that_were_cut_come_nearer_to_what_they_put_out_before(base: Path, tmp_path: Path) -> None:
    if '"gpt2"' in (base / "config.json").read_text():
        pytest.skip("its config does not say how many neurons there are")
    parts = {"neurons": "lowest 50% by neuron_activation", "heads": "lowest 1 by head_activation", "multiple": 1}
    healed(base, tmp_path / "narrow", {"narrow": parts})
    found = healed(base, tmp_path / "healed", {"narrow": parts}, HEAL)
    layers = report_of(found)["layers"]
    assert len(layers) == LAYERS
    assert all(one["after"] < one["before"] for one in layers.values())
    target = hidden_of(base, some_tokens())[0]
    distances = {
        name: Blockwise().distance(hidden_of(tmp_path / name, some_tokens())[0], target).item()
        for name in ("narrow", "healed")
    }
    assert distances["healed"] < distances["narrow"]


def test_a_base_that_is_held_quantised_is_refused(base: Path) -> None:
    draft = draft_of(read_structure(open_checkpoint(base, load_in="nf4")))
    draft = apply_step(draft, step_of("prune", PRUNE["prune"], "here"), 0)
    with pytest.raises(RecipeError, match="held in nf4 cannot be trained"):
        apply_step(draft, step_of("train", HEAL["train"], "here"), 1)


def test_blocks_stand_for_the_layers_that_went(base: Path) -> None:
    blocks = blocks_of(draft_at(base, {"prune": {"layers": [0, 3, 4]}}))
    assert [(block.base, block.changed) for block in blocks] == [
        ((0, 1), True), ((2, 3, 4), True), ((5,), False),
    ]  # fmt: skip
    inserted = blocks_of(draft_at(base, {"expand": {"after": [1], "init": "copy"}}))
    assert [block.base for block in inserted] == [(0,), (1,), (), (2,), (3,), (4,), (5,)]
    assert not any(block.changed for block in inserted)
    folded = blocks_of(draft_at(base, {"prune": {"layers": [5], "fold": True}}))
    assert [block.changed for block in folded] == [False] * 4 + [True]
    assert sum(len(block.base) for block in folded) == LAYERS


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([HEAL], "no layer was changed"),
        ([PRUNE, {"freeze": {"layers": "all"}}, HEAL], "every changed layer is frozen"),
        ([{"reorder": {"order": [1, 0, 2, 3, 4, 5]}}, HEAL], "not in the base's order"),
        ([PRUNE, {"train": {**HEAL["train"], "held_out": "5%"}}], "does not go with blockwise"),
        ([PRUNE, {"masked_lora": {"layers": "all", "rank": 2}}, HEAL], "adapters are attached"),
    ],
)  # fmt: skip
def test_what_cannot_be_healed_is_refused_before_anything_is_loaded(base: Path, steps: list[Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        draft_at(base, *steps)
