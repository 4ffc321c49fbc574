"""A config that says the layer count twice, on the model that transformers builds from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from surgeon.errors import ArchitectureError, VerifyError
from tests.export.replaying import run
from tests.jobs import keep_silent, never, perform

_TEXT: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "layer_types": ["full_attention"] * 6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
}  # fmt: skip
_VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32, "patch_size": 14,
    "fullatt_block_indexes": [1],
}  # fmt: skip


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    special: dict[str, Any] = {
        name: 90 + at for at, name in enumerate(("image_token_id", "video_token_id", "vision_start_token_id"))
    }
    config = Qwen2_5_VLConfig(text_config=_TEXT, vision_config=_VISION, vision_end_token_id=95, **special)
    directory = tmp_path_factory.mktemp("two") / "nested"
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(directory)
    return directory


def _config(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


def _repeating(nested: Path, directory: Path, **changes: Any) -> Path:
    """Copy a model whose top repeats what its text_config says."""
    shutil.copytree(nested, directory)
    config = _config(nested)
    repeated = {key: config["text_config"][key] for key in ("num_hidden_layers", "layer_types", "hidden_size")}
    (directory / "config.json").write_text(json.dumps({**config, **repeated, **changes}))
    return directory


def test_both_places_say_what_is_left_and_the_proof_passes(nested: Path, tmp_path: Path) -> None:
    both = _repeating(nested, tmp_path / "both")
    steps = ({"prune": {"layers": [1, 2]}}, {"expand": {"after": [0], "init": "copy"}})
    proof = run(both, tmp_path / "out", *steps, verify=True)["proof"]

    config = _config(tmp_path / "out")
    assert (config["num_hidden_layers"], config["text_config"]["num_hidden_layers"]) == (5, 5)
    assert config["layer_types"] == config["text_config"]["layer_types"] == ["full_attention"] * 5
    assert config["vision_config"]["depth"] == 2
    assert proof["logits"]["passed"]
    assert proof["identities"]["passed"]
    assert proof["other inputs"] == {"passed": None, "detail": "only text was given: vision_config took no part"}


def test_one_place_stays_one_place(nested: Path, tmp_path: Path) -> None:
    proof = run(nested, tmp_path / "out", {"prune": {"layers": [1, 2]}}, verify=True)["proof"]

    assert "num_hidden_layers" not in _config(tmp_path / "out")
    assert _config(tmp_path / "out")["text_config"]["num_hidden_layers"] == 4
    assert proof["logits"]["passed"]


def test_a_count_at_the_top_that_differs_is_refused_by_both_names(nested: Path, tmp_path: Path) -> None:
    """With and without a proof, before anything is written."""
    both = _repeating(nested, tmp_path / "both", num_hidden_layers=7)

    with pytest.raises(ArchitectureError) as caught:
        run(both, tmp_path / "out", {"prune": {"layers": [1, 2]}})
    assert caught.value.where == "config fields text_config.num_hidden_layers and num_hidden_layers"
    assert not (tmp_path / "out").exists()


def test_verify_finds_counts_that_differ(nested: Path, tmp_path: Path) -> None:
    """Transformers reads the one and leaves the other; another program may not."""
    run(_repeating(nested, tmp_path / "both"), tmp_path / "out", {"prune": {"layers": [1, 2]}})
    config = _config(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))

    with pytest.raises(VerifyError, match=r"layer names: config\.json: text_config\.num_hidden_layers and num_hidden"):
        perform("verify", {"directory": str(tmp_path / "out")}, keep_silent, never)
