"""Edits of steps that others follow: what follows is folded again, what breaks is refused, undo takes the edit back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.core.recipe.apply_steps import fold
from surgeon.errors import ArchitectureError, DataError, RecipeError
from surgeon.session import Session
from tests.cli.tiny_checkpoints import tiny_llama

Action = tuple[Any, ...]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def session(model: Path) -> Iterator[Session]:
    opened = Session.open(str(model))
    yield opened
    opened.close()


_layers = st.lists(st.integers(0, 5), min_size=1, max_size=2)
_number = st.integers(0, 3)
_actions = st.one_of(
    st.tuples(st.sampled_from(["prune", "freeze"]), _layers),
    st.tuples(st.just("delete"), _number),
    st.tuples(st.just("duplicate"), _number),
    st.tuples(st.just("move"), _number, _number),
    st.tuples(st.just("replace"), _number, _layers),
    st.sampled_from([("undo",), ("redo",)]),
)


def _act(session: Session, action: Action) -> None:
    name, *words = action
    if name in ("undo", "redo"):
        getattr(session, name)()
    elif name in ("prune", "freeze"):
        session.apply(session.step(name, {"layers": words[0]}))
    elif words[0] >= len(session.steps) or (name == "move" and words[1] >= len(session.steps)):
        return
    elif name == "replace":
        session.replace_step(words[0], session.step_at(words[0], "prune", {"layers": words[1]}))
    else:
        getattr(session, f"{name}_step")(*words)


@settings(deadline=None, max_examples=60)
@given(script=st.lists(_actions, max_size=12))
def test_after_any_edits_a_session_is_the_fold_of_its_steps_and_goes_back_to_the_base(
    model: Path, script: list[Action]
) -> None:
    """An edit that is refused changes nothing."""
    session = Session.open(str(model))
    try:
        for action in script:
            before = (session.steps, session.position)
            try:
                _act(session, action)
            except (RecipeError, ArchitectureError):
                assert (session.steps, session.position) == before
            assert session.draft == fold(session.draft_at(0), session.steps[: session.position])
        states = []
        while session.undo():
            states.append(session.draft)
            assert len(states) < 100
        assert not session.can_undo
        assert session.position == 0
    finally:
        session.close()


def test_an_edit_of_an_early_step_is_undone_and_done_again(session: Session) -> None:
    """The later step stays, and numbers its layers after the edited one."""
    session.apply(session.step("prune", {"layers": [1]}))
    session.apply(session.step("freeze", {"layers": [0]}))
    whole = session.steps
    session.delete_step(0)
    assert session.position == 1
    assert len(session.draft.layers()) == len(session.draft_at(0).layers())
    session.undo()
    assert session.steps == whole
    session.redo()
    assert [step.operation.name for step in session.steps] == ["freeze"]


def test_what_breaks_is_named_and_nothing_is_changed(session: Session) -> None:
    """A later step that names a layer which is then not there."""
    count = len(session.draft.layers())
    session.apply(session.step("expand", {"after": [0]}))
    session.apply(session.step("prune", {"layers": [count]}))
    with pytest.raises(RecipeError, match=r"steps\[0\].prune"):
        session.delete_step(0)
    assert session.position == 2


def test_a_step_that_reads_what_is_not_there_is_no_step(session: Session) -> None:
    """An evaluation and a training alike."""
    for operation, fields in (("evaluate", {}), ("train", {"objective": "lm"})):
        with pytest.raises(DataError, match="there is no file") as caught:
            session.step(operation, {**fields, "data": "nosuch.jsonl"})
        assert caught.value.where == f"{operation}.data"
