"""Whole exports: what is written, byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from surgeon.export import shard_writer
from tests.export.handmade_shards import llama_tensors, write_config, write_llama
from tests.export.replaying import COPY, MEAN, PRUNE, digests, names_in, run, start_run


def stored_bytes(directory: Path) -> dict[str, bytes]:
    """Return every tensor's bytes, read with plain file reading and safetensors' word for where the shards are."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        with safe_open(file, "np") as reader:
            for name in reader.keys():  # noqa: SIM118 - it is no mapping
                first, last = header[name]["data_offsets"]
                found[name] = raw[start + first : start + last]
    return found


def pruned_names(removed: set[int], layers: int) -> dict[str, str]:
    """Return for every name after removing layers the name before."""
    kept = [index for index in range(layers) if index not in removed]
    names = {}
    for name in llama_tensors(layers):
        parts = name.split(".")
        if parts[1] == "layers":
            if int(parts[2]) not in kept:
                continue
            parts[2] = str(kept.index(int(parts[2])))
        names[".".join(parts)] = name
    return names


@pytest.mark.parametrize("shard_count", [1, 3])
def test_what_stays_keeps_its_bytes(shard_count: int, tmp_path: Path) -> None:
    """Every tensor of the pruned model equals the base's tensor of its old number, read independently."""
    base = write_llama(tmp_path / "base", layers=5, shards=shard_count)
    run(base, tmp_path / "out", PRUNE)
    before = {name: one.data for name, one in llama_tensors(5).items()}
    after = stored_bytes(tmp_path / "out")
    assert after == {new: before[old] for new, old in pruned_names({1, 2}, 5).items()}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3


def test_config_keeps_every_other_key_and_its_order(tmp_path: Path) -> None:
    """Unknown keys, Infinity, floats as Python writes them: only what changed is changed."""
    base = write_llama(tmp_path / "base")
    write_config(base, 4, time_limit=[0.0, float("inf")], ünknown={"a": 1e-05}, nothing=None)
    run(base, tmp_path / "out", PRUNE)
    before, after = ((place / "config.json").read_text() for place in (base, tmp_path / "out"))
    assert after.rstrip("\n") == before.replace('"num_hidden_layers": 4', '"num_hidden_layers": 2').encode().decode(
        "unicode_escape"
    )


def test_side_files_travel_with_sane_modes(tmp_path: Path) -> None:
    """Chat templates in their folder too; nobody needs to chmod an export before others can read it."""
    base = write_llama(tmp_path / "base")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Old card\n")
    before = os.umask(0o022)
    try:
        run(base, tmp_path / "out", PRUNE)
    finally:
        os.umask(before)
    out = tmp_path / "out"
    for name in ("LICENSE", "generation_config.json", "additional_chat_templates/tool_use.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert "license: mit" in (out / "README.md").read_text()
    assert "Old card" not in (out / "README.md").read_text()
    for path in [out, *out.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


@pytest.mark.parametrize("step", [PRUNE, COPY, MEAN], ids=["prune", "copy", "mean"])
def test_the_same_recipe_gives_the_same_bytes_in_every_file(step: Any, tmp_path: Path) -> None:
    """In fresh processes with other hash seeds, and in an export of another name: nothing depends on when or where."""
    base = write_llama(tmp_path / "base", shards=2)
    for name, seed in (("one", "1"), ("two", "2")):
        process = start_run(base, tmp_path / name, step, {"freeze": {"except": "inserted"}}, hash_seed=seed)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(digests(tmp_path / "one")) >= 6


@pytest.mark.parametrize(
    ("step", "loads"), [(PRUNE, False), (COPY, False), (MEAN, True)], ids=["prune", "copy", "mean"]
)
def test_moving_bytes_and_writing_zeros_loads_no_torch(step: Any, loads: bool, tmp_path: Path) -> None:
    """Only arithmetic on tensors may: torch costs seconds and hundreds of megabytes."""
    process = start_run(write_llama(tmp_path / "base"), tmp_path / "out", step)
    told, errors = process.communicate()
    assert process.returncode == 0, errors
    assert told == f"{loads}\n"


def test_several_shards_get_an_index_that_names_each_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names and the index are those that Hugging Face writes."""
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 1200)
    base = write_llama(tmp_path / "base")
    run(base, tmp_path / "out", PRUNE)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = stored_bytes(tmp_path / "out")
    assert index["metadata"]["total_size"] == sum(map(len, tensors.values()))
    assert set(index["weight_map"]) == set(tensors)
    for file in files:
        with safe_open(tmp_path / "out" / file, "np") as reader:
            assert {index["weight_map"][name] for name in reader.keys()} == {file}  # noqa: SIM118


def test_a_base_named_through_a_link_is_the_same_base(tmp_path: Path) -> None:
    """Same weights, same fingerprint; only the name in the recipe differs."""
    base = write_llama(tmp_path / "base")
    (tmp_path / "link").symlink_to(base)
    run(base, tmp_path / "one", PRUNE)
    run(tmp_path / "link", tmp_path / "two", PRUNE)
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert {name for name in one if one[name] != two[name]} == {"README.md", "recipe.yaml"}


def test_an_export_can_be_operated_on_again(tmp_path: Path) -> None:
    """Its recipe, card, proof and list of trainable parameters are about itself, and do not travel on."""
    base = write_llama(tmp_path / "base", layers=5)
    run(base, tmp_path / "first", COPY, {"freeze": {"except": "inserted"}})
    (tmp_path / "first" / "surgeon_proof.json").write_text('{"old": true}')
    run(tmp_path / "first", tmp_path / "second", {"prune": {"layers": [1]}})
    second = tmp_path / "second"
    assert set(names_in(second)) == {*names_in(base), "README.md", "recipe.yaml"}
    assert "expand" not in (second / "recipe.yaml").read_text()
    assert str(tmp_path / "first") in (second / "recipe.yaml").read_text()
    assert stored_bytes(second) == stored_bytes(base)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    """Bytes told of add up to the bytes planned."""
    events: list[dict[str, Any]] = []
    base = write_llama(tmp_path / "base", shards=2)
    result = run(base, tmp_path / "out", COPY, emit=lambda kind, body: events.append({"kind": kind, **body}))
    told = [event for event in events if event["kind"] == "progress"]
    assert [event["done"] for event in told] == sorted(event["done"] for event in told)
    assert told[-1]["done"] == told[-1]["total"] == result["bytes"]
