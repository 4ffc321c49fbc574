from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.core.jobs import ScoreResult
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import load_recipe, step_to_builtins
from surgeon.errors import ArchitectureError, RecipeError, SelectionError
from surgeon.session import Session
from tests.cli.tiny_checkpoints import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def session(model: Path) -> Iterator[Session]:
    opened = Session.open(str(model))
    yield opened
    opened.close()


some = st.lists(st.integers(0, 8), min_size=1, max_size=2)
Action = tuple[str, dict[str, Any]]
histories: tuple[Action, ...] = (("undo", {}), ("redo", {}))
actions: st.SearchStrategy[Action] = st.one_of(
    st.tuples(st.just("prune"), st.fixed_dictionaries({"layers": some})),
    st.tuples(st.just("expand"), st.fixed_dictionaries({"after": some})),
    st.tuples(st.just("freeze"), st.fixed_dictionaries({"layers": some})),
    st.sampled_from(histories),
)


def act(session: Session, action: Action) -> None:
    name, fields = action
    if name in ("undo", "redo"):
        getattr(session, name)()
        return
    try:
        session.apply(session.step(name, fields))
    except (RecipeError, ArchitectureError):
        return


@settings(deadline=None, max_examples=40)
@given(script=st.lists(actions, max_size=10))
def test_after_any_script_a_session_is_the_fold_of_its_steps_and_undoes_and_redoes_them_all(
    model: Path, script: list[Any]
) -> None:
    session = Session.open(str(model))
    base = session.draft
    for action in script:
        act(session, action)
        assert session.draft == fold(base, session.steps[: session.position])
        assert session.plan == compile_plan(session.draft)
    while session.redo():
        pass
    newest, position = session.draft, session.position
    while session.undo():
        pass
    assert session.draft == base
    assert session.position == 0
    assert not session.undo()
    while session.redo():
        pass
    assert (session.draft, session.position) == (newest, position)
    session.close()


def test_a_new_step_drops_what_was_undone(session: Session) -> None:
    for layer in (0, 1, 2):
        session.apply(session.step("prune", {"layers": layer}))
    session.undo()
    session.undo()
    session.apply(session.step("prune", {"layers": 4}))
    assert [str(step.operation.selections()["layers"]) for step in session.steps] == ["0", "4"]
    assert not session.redo()


def test_a_preview_changes_nothing(session: Session) -> None:
    before = (session.draft, session.steps, session.revision)
    preview = session.preview(session.step("prune", {"layers": "1-2"}))
    assert preview.parameters_change == 4 * preview.bytes_change / 16 < 0
    assert preview.command == f"surgeon prune {session.model} --layers 1-2"
    assert (session.draft, session.steps, session.revision) == before


def test_every_edit_has_its_own_revision(session: Session) -> None:
    seen = [session.revision]
    session.apply(session.step("prune", {"layers": 0}))
    seen.append(session.revision)
    session.undo()
    seen.append(session.revision)
    session.redo()
    seen.append(session.revision)
    assert seen == sorted(set(seen))


def result_with(session: Session, values: list[float]) -> dict[str, Any]:
    keys = [layer.key for layer in session.draft.layers()]
    provenance = {"fingerprint": session.checkpoint.fingerprint, "draft": session.draft.digest}
    return {"scores": [{"name": "removal", "values": dict(zip(keys, values, strict=True)), "provenance": provenance}]}


def test_a_measured_selection_is_resolved_from_the_scores_at_hand(session: Session) -> None:
    with pytest.raises(SelectionError, match="removal has not been measured"):
        session.step("prune", {"layers": "lowest 2 by removal"})
    session.take_scores(ScoreResult(**result_with(session, [5, 1, 4, 0, 3, 2])))
    step = session.step("prune", {"layers": "lowest 2 by removal"})
    assert step.resolved == {"layers": (1, 3)}
    session.apply(step)
    with pytest.raises(SelectionError, match="removal was measured before the last edit"):
        session.step("prune", {"layers": "lowest 1 by removal"})
    session.undo()
    assert session.step("prune", {"layers": "lowest 1 by removal"}).resolved == {"layers": (3,)}


