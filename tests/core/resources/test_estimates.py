"""What work takes, told from headers: against sums done by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.core.recipe.training_memory import training_bytes
from surgeon.core.resources import estimates
from surgeon.core.resources.estimates import Estimator, Work, loaded_bytes
from surgeon.core.resources.machine import PROCESS_BYTES, Machine, keep_machine, known_machine
from surgeon.core.scoring.requests import requested_scores
from tests.scores.sample_models import open_draft, patient

MACHINE = Machine(
    device="cpu", dtype="float32", memory_bytes=10**12, operations=1e6, decompositions=1e6, copied=1e9, read=1e6
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patient("llama", tmp_path_factory.mktemp("plan") / "base")


def works(base: Path, names: str, memory: int = 10**12, machine: Machine = MACHINE) -> list[Work]:
    kinds = requested_scores(names.split(","))
    return list(Estimator(machine, memory).scores(open_draft(base), kinds, 1000, "score"))


def training_step(base: Path) -> LearningStep:
    """Return a step on running text."""
    steps = [{"train": {"objective": "lm", "steps": 3}}]
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(base)}, "steps": steps})
    step = recipe.steps[0].operation
    assert isinstance(step, LearningStep)
    return step


def test_a_forward_takes_two_operations_for_each_weight_and_token(base: Path) -> None:
    """Of the layers and the head; the embedding is looked up."""
    draft = open_draft(base)
    stack = draft.structure.stack()
    weights = sum(layer.layout.parameters for layer in stack.layers)
    head = draft.structure.outside["lm_head.weight"].parameters
    stored = draft.structure.checkpoint.nbytes
    (work,) = works(base, "block_influence")
    expected = stored / 1e6 + stored / 1e9 + 2 * 1000 * (weights + head) / 1e6
    assert work.seconds == pytest.approx(expected)
    assert (work.forwards, work.read_bytes, work.fits, work.setting) == (1.0, stored, True, "")
    assert work.memory_bytes > loaded_bytes(draft.structure.checkpoint, 4) + PROCESS_BYTES["cpu"]


def test_what_does_not_fit_is_streamed_and_gradients_are_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by the setting; where two layers do not fit either, that is said."""
    whole = loaded_bytes(open_draft(base).structure.checkpoint, 4)
    streamed, gradients = works(base, "block_influence,fisher", memory=whole)
    assert "two layers" in streamed.setting
    assert (streamed.fits, gradients.fits) == (False, False)
    assert "whole model" in gradients.setting
    monkeypatch.setattr(Estimator, "_process", 0)
    monkeypatch.setattr(Estimator, "_logits", 0)
    monkeypatch.setattr(estimates, "_STATES", 0)
    monkeypatch.setattr(estimates, "batch_tokens", lambda _: 0)
    (streamed,) = works(base, "block_influence", memory=whole)
    assert (streamed.fits, streamed.setting) == (True, "--stream")
    assert streamed.memory_bytes < whole


def test_singular_values_are_counted_where_a_score_asks_for_them(base: Path) -> None:
    """M n min(m, n) for each matrix."""
    (plain,) = works(base, "weight_norm")
    (spectra,) = works(base, "stable_rank")
    layouts = [layer.layout for layer in open_draft(base).structure.stack().layers]
    shapes = [one.shape for layout in layouts for one in layout.types.values() if len(one.shape) > 1]
    assert plain.seconds is not None
    assert spectra.seconds is not None
    assert spectra.seconds - plain.seconds == pytest.approx(sum(m * n * min(m, n) for m, n in shapes) / 1e6)


def test_training_takes_what_its_own_formula_says(base: Path) -> None:
    """One formula; a step that does not fit names what makes it fit, or that nothing does."""
    draft = open_draft(base)
    plan, step = compile_plan(draft), training_step(base)
    work = Estimator(MACHINE, 10**12, gpus=2).training(step, draft, plan, 3 * 8 * 512, "train")
    assert work.memory_bytes == PROCESS_BYTES["cpu"] + training_bytes(step, draft, plan)
    small = Estimator(MACHINE, 10**6).training(step, draft, plan, None, "train")
    assert not small.fits
    assert "masked_lora" in small.setting
    assert small.seconds is None


@given(st.integers(1, 4), st.integers(1, 4))
def test_more_gpus_never_take_longer(base: Path, few: int, more: int) -> None:
    """They share the batches."""
    draft = open_draft(base)
    plan, step = compile_plan(draft), training_step(base)
    first, second = (
        Estimator(MACHINE, 10**12, gpus=count).training(step, draft, plan, 100, "train").seconds or 0.0
        for count in (few, few + more)
    )
    assert second <= first


def test_a_machine_is_kept_by_device_and_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unknown or broken counts as not measured."""
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path))
    assert known_machine(None, None) is None
    keep_machine(MACHINE, None, None)
    keep_machine(msgspec.structs.replace(MACHINE, device="cuda:1"), "cuda:1", "bfloat16")
    assert known_machine(None, None) == MACHINE
    assert known_machine("cuda:1", "bfloat16") != MACHINE
    (tmp_path / "machine" / "default-default.json").write_text("{")
    assert known_machine(None, None) is None


def test_a_draft_is_estimated_as_its_steps_left_it(base: Path) -> None:
    """Fewer layers, fewer bytes."""
    kinds = requested_scores(["weight_norm"])
    (whole,) = Estimator(MACHINE, 10**12).scores(open_draft(base), kinds, 10, "")
    (pruned,) = Estimator(MACHINE, 10**12).scores(open_draft(base, {"prune": {"layers": [1]}}), kinds, 10, "")
    assert pruned.read_bytes < whole.read_bytes
