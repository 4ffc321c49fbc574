"""Runs of layers that are there again behind themselves: the order, the keys, and what the two executors make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.apply_steps import apply_step
from surgeon.core.recipe.recipe import step_of
from surgeon.errors import RecipeError, SelectionError
from tests.backend.tiny_models import LAYERS, load_plainly, reference_logits, save_tiny, some_tokens, write_tokenizer
from tests.export.replaying import run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = save_tiny("llama", tmp_path_factory.mktemp("duplicate") / "base")
    write_tokenizer(model)
    return model


@pytest.fixture(scope="module")
def draft(base: Path) -> Draft:
    from surgeon.architectures.structure_reader import read_structure
    from surgeon.core.checkpoint.checkpoint import open_checkpoint
    from surgeon.core.plan.draft import draft_of

    return draft_of(read_structure(open_checkpoint(base)))


def keys_after(draft: Draft, **fields: Any) -> list[str]:
    return [layer.key for layer in apply_step(draft, step_of("duplicate", fields, "here"), 0).layers()]


def test_each_run_is_there_again_behind_its_last_layer(draft: Draft) -> None:
    assert keys_after(draft, layers="1-2,4") == ["0", "1", "2", "1+1", "2+1", "3", "4", "4+1", "5"]
    assert keys_after(draft, layers="5", times=3) == ["0", "1", "2", "3", "4", "5", "5+1", "5+2", "5+3"]


def test_it_computes_what_the_layers_in_that_order_compute(base: Path, tmp_path: Path) -> None:
    run(base, tmp_path / "out", {"duplicate": {"layers": "1-3"}}, device="cpu", verify=True)
    tokens_BT = some_tokens()
    found = load_plainly(tmp_path / "out")
    assert len(found.model.layers) == LAYERS + 3
    expected = reference_logits(load_plainly(base), "llama", [0, 1, 2, 3, 1, 2, 3, 4, 5], tokens_BT)
    with torch.no_grad():
        assert torch.equal(found(tokens_BT).logits, expected)


def test_the_best_run_of_a_score_is_what_is_repeated(base: Path, tmp_path: Path) -> None:
    """Its loss is what the score said of it."""
    selection = {"run": "lowest", "by": "block_repeat", "protect": ["first"]}
    found = run(base, tmp_path / "out", {"duplicate": {"layers": selection}}, device="cpu", sequences=2, length=24)
    chosen = found["recipe"]["steps"][0]["resolved"]["layers"]
    assert chosen == list(range(chosen[0], chosen[-1] + 1))
    assert 0 not in chosen
    again = {"duplicate": {"layers": selection}, "resolved": {"layers": chosen}}
    once_more = run(base, tmp_path / "again", again, device="cpu", sequences=2, length=24)
    assert once_more["parameters"] == found["parameters"]


def test_what_cannot_be_repeated_is_refused(base: Path, draft: Draft, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="has no values for runs"):
        run(base, tmp_path / "out", {"duplicate": {"layers": "run lowest by weight_norm"}}, device="cpu")
    with pytest.raises(RecipeError, match="chooses no layer"):
        keys_after(draft, layers="inserted")
