"""Evaluations with layers on disk: the same figures as in memory, one layer there at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from surgeon.backend.model import streaming
from surgeon.backend.scoring import layer_passes
from surgeon.errors import ScoreError
from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.export.replaying import run

PRUNE = {"prune": {"layers": [2]}}
MEAN = {"expand": {"after": [0], "init": "mean"}}
KL = {"evaluate": {"metric": "kl", "data": "text.jsonl", "max_length": 16}}
PERPLEXITY = {"evaluate": {"metric": "perplexity", "data": "text.jsonl", "max_length": 16}}


@pytest.fixture(params=["llama", "gpt2", "mixtral"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "cache"))
    model = save_tiny(request.param, tmp_path / "model")
    write_tokenizer(model)
    rows = [{"text": f"row {number}: " + "a quick brown fox " * (1 + number % 3)} for number in range(8)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model


def figures(base: Path, *steps: Any, cache: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[dict[str, Any]]:
    """Run a recipe with a cache of its own, so that nothing is taken over from another run."""
    root = base.parent
    monkeypatch.setenv("SURGEON_CACHE", str(root / cache))
    found = run(base, root / f"out-{cache}", *steps, root=str(root), device="cpu", **more)
    return [one["figures"] for one in found["evaluations"]]


def test_figures_are_those_of_the_whole_model(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (PERPLEXITY, PRUNE, MEAN, KL, PERPLEXITY)
    whole = figures(base, *steps, cache="whole", monkeypatch=monkeypatch, stream=False)
    loaded = []
    in_order = streaming.weights_in_order

    @contextmanager
    def noted(layers: Sequence[nn.Module], *rest: Any) -> Iterator[Any]:
        with in_order(layers, *rest) as weights:

            def of_layer(number: int) -> AbstractContextManager[nn.Module]:
                loaded.append(streaming.is_streamed(layers[number]))
                return weights(number)

            yield of_layer

    monkeypatch.setattr(layer_passes, "weights_in_order", noted)
    streamed = figures(base, *steps, cache="streamed", monkeypatch=monkeypatch, stream=True)
    assert any(loaded)
    assert len(loaded) == 4 * 6  # perplexity twice, and both arrangements for the divergence; six layers each time
    for one, other in zip(whole, streamed, strict=True):
        for name, average in one.items():
            assert other[name]["value"] == pytest.approx(average["value"], rel=1e-5), name
            assert other[name]["error"] == pytest.approx(average["error"], rel=1e-3, abs=1e-9), name


def test_nothing_but_identities_diverges_by_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = figures(base, {"expand": {"after": "0,1"}}, KL, cache="identities", monkeypatch=monkeypatch, stream=True)
    assert found["kl"]["value"] == 0.0
    assert found["top1_agreement"]["value"] == 1.0


def test_what_needs_the_whole_model_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = {"evaluate": {"metric": "speed", "max_length": 16, "max_new_tokens": 4}}
    with pytest.raises(ScoreError, match="speed would be that of the disk"):
        figures(base, speed, cache="speed", monkeypatch=monkeypatch, stream=True)
    adapters = {"masked_lora": {"layers": "all", "roles": ["attention"], "rank": 2}}
    with pytest.raises(ScoreError, match="layer by layer"):
        figures(base, adapters, KL, cache="adapters", monkeypatch=monkeypatch, stream=True)
