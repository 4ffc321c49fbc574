"""Tasks of the lm-evaluation-harness on the model in memory; the real harness where it is installed."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from surgeon.backend.evaluation import lm_eval as harness
from surgeon.core.recipe.evaluation_metrics import Measure, RawResults
from surgeon.core.scoring.score import Average
from surgeon.errors import DataError, RecipeError, UsageError
from tests.backend.tiny_models import save_tiny, write_tokenizer
from tests.export.replaying import run

_QUESTIONS = [
    ("One and one?", ["two", "three"], 0), ("A colour?", ["stone", "red"], 1), ("A fish?", ["cod", "hen"], 0),
    ("A bird?", ["cod", "hen", "rabbit"], 1), ("Not a bird?", ["owl", "stone", "kite"], 1),
]  # fmt: skip
_TASK = """task: mini
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    place = save_tiny("llama", tmp_path / "base", max_position_embeddings=256)
    write_tokenizer(place)
    rows = [{"question": asked, "choices": choices, "answer": right} for asked, choices, right in _QUESTIONS]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mini.yaml").write_text(_TASK.format(data=tmp_path / "q.jsonl"))
    return place


def _missing(name: str) -> str:
    raise PackageNotFoundError(name)


def test_without_the_harness_it_is_said_how_to_get_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any model is loaded."""
    monkeypatch.setattr(harness, "version", _missing)
    with pytest.raises(UsageError, match=r"lm-eval is not installed(.|\n)*pip install 'model-surgeon\[lm-eval\]'"):
        run(base, tmp_path / "out", {"evaluate": {"metric": "lm_eval", "tasks": ["piqa"]}})


@pytest.mark.parametrize("fields", [{"metric": "lm_eval"}, {"metric": "perplexity", "tasks": ["piqa"]}])
def test_tasks_and_the_metric_go_together(base: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"steps\[0\]\.evaluate\.tasks"):
        run(base, tmp_path / "out", {"evaluate": fields})


def test_figures_are_named_by_task_metric_and_filter() -> None:
    """Standard errors where the harness has them; aliases and sample counts are no figures."""
    results: dict[str, dict[str, Any]] = {
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.125},
        "arc": {"acc,none": 0.5, "acc_stderr,none": "N/A", "sample_len": 5},
    }
    figures = harness.named_figures(results)
    assert {name: (one.value, one.error) for name, one in figures.items()} == {
        "arc/acc": (0.5, None), "gsm8k/exact_match,strict-match": (0.25, 0.125)
    }  # fmt: skip


def test_a_task_file_of_ones_own_is_run_again_each_time(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It and whatever it names may have changed; a task that the harness knows by name is measured once."""
    asked: list[tuple[str, ...]] = []

    def figures(model: Any, tokenizer: Any, measure: Measure, seed: int) -> RawResults:
        asked.append(measure.tasks)
        return RawResults(figures={"acc": Average(0.5)})

    monkeypatch.setattr(harness, "version", lambda name: "0")
    monkeypatch.setattr(harness, "harness_figures", figures)
    own = str(tmp_path / "mini.yaml")
    for number, task in enumerate((own, own, "piqa", "piqa")):
        run(base, tmp_path / f"out{number}", {"evaluate": {"metric": "lm_eval", "tasks": [task]}})
    assert asked == [(own,), (own,), ("piqa",)]


@pytest.mark.filterwarnings("ignore")
def test_the_harness_measures_the_edited_model_as_it_measures_its_export(base: Path, tmp_path: Path) -> None:
    """On the live model after a prune, without exporting; against the harness on what was exported."""
    pytest.importorskip("lm_eval")
    from transformers import AutoModelForCausalLM

    from surgeon.backend.model.loading import load_tokenizer

    task = str(tmp_path / "mini.yaml")
    step = {"evaluate": {"metric": "lm_eval", "tasks": [task], "max_length": 128}}
    steps: list[Any] = [{"prune": {"layers": [1, 2]}}, step]
    (found,) = run(base, tmp_path / "out", *steps)["evaluations"]

    exported: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    measure = Measure(kind="tasks", tasks=(task,), max_length=128)
    expected: RawResults = harness.harness_figures(exported, load_tokenizer(base), measure, 0)
    assert found["figures"] == {"mini/acc": {"value": expected.figures["mini/acc"].value,
                                             "error": expected.figures["mini/acc"].error}}  # fmt: skip
    assert 0 < found["figures"]["mini/acc"]["error"] < 0.3


@pytest.mark.filterwarnings("ignore")
def test_a_task_that_does_not_exist_is_named(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(DataError, match="no_such_task"):
        run(base, tmp_path / "out", {"evaluate": {"metric": "lm_eval", "tasks": ["no_such_task"]}})
