"""The `score` job: rows as they are known, cancels between them, memory that runs out, requests in words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.backend.model.layer_runner import LayerRunner
from surgeon.core.checkpoint.model_location import cache_directory
from surgeon.core.scoring.requests import request_of, requested_scores, split_requests
from surgeon.core.scoring.score_kinds import score_kinds
from surgeon.errors import Cancelled, ScoreError, UsageError
from tests.backend.tiny_models import LAYERS
from tests.scores.sample_models import patient, scores


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return patient("llama", tmp_path / "base")


def test_all_runs_each_pass_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One activations pass, one for inputs, one sweep for five scores, one backward per sequence."""
    from surgeon.backend.scoring import score_runner

    ran: list[tuple[str, int]] = []
    for name, live_pass in score_runner._LIVE.items():

        def noting(trainable: Any, kinds: Any, provenance: Any, name: str = name, live_pass: Any = live_pass) -> Any:
            ran.append((name, len(kinds)))
            return live_pass(trainable, kinds, provenance)

        monkeypatch.setitem(score_runner._LIVE, name, noting)
    found = scores(base, "all")
    assert set(found) == {
        name
        for name, kind in score_kinds().items()
        if kind.needs not in ("learning", "adapters") and getattr(kind, "part", None) != "experts"
    }
    whole = [("activations", 4), ("inputs", 1), ("gradients", 2), ("sweep", 5)]
    assert [one for one in ran if one[0] != "parts"] == whole
    # That of parts stops before it runs: the model has no experts. It runs once for the others.
    assert [count for name, count in ran if name == "parts"] == [5, 2, 1, 1, 3]


@pytest.mark.parametrize(
    ("name", "what"),
    [("block_influence", "activations"), ("activation_overlap", "inputs"), ("random_matrix", "weights")],
)
def test_a_row_arrives_before_the_next_layer_is_touched(base: Path, name: str, what: str) -> None:
    """So a person may watch, and stop."""
    told: list[str] = []
    heard: list[tuple[int, int]] = []

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "scored":
            told.append(body["layer"])
        if kind == "progress" and body["what"] == what:
            heard.append((body["done"], len(told)))

    score = scores(base, name, emit=emit)[name]
    assert told == list(score.values) == [str(layer) for layer in range(LAYERS)]
    assert all(done == rows for done, rows in heard)
    assert heard[-1] == (LAYERS, LAYERS)


def forget_scores() -> None:
    """Empty the cache of scores."""
    shutil.rmtree(cache_directory() / "scores", ignore_errors=True)


def test_rows_of_a_cheap_sweep_do_not_wait_for_an_expensive_one(base: Path) -> None:
    """Asked for in either order; nothing is measured twice, and the numbers are those of each on its own."""
    heard: list[str] = []

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "scored":
            heard.append(body["score"])
        if kind == "progress" and body["unit"] == "losses":
            heard.append("loss")

    found = scores(base, "block_removal(longest=3),removal,expansion", emit=emit)
    firsts = {name: heard.index(name) for name in found}
    layers = len(found["removal"].values)
    assert heard[: firsts["removal"]] == ["loss"] * (layers + 1)
    assert firsts["removal"] < firsts["expansion"] < firsts["block_removal"]
    assert heard.count("loss") == 1 + 2 * layers + (layers - 1) + (layers - 2)
    assert found["removal"].values == found["block_removal"].values == scores(base, "removal")["removal"].values


