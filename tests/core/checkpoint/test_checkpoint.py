"""What a directory may be, and every way in which it may be broken or hostile."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from surgeon.core.checkpoint.checkpoint import INDEX, open_checkpoint
from surgeon.errors import CheckpointError
from tests.core.refusals import refusal
from tests.export.handmade_shards import (
    llama_tensors,
    write_config,
    write_index,
    write_llama,
    write_shard,
)


def test_a_checkpoint_is_known_from_its_headers(tmp_path: Path) -> None:
    """Names, shapes, dtypes and byte ranges are those that were written."""
    base = write_llama(tmp_path / "base", layers=3, shards=2)
    checkpoint = open_checkpoint(base)
    written = llama_tensors(3)
    assert set(checkpoint.tensors) == set(written)
    for name, tensor in checkpoint.tensors.items():
        assert (tensor.dtype, tensor.shape) == (written[name].dtype, written[name].shape)
        assert tensor.shard.read_bytes()[tensor.start : tensor.end] == written[name].data
    assert checkpoint.nbytes == sum(len(one.data) for one in written.values())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """The index says which file is missing."""
    base = write_llama(tmp_path / "base", shards=3)
    (base / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in refusal(base).what


def test_a_lone_shard_without_its_index_is_no_whole_model(tmp_path: Path) -> None:
    """One file called 1 of 2 is not opened as if it were everything."""
    base = write_llama(tmp_path / "base", shards=2)
    (base / INDEX).unlink()
    assert "index" in refusal(base).hint
    (base / "model-00002-of-00002.safetensors").unlink()
    assert "index" in refusal(base).hint


@pytest.mark.parametrize(
    "name",
    [
        "/etc/model.safetensors",
        "../model.safetensors",
        "a/../../model.safetensors",
        "..\\model.safetensors",
        "model.bin",
    ],
)
def test_an_index_that_points_outside_is_refused(name: str, tmp_path: Path) -> None:
    """Even if the file it names is there and sound."""
    base = write_llama(tmp_path / "base")
    (base / "model.safetensors").rename(tmp_path / "model.safetensors")
    write_index(base, {"lm_head.weight": name})
    error = refusal(base)
    assert repr(name) in error.what
    assert "without '..'" in error.allowed


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b'{"metadata": {}}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": []}',
        b"\xff",
        b'{"weight_map": {"a": "x", "a": "y"}}',
    ],
)
def test_an_index_that_cannot_be_read_is_refused(raw: bytes, tmp_path: Path) -> None:
    """With its name, and what it should look like."""
    base = write_llama(tmp_path / "base", shards=2)
    (base / INDEX).write_bytes(raw)
    assert "weight_map" in refusal(base).what


def test_an_index_that_promises_more_than_the_shards_hold_is_refused(tmp_path: Path) -> None:
    """An index and shards of two different downloads."""
    base = write_llama(tmp_path / "base", shards=2)
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    (base / INDEX).write_text(json.dumps(index))
    assert "'model.extra.weight'" in refusal(base).what


def test_an_index_that_swaps_shards_is_refused(tmp_path: Path) -> None:
    """A tensor that lies elsewhere than the index says."""
    base = write_llama(tmp_path / "base", shards=2)
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "model-00001-of-00002.safetensors"
    (base / INDEX).write_text(json.dumps(index))
    assert "'lm_head.weight'" in refusal(base).what


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"llama"', b"\xff\xfe", b'{"a":' * 100_000])
def test_a_config_that_is_no_object_is_refused(raw: bytes, tmp_path: Path) -> None:
    """Empty, broken, of another type, or nested without end."""
    base = write_llama(tmp_path / "base")
    (base / "config.json").write_bytes(raw)
    assert "config.json" in refusal(base).where


def test_a_config_may_hold_infinity_as_transformers_writes_it(tmp_path: Path) -> None:
    """It is no JSON by the letter, but Python and transformers read and write it."""
    base = write_llama(tmp_path / "base")
    write_config(base, 4, time_step_limit=[0.0, float("inf")])
    assert open_checkpoint(base).config["time_step_limit"] == [0.0, float("inf")]


def test_directories_that_are_no_checkpoint_are_told_apart(tmp_path: Path) -> None:
    """Missing, a file, empty, an adapter, config alone, or an adapter beside weights."""
    assert "no such directory" in refusal(tmp_path / "none").what
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in refusal(empty).what
    (empty / "adapter_config.json").write_text("{}")
    assert "PEFT adapter" in refusal(empty).hint
    alone = tmp_path / "alone"
    alone.mkdir()
    write_config(alone, 4)
    assert "no safetensors" in refusal(alone).what
    both = write_llama(tmp_path / "both")
    (both / "adapter_config.json").write_text("{}")
    assert "on top" in refusal(both).what


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    """A sound header that describes nothing."""
    write_config(tmp_path, 4)
    write_shard(tmp_path / "model.safetensors", {})
    assert "no tensors" in refusal(tmp_path).what


def test_a_cache_of_links_to_blobs_is_opened(tmp_path: Path) -> None:
    """The hub's cache holds snapshots/REV/FILE as links to ../../blobs/HASH."""
    base = write_llama(tmp_path / "plain", shards=2)
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "rev", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(base.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    checkpoint = open_checkpoint(snapshot)
    assert set(checkpoint.tensors) == set(llama_tensors(4))
    assert checkpoint.side_files == ("LICENSE", "generation_config.json")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_to_nothing_is_refused(name: str, tmp_path: Path) -> None:
    """As when the hub's cache was cleaned."""
    base = write_llama(tmp_path / "base")
    (base / name).unlink()
    (base / name).symlink_to(tmp_path / "gone")
    refusal(base)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_may_not_be_read_is_an_error_in_words(name: str, tmp_path: Path) -> None:
    """Not a traceback."""
    base = write_llama(tmp_path / "base")
    (base / name).chmod(0)
    assert "Permission" in refusal(base).what


def test_a_base_that_vanishes_before_its_fingerprint_is_an_error_in_words(tmp_path: Path) -> None:
    """The fingerprint reads the shards later than the headers."""
    base = write_llama(tmp_path / "base")
    checkpoint = open_checkpoint(base)
    (base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        _ = checkpoint.fingerprint


def test_the_fingerprint_knows_weights_and_config_but_not_the_shards(tmp_path: Path) -> None:
    """Shards are packaging; a weight or a layer setting is the model."""
    one = open_checkpoint(write_llama(tmp_path / "one")).fingerprint
    assert open_checkpoint(write_llama(tmp_path / "three", shards=3)).fingerprint == one
    other = write_llama(tmp_path / "other")
    raw = bytearray((other / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (other / "model.safetensors").write_bytes(raw)
    assert open_checkpoint(other).fingerprint != one
    write_config(third := write_llama(tmp_path / "third"), 4, rope_theta=5000.0)
    assert open_checkpoint(third).fingerprint != one
    write_config(third, 4, transformers_version="4.40.0", torch_dtype="float32")
    assert open_checkpoint(third).fingerprint == one


def test_side_files_travel_and_foreign_weights_do_not(tmp_path: Path) -> None:
    """Everything a tokenizer or processor may have saved; no other weights, no training state in pickles."""
    base = write_llama(tmp_path / "base")
    wanted = [
        "tokenizer.json", "tokenizer.model", "vocab.txt", "merges.txt", "tekken.json", "chat_template.jinja",
        "special_tokens_map.json", "preprocessor_config.json", "modeling_custom.py", "NOTICE", "USE_POLICY.md",
        "additional_chat_templates/tool_use.jinja",
    ]  # fmt: skip
    unwanted = [
        "pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin", "optimizer.pt", "model.gguf",
        "tf_model.h5", "flax_model.msgpack", "consolidated.safetensors", ".gitattributes", "checkpoint-500/config.json",
        "original/params.json",
    ]  # fmt: skip
    for name in (*wanted, *unwanted):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("x")
    assert open_checkpoint(base).side_files == tuple(sorted([*wanted, "LICENSE", "generation_config.json"]))


def test_pickles_are_refused_and_the_advice_converts_them(tmp_path: Path) -> None:
    """The command in the message, run as it stands, gives a checkpoint that opens."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.backend.tiny_models import save_tiny, write_tokenizer

    base = save_tiny("llama", tmp_path / "it's a base")
    write_tokenizer(base)
    state = AutoModelForCausalLM.from_pretrained(base).state_dict()
    torch.save(state, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    error = refusal(base)
    assert "run code" in error.what
    command = shlex.split(error.hint.removeprefix("if you trust them: "))
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    converted = open_checkpoint(Path(f"{base}-safetensors"))
    assert {name: tensor.shape for name, tensor in converted.tensors.items()} == {
        name: tuple(value.shape) for name, value in state.items()
    }
    assert "tokenizer.json" in converted.side_files
