"""What a proof of an export compares, and what it says that it did not prove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.backend.verification.check_helpers import TEXTS
from surgeon.core.job_results import not_proved
from surgeon.errors import CheckpointError, SurgeonError, VerifyError
from tests.backend.training_recipes import pupil, recipe
from tests.jobs import perform

PRUNE = {"prune": {"layers": "1"}}


def _exported(base: Path, out: Path) -> dict[str, Any]:
    result = perform("run", {"recipe": recipe(base, [PRUNE]), "out": str(out), "root": str(base.parent)})
    proof: dict[str, Any] = result["proof"]
    return proof


def _verified(directory: Path) -> dict[str, Any]:
    proof: dict[str, Any] = perform("verify", {"directory": str(directory)})["proof"]
    return proof


def test_text_goes_through_both_tokenizers(tmp_path: Path) -> None:
    """Each model computes with what its own tokenizer makes of the same text."""
    proof = _exported(pupil(tmp_path), tmp_path / "out")
    assert proof["text"]["passed"] is True
    assert "2 texts" in proof["text"]["detail"]
    assert not_proved(proof) == []
    assert _verified(tmp_path / "out") == proof


def test_another_tokenizer_is_found(tmp_path: Path) -> None:
    """Two words of its vocabulary changed places."""
    out = tmp_path / "out"
    _exported(pupil(tmp_path), out)
    plain = json.loads((out / "tokenizer.json").read_text())
    vocabulary = plain["model"]["vocab"]
    one, two = [word for word in vocabulary if word in TEXTS[0]][:2]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (out / "tokenizer.json").write_text(json.dumps(plain))
    with pytest.raises(VerifyError, match="tokenizer"):
        _verified(out)


def test_without_a_tokenizer_text_is_not_proved(tmp_path: Path) -> None:
    base = pupil(tmp_path)
    for file in base.glob("tokenizer*"):
        file.unlink()
    proof = _exported(base, tmp_path / "out")
    assert not_proved(proof) == ["tokenizer", "text"]
    assert proof["logits"]["passed"] is True


def test_without_its_base_an_export_says_that_nothing_was_compared(tmp_path: Path) -> None:
    base, out = pupil(tmp_path), tmp_path / "out"
    _exported(base, out)
    base.rename(tmp_path / "elsewhere")
    assert not_proved(_verified(out)) == ["base"]


def test_tensors_that_the_class_does_not_load_are_not_proved(tmp_path: Path) -> None:
    """They are carried as they are; nothing was computed with them."""
    base = pupil(tmp_path)
    tensors = load_file(base / "model.safetensors")
    save_file({**tensors, "mtp.fc.weight": torch.ones(3, 3)}, base / "model.safetensors", {"format": "pt"})
    proof = _exported(base, tmp_path / "out")
    assert not_proved(proof) == ["other tensors"]
    assert "mtp.fc.weight" in proof["other tensors"]["detail"]
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["mtp.fc.weight"], torch.ones(3, 3))


@pytest.mark.parametrize("with_base", [True, False])
def test_an_export_that_lost_a_tensor_is_refused_by_its_name(with_base: bool, tmp_path: Path) -> None:
    """Later than it was made: the base is in order, or is not at hand."""
    base, out = pupil(tmp_path), tmp_path / "out"
    _exported(base, out)
    tensors = load_file(out / "model.safetensors")
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    if not with_base:
        base.rename(tmp_path / "elsewhere")
    with pytest.raises(SurgeonError, match=r"model\.layers\.0\.mlp\.up_proj\.weight") as caught:
        _verified(out)
    assert isinstance(caught.value, VerifyError if with_base else CheckpointError)


@pytest.mark.parametrize("step", [PRUNE, {"masked_lora": {"layers": "all", "rank": 2}}, {"expand": {"after": "1"}}])
def test_nan_among_the_weights_is_the_bases_fault(step: dict[str, Any], tmp_path: Path) -> None:
    """It equals nothing, not even itself: the export is as planned, and nobody is asked to report it."""
    base = pupil(tmp_path)
    tensors = load_file(base / "model.safetensors")
    next(tensor for name, tensor in sorted(tensors.items()) if "layers.0.mlp" in name)[0, 0] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerifyError, match="gives nan") as told:
        perform("run", {"recipe": recipe(base, [step]), "out": str(tmp_path / "out"), "root": str(tmp_path)})
    assert "base's weights" in told.value.hint
    assert "report" not in str(told.value)