@pytest.mark.parametrize("name", ["block_influence", "activation_overlap", "removal", "fisher", "weight_norm"])
def test_every_pass_heeds_a_cancel_and_the_next_job_is_right(base: Path, name: str) -> None:
    """Wherever it comes: the resident model is as it was."""
    expected = scores(base, name, seed=1)[name].values
    for patience in range(4):
        forget_scores()
        asked = iter(range(patience + 1))
        with pytest.raises(Cancelled):
            scores(
                base,
                name,
                {"reorder": {"order": [5, 4, 3, 2, 1, 0]}},
                cancelled=lambda asked=asked, end=patience: next(asked) == end,
            )
    forget_scores()
    assert scores(base, name, seed=1)[name].values == expected


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("[enforce fail] can't allocate memory")],
)
@pytest.mark.parametrize("name", ["block_influence", "removal", "activation_overlap"])
def test_a_pass_that_runs_out_of_memory_runs_again_with_smaller_batches(
    base: Path, name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halved until it fits; the numbers do not depend on it, and it is said."""
    expected = scores(base, name, {"prune": {"layers": [0]}}, batch_tokens=16)[name]
    run = LayerRunner.run
    warned: list[str] = []

    def limited(runner: LayerRunner, layer: Any, hidden_BTD: torch.Tensor, arguments: Any) -> torch.Tensor:
        if hidden_BTD.shape[0] > 1:
            raise error
        return run(runner, layer, hidden_BTD, arguments)

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "log" and "out of memory" in body["text"]:
            warned.append(body["text"])

    monkeypatch.setattr(LayerRunner, "run", limited)
    from surgeon.backend.scoring.score_cache import ScoreCache

    monkeypatch.setattr(ScoreCache, "get", lambda *_: None)
    found = scores(base, name, {"prune": {"layers": [0]}}, batch_tokens=64, emit=emit)[name]
    assert found.values == pytest.approx(expected.values, rel=1e-5, abs=1e-6)
    assert warned == ["out of memory: trying batches of 32 tokens", "out of memory: trying batches of 16 tokens"]


def test_memory_that_is_not_enough_for_one_sequence_is_not_tried_for_ever(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is another error mistaken for it."""

    def failing(*_: Any) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(LayerRunner, "run", failing)
    with pytest.raises(MemoryError):
        scores(base, "block_influence")


def test_a_hidden_state_that_is_not_finite_names_its_layer(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sweep as in a plain pass."""
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][:] = 3e38
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    for name in ("block_influence", "removal"):
        with pytest.raises(ScoreError, match="layer 2"):
            scores(base, name)


def test_requests_are_read_with_their_settings() -> None:
    """And written again as they are asked for."""
    assert split_requests("block_removal(longest=4), removal,lamp(kept=0.3)") == [
        "block_removal(longest=4)", "removal", "lamp(kept=0.3)",
    ]  # fmt: skip
    text = "semantic_gain(state=normed,train_at_most=4)"
    (kind,) = requested_scores([text])
    assert request_of(kind) == text
    assert request_of(requested_scores(["block-influence"])[0]) == "block_influence"
    found = {kind.name: kind for kind in requested_scores(["all", "block_removal(longest=2)"])}
    assert set(found) == {name for name, kind in score_kinds().items() if kind.needs not in ("learning", "adapters")}
    assert request_of(found["block_removal"]) == "block_removal(longest=2)"


@pytest.mark.parametrize(
    ("request_text", "told"),
    [
        ("removel", "did you mean 'removal'"),
        ("removal(longest=3)", "removal has no setting 'longest'"),
        ("block_removal(long=3)", "no setting 'long'"),
        ("block_removal(longest=0)", ">= 1"),
        ("block_removal(longest=x)", "int"),
        ("lamp(kept=1.5)", "< 1"),
        ("semantic_gain(state=odd)", "odd"),
        ("block_removal(longest=3", "no score"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_words(request_text: str, told: str) -> None:
    """With what is allowed."""
    with pytest.raises(UsageError) as caught:
        requested_scores([request_text])
    assert told in str(caught.value)


def test_one_score_with_two_settings_is_refused() -> None:
    """Scores are known by their names."""
    with pytest.raises(UsageError, match="twice"):
        requested_scores(["block_removal(longest=2)", "block_removal(longest=3)"])
    assert len(requested_scores(["removal", "removal"])) == 1
    with pytest.raises(UsageError, match="names no score"):
        requested_scores([])
