"""Scores of a model with trained adapters: those of the checkpoint that its adapters are merged into."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from surgeon.backend.jobs.ablate import ablate_job
from surgeon.backend.jobs.score import score_job
from surgeon.core.checkpoint.model_location import cache_directory
from surgeon.core.jobs import AblateJob, ScoreJob
from surgeon.core.scoring.score import Score
from surgeon.errors import ScoreError
from tests.jobs import job_context
from tests.scores.sample_models import patient

_TRAIN = {"train": {"objective": "lm", "data": "texts.jsonl", "steps": 2, "batch_size": 2, "max_length": 16,
                    "learning_rate": 0.05, "scheduler": "constant"}}  # fmt: skip
_ADAPTED = ({"prune": {"layers": [1]}}, {"masked_lora": {"layers": "2-3"}}, _TRAIN)
_SETTINGS = {"sequences": 4, "length": 16, "batch_tokens": 32}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [{"text": f"the layer number {number} of a model has two names"} for number in range(6)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def _fields(root: Path, *steps: Any) -> dict[str, Any]:
    recipe = {"version": 1, "base": {"model": str(root / "base")}, "steps": list(steps)}
    return {"recipe": recipe, "root": str(root), **_SETTINGS}


def _scores(root: Path, names: str, *steps: Any, **settings: Any) -> dict[str, Score]:
    from surgeon.core.scoring.requests import split_requests

    job = ScoreJob(names=tuple(split_requests(names)), **_fields(root, *steps), **settings)
    result = score_job(job, job_context(lambda kind, body: None, root=root))
    return {plain["name"]: msgspec.convert(plain, Score) for plain in result.scores}


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_every_score_is_that_of_the_merged_checkpoint(family: str, root: Path) -> None:
    """Of weights, activations, inputs, gradients and sweeps; separate, transposed and fused projections."""
    patient(family, root / "base")
    merged = _scores(root, "all", *_ADAPTED, {"merge_adapters": {}})
    adapted = _scores(root, "all", *_ADAPTED)
    alone = _scores(root, "all", *_ADAPTED, weights_only=True)
    plain = _scores(root, "all", *_ADAPTED[:1])
    assert len(merged) > 10
    for name, score in merged.items():
        assert adapted[name].values == pytest.approx(score.values, rel=2e-4, abs=2e-6), name
        assert not adapted[name].weights_only
        assert alone[name].values == plain[name].values
        assert alone[name].weights_only
        assert any("left out" in note for note in alone[name].notes)
        assert adapted[name].provenance.draft not in (plain[name].provenance.draft, score.provenance.draft)
        assert adapted[name].values != plain[name].values, name
    again = _scores(root, "all", *_ADAPTED)
    assert {name: score.values for name, score in again.items()} == {
        name: score.values for name, score in adapted.items()
    }


def test_from_disk_layer_by_layer_it_is_the_same(root: Path) -> None:
    """The adapters stay in memory while the layers below them come and go."""
    patient("llama", root / "base")
    names = "block_influence,removal,activation_overlap"
    streamed = _scores(root, names, *_ADAPTED, stream=True)
    shutil.rmtree(cache_directory() / "scores")
    whole = _scores(root, names, *_ADAPTED)
    for name, score in whole.items():
        assert streamed[name].values == pytest.approx(score.values, rel=1e-5, abs=1e-7)


def test_deciles_are_those_of_the_merged_matrices(root: Path) -> None:
    """Of W + B A, not of W below it."""
    patient("llama", root / "base")

    def ablated(*steps: Any, **settings: Any) -> Any:
        job = AblateJob(roles=("mlp.up", "attention.query"), **_fields(root, *steps), **settings)
        return ablate_job(job, job_context(lambda kind, body: None, root=root)).ablations

    merged, adapted = ablated(*_ADAPTED, {"merge_adapters": {}}), ablated(*_ADAPTED)
    alone, plain = ablated(*_ADAPTED, weights_only=True), ablated(*_ADAPTED[:1])
    assert adapted["base"] == pytest.approx(merged["base"], rel=1e-5)
    for one, other in zip(adapted["rows"], merged["rows"], strict=True):
        assert one["rise"] == pytest.approx(other["rise"], rel=1e-3, abs=1e-5)
        assert one["energy"] == pytest.approx(other["energy"], rel=1e-4)
    assert alone["rows"] == plain["rows"] != adapted["rows"]
    assert alone["weights_only"]
    assert not adapted["weights_only"]


def test_a_selection_of_a_recipe_sees_the_adapters_too(root: Path) -> None:
    """What `prune lowest 2 by weight_norm` removes after a training is ranked as the model is by then."""
    patient("llama", root / "base")
    told: list[str] = []

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "log":
            told.append(body["text"])

    steps = ({"masked_lora": {"layers": "0"}}, _TRAIN)
    selecting = {"freeze": {"layers": "highest 1 by block_influence"}}
    job = ScoreJob(names=("weight_norm",), weights_only=True, **_fields(root, *steps, selecting))
    score_job(job, job_context(emit, root=root))
    chosen = next(text for text in told if "freeze" in text)
    values = _scores(root, "block_influence", *steps)["block_influence"].values
    assert str(max(values, key=lambda key: values[key])) in chosen.partition(": ")[2]


def test_a_score_that_trains_adapters_of_its_own_is_refused(root: Path) -> None:
    """It would be learned beside adapters that it cannot see."""
    patient("llama", root / "base")
    with pytest.raises(ScoreError, match="trains adapters of its own") as caught:
        _scores(root, "ila", *_ADAPTED)
    assert "--weights-only" in caught.value.hint
