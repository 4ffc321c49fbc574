"""A model that stays on disk gives the same numbers as one in memory, with one of its layers loaded at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.backend.model import streaming
from surgeon.backend.model.layer_runner import LayerRunner
from surgeon.backend.model.loading import forget_model
from surgeon.backend.scoring.context import calibration_of, scoring_context
from surgeon.backend.scoring.score_cache import ScoreCache
from surgeon.errors import CheckpointError, ScoreError
from tests.backend.tiny_models import FAMILIES, LAYERS
from tests.jobs import job_context
from tests.scores.sample_models import few, open_draft, patient, scores

NAMES = "block_influence,angular_distance,removal,shapley(longest=1)"


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScoreCache, "get", lambda *_: None)


@pytest.fixture(autouse=True)
def _no_hidden_state_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a streamed model: the states of all variants go through a file."""
    monkeypatch.setattr(streaming, "_STATES_BESIDE_A_LAYER", 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_streamed_model_has_the_same_scores_bit_for_bit(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every family, where transformers renames or stacks weights on loading too."""
    base = patient(family, tmp_path / "base", dtype)
    streamed = scores(base, NAMES, stream=True)
    forget_model()
    assert streamed == scores(base, NAMES, stream=False)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2", "phi3"])
def test_inserted_layers_are_real_copies_of_what_lies_on_disk(family: str, tmp_path: Path) -> None:
    """Duplicates, means, silenced copies and truncated ones, in one draft."""
    base = patient(family, tmp_path / "base")
    steps = [
        {"prune": {"layers": [0]}},
        {"expand": {"after": [1], "init": "duplicate"}},
        {"expand": {"after": [3], "init": "mean"}},
        {"truncate": {"layers": [4], "roles": ["attention.output"], "rank": 8}},
    ]
    streamed = scores(base, "block_influence,removal", *steps, stream=True)
    forget_model()
    assert streamed == scores(base, "block_influence,removal", *steps, stream=False)
    assert len(streamed["removal"].values) == LAYERS + 1


def test_no_more_than_one_layer_is_loaded_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many batches and layer sequences go through it."""
    base = patient("llama", tmp_path / "base")
    loaded: list[int] = []
    run = LayerRunner.run

    def noting(runner: LayerRunner, layer: nn.Module, *args: Any) -> torch.Tensor:
        whole = [number for number, one in enumerate(runner.layers) if not streaming.is_streamed(one)]
        assert len(whole) == 1
        loaded.extend(whole[:1] if loaded[-1:] != whole else [])
        return run(runner, layer, *args)

    monkeypatch.setattr(LayerRunner, "run", noting)
    scores(base, "removal", stream=True)
    assert loaded == list(range(LAYERS))


def test_the_next_layer_is_read_while_this_one_is_used_and_never_a_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that a pass does not use."""
    base = patient("llama", tmp_path / "base")
    draft, settings = open_draft(base), few(base, stream=True)
    read: list[nn.Module] = []
    fetch = streaming._LayerReader.fetch

    def noting(reader: Any, layer: nn.Module) -> Any:
        read.append(layer)
        return fetch(reader, layer)

    with scoring_context(draft, settings, calibration_of(draft, settings), 32, job_context()) as context:
        layers = list(context.runner.layers)
        used = [0, 1, 3]
        monkeypatch.setattr(streaming._LayerReader, "fetch", noting)
        with streaming.weights_in_order(layers, used) as weights:
            for at, number in enumerate(used):
                with weights(number) as layer:
                    while len(read) < min(at + 2, len(used)):
                        pass
                    assert not streaming.is_streamed(layer)
                    assert [layers.index(one) for one in read] == used[: at + 2]
                assert streaming.is_streamed(layer)


def test_a_pass_that_is_left_early_leaves_no_thread_and_no_weights(tmp_path: Path) -> None:
    """Whatever was being read ahead."""
    base = patient("llama", tmp_path / "base")
    draft, settings = open_draft(base), few(base, stream=True)
    with scoring_context(draft, settings, calibration_of(draft, settings), 32, job_context()) as context:
        layers = list(context.runner.layers)
        with pytest.raises(KeyError), streaming.weights_in_order(layers) as weights, weights(0):
            raise KeyError
        assert all(map(streaming.is_streamed, layers))
    assert not [thread for thread in threading.enumerate() if "layer-reader" in thread.name]


def test_a_shard_that_vanishes_is_named_while_it_is_streamed(tmp_path: Path) -> None:
    """The reader thread's error is the pass's error."""
    base = patient("llama", tmp_path / "base")
    draft, settings = open_draft(base), few(base, stream=True)
    with scoring_context(draft, settings, calibration_of(draft, settings), 32, job_context()) as context:
        (base / "model.safetensors").unlink()
        layers = list(context.runner.layers)
        with (
            pytest.raises((CheckpointError, OSError), match=r"model\.safetensors"),
            streaming.weights_in_order(layers) as weights,
            weights(0),
        ):
            pass


@pytest.mark.parametrize("shape", [(3,), (), (0, 4), (700, 800)])
def test_memory_that_goes_back_to_the_system_is_ordinary_memory(shape: tuple[int, ...]) -> None:
    """Of any size."""
    value = streaming.returned_empty(shape, torch.float32)
    assert value.shape == shape
    assert bool((value.fill_(2.0) == 2).all())


def test_preparing_a_model_loads_no_layer_but_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at how layers are called must not read the model from disk."""
    from accelerate.hooks import AlignDevicesHook

    base = patient("llama", tmp_path / "base")
    fetched: list[nn.Module] = []
    before = AlignDevicesHook.pre_forward

    def noting(hook: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if hook.offload and module not in fetched:
            fetched.append(module)
        return before(hook, module, *args, **kwargs)

    monkeypatch.setattr(AlignDevicesHook, "pre_forward", noting)
    draft, settings = open_draft(base), few(base, stream=True)
    with scoring_context(draft, settings, calibration_of(draft, settings), 32, job_context()) as context:
        assert context.streamed
        for tokens_BT in context.batches:
            context.runner.record(tokens_BT)
        assert all(any(module is part for part in context.runner.layers[0].modules()) for module in fetched)


def test_gradients_of_a_streamed_model_are_refused_in_words(tmp_path: Path) -> None:
    """They would need all of it at once."""
    base = patient("llama", tmp_path / "base")
    with pytest.raises(ScoreError, match="whole model in memory") as caught:
        scores(base, "fisher", stream=True)
    assert "--no-stream" in caught.value.hint


def test_all_scores_of_a_streamed_model_leave_gradients_out_and_say_so(tmp_path: Path) -> None:
    """`all` means all that can be measured."""
    base = patient("llama", tmp_path / "base")
    said: list[str] = []

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "log":
            said.append(body["text"])

    found = scores(base, "all", stream=True, emit=emit)
    assert {"taylor", "fisher"}.isdisjoint(found)
    assert {"lamp", "removal", "shapley", "semantic_gain", "activation_overlap"} <= set(found)
    assert [text.partition(" ")[0] for text in said if "left out" in text and "experts" not in text] == [
        "fisher", "taylor",
    ]  # fmt: skip


def test_a_model_that_does_not_fit_is_streamed_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided by what is free, unless said otherwise."""
    base = patient("llama", tmp_path / "base")
    draft = open_draft(base)
    checkpoint = draft.structure.checkpoint
    cpu = torch.device("cpu")
    assert streaming.fits_in_memory(checkpoint, torch.float32, cpu)

    class Full:
        available = checkpoint.parameters * 4

    monkeypatch.setattr("psutil.virtual_memory", Full)
    assert not streaming.fits_in_memory(checkpoint, torch.float32, cpu)
    for stream, expected in ((None, True), (False, False)):
        settings = few(base, stream=stream)
        with scoring_context(draft, settings, calibration_of(draft, settings), 32, job_context()) as context:
            assert context.streamed is expected