def test_a_measured_selection_says_what_it_was_measured_on(session: Session) -> None:
    """A recipe that is resolved anew, on another model, then measures on the same text."""
    result = result_with(session, [5, 1, 4, 0, 3, 2])
    result["scores"][0]["measured_on"] = "prose.jsonl"
    session.take_scores(ScoreResult(**result))
    prune = session.step("prune", {"layers": "0,lowest 2 by removal"})
    assert step_to_builtins(prune)["prune"]["layers"] == [
        "0", {"lowest": 2, "by": "removal", "data": "prose.jsonl"}
    ]  # fmt: skip
    assert prune.resolved == {"layers": (0, 1, 3)}
    freeze = session.step("freeze", {"except": "highest 1 by removal"})
    assert step_to_builtins(freeze)["freeze"]["except"] == {"highest": 1, "by": "removal", "data": "prose.jsonl"}
    with pytest.raises(SelectionError, match=r"removal was measured on prose\.jsonl, not on other\.jsonl"):
        session.step("prune", {"layers": {"lowest": 2, "by": "removal", "data": "other.jsonl"}})


def test_a_score_measured_with_other_settings_is_not_the_one_asked_for(session: Session) -> None:
    result = result_with(session, [5, 1, 4, 0, 3, 2])
    result["scores"][0]["name"] = "block_removal"
    result["scores"][0]["provenance"]["settings"] = {"longest": 4}
    session.take_scores(ScoreResult(**result))
    assert session.step("prune", {"layers": "lowest 1 by block_removal(longest=4)"}).resolved == {"layers": (3,)}
    with pytest.raises(SelectionError, match="block_removal has not been measured"):
        session.step("prune", {"layers": "lowest 1 by block_removal"})


