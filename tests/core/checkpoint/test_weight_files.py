"""Which files of a directory are its weights: those that transformers takes, and no copy that it passes over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import INDEX, SINGLE, open_checkpoint
from surgeon.core.plan.draft import draft_of
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import step_of
from tests.core.refusals import refusal
from tests.export.handmade_shards import (
    Stored,
    llama_tensors,
    random_tensor,
    write_config,
    write_index,
    write_llama,
    write_shard,
    write_weights,
)

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TWICE = "model.layers.0.self_attn.o_proj.weight"


def _other(layers: int = 4) -> dict[str, Stored]:
    return {name: random_tensor(one.shape, one.dtype, f"other {name}") for name, one in llama_tensors(layers).items()}


def _bytes(path: Path) -> dict[str, bytes]:
    """Return what the tensors of an opened checkpoint are."""
    tensors = open_checkpoint(path).tensors
    return {name: one.shard.read_bytes()[one.start : one.end] for name, one in tensors.items()}


def _data(tensors: Mapping[str, Stored]) -> dict[str, bytes]:
    return {name: one.data for name, one in tensors.items()}


def _fingerprint(path: Path) -> str:
    return open_checkpoint(path).fingerprint


def test_a_single_file_is_read_beside_a_stale_index_with_a_note(tmp_path: Path) -> None:
    """The index names shards that are gone; transformers does not look at it."""
    base = write_llama(tmp_path / "base")
    write_index(base, dict.fromkeys(llama_tensors(4), ONE))
    opened = open_checkpoint(base)
    assert _bytes(base) == _data(llama_tensors(4))
    assert "stale" in opened.notes[0]
    assert "deleted" in opened.notes[0]
    assert opened.fingerprint == _fingerprint(write_llama(tmp_path / "plain"))


def test_of_two_layouts_side_by_side_everything_comes_from_the_single_file(tmp_path: Path) -> None:
    """As in transformers; the fingerprint too."""
    base = write_llama(tmp_path / "base")
    write_weights(base, _other(), shards=2)
    opened = open_checkpoint(base)
    assert _bytes(base) == _data(llama_tensors(4))
    assert opened.notes == (
        f"two layouts side by side: {SINGLE} is read, as transformers reads it, and not {INDEX} with {ONE}, {TWO}",
    )
    assert opened.fingerprint == _fingerprint(write_llama(tmp_path / "plain"))


def test_an_index_of_the_single_file_itself_is_nothing_to_speak_of(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    write_index(base, dict.fromkeys(llama_tensors(4), SINGLE))
    assert open_checkpoint(base).notes == ()


def test_a_broken_index_that_is_not_needed_does_not_stop_anyone(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    (base / INDEX).write_bytes(b"{")
    assert "can be deleted" in open_checkpoint(base).notes[0]


def test_an_index_of_other_shards_is_said_to_be_another_models(tmp_path: Path) -> None:
    """Downloading the files that it names again would not help: there are none."""
    base = write_llama(tmp_path / "base", shards=2)
    write_index(
        base, {name: f"model-0000{1 + at % 4}-of-00004.safetensors" for at, name in enumerate(llama_tensors(4))}
    )
    error = refusal(base)
    assert "does not belong to the files that are there" in error.what
    assert ONE in error.what
    assert "incomplete" not in str(error)


def test_other_files_of_weights_are_named_as_not_read(tmp_path: Path) -> None:
    """A second file of layers that predict ahead, a copy in its maker's own form, pickles."""
    base = write_llama(tmp_path / "base", shards=2)
    write_shard(base / "mtp.safetensors", {"mtp.weight": random_tensor((2, 2))})
    write_shard(base / "consolidated.safetensors", _other())
    (base / "pytorch_model.bin").write_bytes(b"x")
    opened = open_checkpoint(base)
    assert set(opened.tensors) == set(llama_tensors(4))
    assert opened.notes == (
        "not read, and left out of what is written: consolidated.safetensors, mtp.safetensors, pytorch_model.bin",
    )


