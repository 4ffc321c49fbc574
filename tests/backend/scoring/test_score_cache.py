"""Nothing is measured twice: counted reads of tensors and forwards of layers."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.backend.digests import content_digest
from surgeon.backend.model.layer_runner import LayerRunner
from surgeon.backend.model.tensors import TensorReader
from surgeon.backend.scoring.score_cache import ScoreCache
from surgeon.core.checkpoint.model_location import cache_directory
from tests.backend.tiny_models import LAYERS
from tests.scores.sample_models import open_draft, patient, scores

WEIGHTS = "random_matrix,lamp,weight_norm"
EVERYTHING = f"{WEIGHTS},block_influence,angular_distance,removal,fisher"
MATRICES = 7
"""Of a Llama's layer."""


class Counts:
    """How many tensors were read and how many layers were run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = self.runs = 0
        read, run = TensorReader.read, LayerRunner.run

        def counted_read(reader: TensorReader, stored: Any) -> torch.Tensor:
            self.reads += 1
            return read(reader, stored)

        def counted_run(runner: LayerRunner, *args: Any) -> torch.Tensor:
            self.runs += 1
            return run(runner, *args)

        monkeypatch.setattr(TensorReader, "read", counted_read)
        monkeypatch.setattr(LayerRunner, "run", counted_run)

    def take(self) -> tuple[int, int]:
        """Return reads and runs since the last time."""
        taken = (self.reads, self.runs)
        self.reads = self.runs = 0
        return taken


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(monkeypatch)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return patient("llama", tmp_path / "base")


def test_a_score_is_told_again_but_not_measured_again(base: Path, counts: Counts) -> None:
    """The same numbers, and every row arrives as an event as it did the first time."""
    heard: list[list[tuple[str, str, float]]] = []

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "scored":
            heard[-1].append((body["score"], body["layer"], body["value"]))

    for _ in range(2):
        heard.append([])
        heard.append(scores(base, EVERYTHING, emit=emit))  # type: ignore[arg-type]
        counts_now = counts.take()
    assert counts_now == (0, 0)
    assert heard[1] == heard[3]
    assert sorted(heard[0]) == sorted(heard[2])


def test_a_new_process_finds_what_another_one_measured(base: Path, counts: Counts) -> None:
    """With matrices of several roles truncated, whose order in a set differs from process to process."""
    step = {"truncate": {"layers": [1], "roles": ["mlp", "attention"], "rank": 8}}
    program = (
        "import sys, json; from pathlib import Path; from tests.scores.sample_models import scores;"
        "scores(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))"
    )
    root = Path(__file__).parents[3]
    subprocess.run(
        [sys.executable, "-c", program, str(base), "weight_norm,block_influence", json.dumps(step)],
        check=True, cwd=root,
    )  # fmt: skip
    assert set(scores(base, "weight_norm,block_influence", step)) == {"weight_norm", "block_influence"}
    assert counts.take() == (0, 0)


def test_after_a_prune_no_matrix_is_read_again(base: Path, counts: Counts) -> None:
    """LAMP, which compares all matrices, is settled anew from what was kept of each."""
    whole = scores(base, WEIGHTS)
    assert counts.take()[0] == LAYERS * MATRICES
    pruned = scores(base, WEIGHTS, {"prune": {"layers": [2]}})
    assert counts.take() == (0, 0)
    for name in ("random_matrix", "weight_norm"):
        assert pruned[name].values == {key: value for key, value in whole[name].values.items() if key != "2"}
    assert pruned["lamp"].values != whole["lamp"].values
    assert pruned["random_matrix"].details["5"] == whole["random_matrix"].details["5"]


def test_after_an_expand_only_inserted_layers_are_read(base: Path, counts: Counts) -> None:
    """A copy as it is has been read already; a mean is read from both sides; a silenced copy is new weights."""
    scores(base, "weight_norm")
    counts.take()
    scores(base, "weight_norm", {"expand": {"after": [1], "init": "duplicate"}})
    assert counts.take() == (0, 0)
    scores(base, "weight_norm", {"expand": {"after": [1, 3], "init": "mean"}})
    assert counts.take()[0] == 2 * (2 * (MATRICES - 2))  # the two silenced outputs are zeros, read from nowhere


def test_undo_finds_everything(base: Path, counts: Counts) -> None:
    """Prune, undo, redo: the third and fourth measurement cost nothing."""
    step = {"prune": {"layers": [0]}}
    first, second = scores(base, EVERYTHING), scores(base, EVERYTHING, step)
    counts.take()
    again, redone = scores(base, EVERYTHING), scores(base, EVERYTHING, step)
    assert counts.take() == (0, 0)
    assert (first, second) == (again, redone)


def test_layers_before_an_edit_keep_the_scores_that_depend_on_nothing_behind_them(base: Path, counts: Counts) -> None:
    """Without the last two layers, block influence is known of all that are left; a measurement of losses is not."""
    whole = scores(base, "block_influence,activation_overlap,removal")
    counts.take()
    step = {"prune": {"layers": "last 2"}}
    shorter = scores(base, "block_influence,activation_overlap", step)
    assert counts.take() == (0, 0)
    for name, score in shorter.items():
        kept = {key: whole[name].values[key] for key in score.values}
        assert score.values == kept
        assert score.matrices == {key: whole[name].matrices[key] for key in score.matrices}
    assert shorter["block_influence"].errors == {
        key: error for key, error in whole["block_influence"].errors.items() if key in "0123"
    }
    scores(base, "removal", step)
    assert counts.take()[1] > 0


def test_rows_before_an_edit_in_the_middle_are_taken_over_and_the_rest_is_new(base: Path) -> None:
    """What is taken over equals what is measured from nothing."""
    step = {"prune": {"layers": [3]}}
    scores(base, "block_influence,activation_overlap")
    reused = scores(base, "block_influence,activation_overlap", step)
    for path in (cache_directory() / "scores").rglob("*.msgpack"):
        path.unlink()
    fresh = scores(base, "block_influence,activation_overlap", step)
    assert reused == fresh


@pytest.mark.parametrize("change", [{"seed": 1}, {"length": 15}, {"sequences": 4}, {"dtype": "bfloat16"}])
def test_other_settings_are_another_measurement(base: Path, counts: Counts, change: dict[str, Any]) -> None:
    """Whatever they are."""
    scores(base, "block_influence")
    counts.take()
    scores(base, "block_influence", **change)
    assert counts.take()[1] > 0


def test_other_weights_text_tokenizer_or_score_settings_are_another_measurement(base: Path, counts: Counts) -> None:
    """By content: the same file names and sizes."""
    (base / "text.txt").write_text("abc abd " * 200)
    scores(base, "weight_norm,removal,semantic_gain", data="text.txt")
    assert counts.take()[0]
    (base / "text.txt").write_text("abc abe " * 200)
    scores(base, "removal", data="text.txt")
    assert counts.take()[1]
    scores(base, "semantic_gain(leave_out=0)", data="text.txt")
    assert counts.take()[1]
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    scores(base, "removal", data="text.txt")
    assert counts.take()[1]
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    before = scores(base, "weight_norm")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    after = scores(base, "weight_norm,removal,fisher", data="text.txt")
    assert min(counts.take()) > 0
    assert before["weight_norm"].values["0"] != after["weight_norm"].values["0"]


def test_a_model_that_changed_on_disk_is_loaded_anew(base: Path) -> None:
    """With the same header and the same size: its shard is another file all the same."""
    before = scores(base, "removal")["removal"]
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    after = scores(base, "removal")["removal"]
    assert before.values != after.values


def test_layers_of_the_same_weights_under_other_names_are_not_confused(base: Path) -> None:
    """A score is by layer key."""
    duplicate = {"expand": {"after": [1], "init": "duplicate"}}
    one = scores(base, "removal", duplicate)["removal"]
    other = scores(base, "removal", duplicate, {"prune": {"layers": [2]}}, duplicate)["removal"]
    assert list(one.values) != list(other.values) or one == other
    again = scores(base, "removal", {"expand": {"after": [1], "init": "duplicate"}}, {"prune": {"layers": [1]}})
    assert "1" not in again["removal"].values


def test_a_broken_file_is_as_good_as_none(base: Path, counts: Counts) -> None:
    """Empty, cut short, or something else altogether."""
    whole = scores(base, "weight_norm,block_influence")
    for damage in (b"", b"\x81", b"not msgpack at all", msgspec.msgpack.encode({"name": 3})):
        for path in (cache_directory() / "scores").rglob("*.msgpack"):
            path.write_bytes(damage)
        counts.take()
        assert scores(base, "weight_norm,block_influence") == whole
        assert min(counts.take()) > 0


def test_writers_at_the_same_time_do_not_hurt_each_other(base: Path) -> None:
    """Whoever reads sees one of the whole values."""
    cache = ScoreCache(open_draft(base).structure.checkpoint)

    def write(number: int) -> list[int] | None:
        cache.put([number] * 1000, "same")
        return cache.get(list[int], "same")

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(write, range(200)))
    assert all(one is not None and len(one) == 1000 and len(set(one)) == 1 for one in seen)
    assert len(list((cache_directory() / "scores").rglob("*"))) == 2  # the folder and the file: nothing is left behind


def test_the_cache_is_bounded_and_keeps_what_is_used(base: Path) -> None:
    """What has not been used for longest goes first."""
    import os
    import time

    cache = ScoreCache(open_draft(base).structure.checkpoint)
    now = time.time()
    for number in range(10):
        cache.put("x" * 1000, number)
        os.utime(cache._path((number,)), (now - 1000 + number, now - 1000 + number))
    assert cache.get(str, 0) is not None
    cache.trim(4500)
    left = [number for number in range(10) if cache.get(str, number) is not None]
    assert left == [0, 7, 8, 9]


def test_a_directory_that_cannot_be_written_costs_no_measurement(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score is simply measured again next time."""
    blocked = base / "file"
    blocked.write_text("")
    monkeypatch.setenv("SURGEON_CACHE", str(blocked))
    assert scores(base, "weight_norm")["weight_norm"].values


def test_a_checkpoint_is_named_by_its_bytes_wherever_it_lies(base: Path, tmp_path: Path) -> None:
    """A copy is the same; one changed byte is not."""
    import shutil

    copy = shutil.copytree(base, tmp_path / "copy")
    names = [content_digest(open_draft(path).structure.checkpoint) for path in (base, copy)]
    assert names[0] == names[1]
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert content_digest(open_draft(copy).structure.checkpoint) != names[0]