def test_a_killed_session_is_recovered(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    code = (
        "import os, signal; from pathlib import Path; from surgeon.session import Session\n"
        f"session = Session.open({str(model)!r}, Path({str(path)!r}))\n"
        "for layer in (0, 1, 2): session.apply(session.step('prune', {'layers': layer}))\n"
        "session.undo(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    session = Session.open(str(model), path)
    assert session.recovered is not None
    assert (session.recovered.steps, session.recovered.applied) == (3, 2)
    assert len(session.draft.layers()) == 4
    assert session.redo()
    session.save()
    session.close()
    assert len(load_recipe(path).steps) == 3
    assert Session.open(str(model), path).recovered is None


def test_two_live_sessions_on_one_model_keep_their_steps_apart(model: Path) -> None:
    one, two = Session.open(str(model)), Session.open(str(model))
    one.apply(one.step("prune", {"layers": 0}))
    assert one.journal.path != two.journal.path
    assert not two.steps
    one.close()
    two.close()


def test_saving_keeps_comments_and_ends_being_unsaved(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"# mine\nversion: 1\nbase: {{model: {model}}}\nsteps:\n  - prune: {{layers: 0}}  # first\n")
    session = Session.open(str(model), path)
    session.apply(session.step("freeze", {"layers": "0-1"}))
    states = [session.unsaved]
    assert session.save() == path
    states.append(session.unsaved)
    assert states == [True, False]
    session.close()
    text = path.read_text()
    assert "# mine" in text
    assert "# first" in text
    assert load_recipe(path).base.fingerprint == session.checkpoint.fingerprint
    assert [file.name for file in tmp_path.iterdir()] == ["r.yaml"]


def test_undone_steps_are_not_saved(session: Session, tmp_path: Path) -> None:
    session.apply(session.step("prune", {"layers": 0}))
    session.apply(session.step("prune", {"layers": 1}))
    session.undo()
    assert len(load_recipe(session.save(tmp_path / "r.yaml")).steps) == 1
    assert session.redo()


def test_a_recipe_changed_by_someone_else_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    session = Session.open(str(model), tmp_path / "r.yaml")
    session.apply(session.step("prune", {"layers": 0}))
    session.save()
    theirs = session.recipe_path.read_text() + "# theirs\n" if session.recipe_path else ""
    (tmp_path / "r.yaml").write_text(theirs)
    session.apply(session.step("prune", {"layers": 1}))
    with pytest.raises(RecipeError, match="was changed by someone else"):
        session.save()
    assert (tmp_path / "r.yaml").read_text() == theirs
    session.save(tmp_path / "mine.yaml")
    session.close()
    assert len(load_recipe(tmp_path / "mine.yaml").steps) == 2


def test_another_file_is_not_overwritten(session: Session, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("version: 1\nbase: {model: other}\n")
    with pytest.raises(RecipeError, match="is there already"):
        session.save(tmp_path / "other.yaml")


def test_a_recipe_changed_since_a_crash_is_not_mixed_with_the_journal(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"version: 1\nbase: {{model: {model}}}\n")
    session = Session.open(str(model), path)
    session.apply(session.step("prune", {"layers": 0}))
    session.close(keep_journal=True)
    path.write_text(f"version: 1\nbase: {{model: {model}}}\nseed: 5\n")
    with pytest.raises(RecipeError, match="has changed since a session on it was interrupted"):
        Session.open(str(model), path)


def test_a_recipe_changed_during_a_session_is_noticed_after_a_crash_too(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"version: 1\nbase: {{model: {model}}}\n")
    session = Session.open(str(model), path)
    path.write_text(f"version: 1\nbase: {{model: {model}}}\nseed: 5\n")
    session.apply(session.step("prune", {"layers": 0}))
    session.close(keep_journal=True)
    with pytest.raises(RecipeError, match="has changed since"):
        Session.open(str(model), path)


def test_saving_without_a_name_asks_for_one(session: Session) -> None:
    with pytest.raises(RecipeError, match="no file name"):
        session.save()


def test_a_recipe_for_other_weights_does_not_open(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"version: 1\nbase: {{model: {model}, fingerprint: ffff}}\n")
    with pytest.raises(RecipeError, match=r"base\.fingerprint: was written for a model with fingerprint ffff"):
        Session.open(str(model), path)


def test_a_recipe_that_does_not_fit_is_told_when_it_is_opened(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"version: 1\nbase: {{model: {model}}}\nsteps:\n  - prune: {{layers: 9}}\n")
    with pytest.raises(SelectionError, match="9 is out of range"):
        Session.open(str(model), path)


def test_scores_of_a_session_are_measured_with_the_seed_of_its_recipe(model: Path, tmp_path: Path) -> None:
    """As `surgeon run` measures them: a learned one depends on it wholly."""
    path = tmp_path / "r.yaml"
    path.write_text(f"version: 1\nbase: {{model: {model}}}\nseed: 7\n")
    session = Session.open(str(model), path)
    assert session.score_job(("ila",), "sums.jsonl").seed == 7
    assert session.score_job(("ila",), "sums.jsonl", seed=3).seed == 3


def test_jobs_carry_the_applied_steps_and_where_their_data_is(session: Session, tmp_path: Path) -> None:
    session.apply(session.step("prune", {"layers": 0}))
    session.apply(session.step("prune", {"layers": 1}))
    session.undo()
    score = session.score_job(("weight_norm",), None, sequences=3)
    assert len(score.recipe["steps"]) == 1
    assert (score.names, score.data, score.sequences) == (("weight_norm",), None, 3)
    run = session.run_job(Path("out"), verify=False)
    assert run.out == str(Path("out").absolute())
    assert run.root == str(Path.cwd())
    session.save(tmp_path / "r.yaml")
    assert session.run_job(Path("out")).root == str(tmp_path)


def test_what_was_kept_beside_a_recipe_is_offered_when_the_model_is_opened_without_it(
    model: Path, tmp_path: Path
) -> None:
    """And the other way round; a session that lives, or a recipe that holds the steps by now, offers nothing."""
    first = Session.open(str(model))
    first.apply(first.step("prune", {"layers": [1]}))
    first.save(tmp_path / "r.yaml")
    first.apply(first.step("prune", {"layers": [2]}))
    assert Session.open(str(model)).kept == []
    first.close(keep_journal=True)
    second = Session.open(str(model))
    (kept,) = second.kept
    assert (kept.recipe, kept.applied) == (tmp_path / "r.yaml", 2)
    second.apply(second.step("freeze", {"layers": [0]}))
    second.close(keep_journal=True)
    again = Session.open(str(model), kept.recipe)
    assert again.position == 2
    assert [one.recipe for one in again.kept] == [None]
    again.save()
    again.close()
    third = Session.open(str(model))
    assert third.position == 1
    assert third.kept == []
    third.close()


def test_an_adapter_beside_a_checkpoint_is_named_where_it_is_left_out(model: Path, tmp_path: Path) -> None:
    """Of an export that holds both: its weights alone are another model."""
    export = tmp_path / "export"
    export.mkdir()
    for file in model.iterdir():
        (export / file.name).symlink_to(file)
    (export / "adapter").mkdir()
    (export / "adapter" / "adapter_config.json").write_text("{}")
    session = Session.open(str(export))
    assert any("is left out: these are the weights below it" in note for note in session.notes)
    session.close()