@pytest.mark.parametrize("name", ["consolidated.safetensors", "weights.safetensors"])
def test_a_file_that_transformers_would_not_find_is_refused_with_the_name_it_needs(name: str, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    (base / SINGLE).rename(base / name)
    error = refusal(base)
    assert name in error.what
    assert SINGLE in error.hint


def test_a_distributed_checkpoint_beside_the_weights_is_refused(tmp_path: Path) -> None:
    """Transformers would take it before it looks at model.safetensors."""
    base = write_llama(tmp_path / "base")
    shutil.copy(base / SINGLE, base / "shard-00001-model-00001-of-00001.safetensors")
    assert "distributed checkpoint" in refusal(base).what


def test_the_file_that_the_config_names_is_read(tmp_path: Path) -> None:
    """A file or an index; what is written has the usual names, so that field is gone there."""
    base = write_llama(tmp_path / "base")
    write_shard(base / "special.safetensors", _other())
    write_config(base, 4, transformers_weights="special.safetensors")
    opened = open_checkpoint(base)
    assert _bytes(base) == _data(_other())
    assert "special.safetensors is read" in opened.notes[0]
    assert SINGLE in opened.notes[1]
    assert "transformers_weights" not in compile_plan(draft_of(read_structure(opened))).config


def test_the_index_that_the_config_names_is_read(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    other = write_llama(tmp_path / "other", shards=2)
    (other / INDEX).rename(other / "second.safetensors.index.json")
    for file in other.glob("*.safetensors*"):
        file.rename(base / file.name)
    write_config(base, 4, transformers_weights="second.safetensors.index.json")
    assert {one.shard.name for one in open_checkpoint(base).tensors.values()} == {ONE, TWO}


@pytest.mark.parametrize(
    "name", ["../base/model.safetensors", "/model.safetensors", "model.bin", 3, "", "gone.safetensors"]
)
def test_a_config_that_names_no_file_inside_is_refused(name: object, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    write_config(base, 4, transformers_weights=name)
    assert "transformers_weights" in refusal(base).where


def test_of_two_copies_the_last_counts_where_the_index_means_it(tmp_path: Path) -> None:
    """An overlay: the tensor of the file that the index names is used, and counted once."""
    base = write_llama(tmp_path / "base", shards=2)
    new = random_tensor((8, 8), seed="new")
    write_shard(base / "model-overlay.safetensors", {TWICE: new})
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    write_index(base, {**weight_map, TWICE: "model-overlay.safetensors"})
    opened = open_checkpoint(base)
    assert _bytes(base) == {**_data(llama_tensors(4)), TWICE: new.data}
    assert opened.nbytes == sum(len(one.data) for one in llama_tensors(4).values())
    assert f"{TWICE} is in two shards" in opened.notes[0]
    structure = read_structure(opened)
    assert len({frozenset(layout.types) for layout in structure.stack().layouts}) == 1
    assert list(structure.outside) == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    plan = compile_plan(fold(draft_of(structure), [step_of("prune", {"layers": [1]}, "test")]))
    assert plan.nbytes == sum(len(one.data) for one in llama_tensors(3).values())


@pytest.mark.parametrize("meant", [ONE, None])
def test_of_two_copies_another_than_the_last_is_refused_with_the_repair(meant: str | None, tmp_path: Path) -> None:
    """The index means the older one, or says nothing: transformers takes the last by name."""
    base = write_llama(tmp_path / "base", shards=2)
    tensors = llama_tensors(4)
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    second = {name: tensors[name] for name, file in weight_map.items() if file == TWO}
    write_shard(base / TWO, {**second, TWICE: random_tensor((8, 8), seed="new")})
    write_index(base, {name: file for name, file in weight_map.items() if name != TWICE or meant})
    error = refusal(base)
    assert error.where.endswith(TWO)
    assert f"is also in {ONE}" in error.what
    assert (f"the index means that of {ONE}" if meant else "does not list it") in error.what
    assert "remove the copy from" in error.hint
    assert "downloading again does not help" in error.hint


def test_an_index_without_metadata_is_refused_with_what_to_add(tmp_path: Path) -> None:
    """Transformers does not load it."""
    base = write_llama(tmp_path / "base", shards=2)
    (base / INDEX).write_text(json.dumps({"weight_map": json.loads((base / INDEX).read_text())["weight_map"]}))
    assert '"metadata": {}' in refusal(base).hint


def _unlisted(directory: Path, more: Mapping[str, Stored], lost: str = "") -> Path:
    """Write a shard that holds more than its index lists."""
    base = write_llama(directory)
    (base / SINGLE).unlink()
    tensors = llama_tensors(4)
    write_shard(base / ONE, {**tensors, **more})
    write_index(base, {name: ONE for name in tensors if lost not in name or not lost})
    return base


@pytest.mark.parametrize("where", [1, 3, 7])
def test_tensors_that_only_look_like_parts_of_a_layer_do_not_stop_edits(where: int, tmp_path: Path) -> None:
    """They are in no index, and no other layer has their like: left out, and that is said."""
    name = f"model.layers.{where}.old_proj.weight"
    base = _unlisted(tmp_path / "base", {name: random_tensor((4, 4)), "junk.weight": random_tensor((3, 3))})
    structure = read_structure(open_checkpoint(base))
    assert "2 tensors of the shards are not in the index" in structure.checkpoint.notes[0]
    assert name in structure.problems[0]
    for step in ({"prune": {"layers": [0]}}, {"expand": {"after": [0]}}):
        ((operation, fields),) = step.items()
        plan = compile_plan(fold(draft_of(structure), [step_of(operation, fields, "test")]))
        assert not any("old_proj" in tensor.name for tensor in plan.tensors)


def test_tensors_that_the_index_forgot_are_parts_of_the_model(tmp_path: Path) -> None:
    """Transformers reads every tensor of a shard."""
    structure = read_structure(open_checkpoint(_unlisted(tmp_path / "base", {}, lost="layers.2.self_attn.q_proj")))
    assert structure.problems == ()
    assert len(structure.stack().layouts) == 1


@pytest.mark.parametrize(("count", "where"), [(4, 0), (1, 2)])
def test_empty_weights_are_refused_with_what_they_mean(count: int, where: int, tmp_path: Path) -> None:
    """A checkpoint saved under ZeRO-3 without gathering, whole or in one layer."""
    base = write_llama(tmp_path / "base")
    empty = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(where, where + count)]
    write_shard(base / SINGLE, {**llama_tensors(4), **dict.fromkeys(empty, Stored("BF16", (0,), b""))})
    error = refusal(base)
    assert repr(empty[0]) in error.what
    assert "ZeRO-3" in error.what
    assert ("and 3 more" in error.what) == (count == 4)
    assert "zero_to_fp32.py" in error.hint


def test_states_that_are_empty_by_right_are_no_fault(tmp_path: Path) -> None:
    """Transformer Engine stores such; integers too, of quantisers that do not reorder."""
    base = write_llama(tmp_path / "base")
    more = {"model.layers.0.mlp._extra_state": Stored("BF16", (0,), b""), "model.g_idx": Stored("U8", (0,), b"")}
    write_shard(base / SINGLE, {**llama_tensors(4), **more})
    assert open_checkpoint(base).tensors["model.g_idx"].nbytes == 0
