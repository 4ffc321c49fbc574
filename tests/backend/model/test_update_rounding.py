"""What training loses when its result is rounded to the checkpoint's dtype, counted and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgeon.backend.model.update_rounding import Rounding
from surgeon.core.plan.learned_results import result_report
from surgeon.core.recipe.learning_step import LEARNED
from tests.backend.training_recipes import learn_args, pupil, training
from tests.jobs import perform


def _run(model: Path, out: Path, rate: float) -> tuple[dict[str, Any], list[str], int]:
    """Train, export; return the report, the warnings, and how many stored weights differ from the base's."""
    said: list[str] = []

    def emit(kind: str, body: dict[str, Any]) -> None:
        if kind == "log" and body["level"] == "warning":
            said.append(body["text"])

    args = learn_args(model, training(steps=2, learning_rate=rate), out=str(out), verify=False)
    result = perform("run", args, emit, lambda: False)
    (step,) = result["recipe"]["steps"]
    before, after = (load_file(place / "model.safetensors") for place in (model, out))
    changed = sum(int((before[name] != after[name]).sum()) for name in before)
    return dict(result_report(step["resolved"][LEARNED][0])), said, changed


@pytest.mark.parametrize(("rate", "told"), [(1e-7, True), (1e-1, False)])
def test_updates_that_bfloat16_cannot_hold_are_counted_and_told(tmp_path: Path, rate: float, told: bool) -> None:
    """The count is that of the exported bytes; a warning comes where most of the training was lost."""
    report, said, changed = _run(pupil(tmp_path, dtype=torch.bfloat16), tmp_path / "out", rate)
    rounding = report["rounding"]
    assert rounding["kept"] == changed
    assert rounding["moved"] >= changed
    assert rounding["moved"] > 0
    assert any("rounded to bfloat16" in text for text in said) == told
    assert any("rounded to bfloat16" in text for text in report["remarks"]) == told


def test_a_float32_base_loses_nothing(tmp_path: Path) -> None:
    """There is nothing to round, so nothing is counted and nothing said."""
    report, said, changed = _run(pupil(tmp_path), tmp_path / "out", 1e-7)
    assert changed > 0
    assert report["rounding"] == {"moved": 0, "kept": 0}
    assert not said


def test_half_of_the_weights_is_where_it_is_told() -> None:
    """Below a half it is worth a warning, which names the share and the dtype."""
    assert "51% of the 100 weights" in Rounding(100, 49, "bfloat16").remark
    assert Rounding(100, 50, "bfloat16").remark == ""
    assert Rounding(0, 0, "").remark == ""
