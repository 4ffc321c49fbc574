"""The state without widgets: whatever is pressed in whatever order, it agrees with the session."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.errors import SelectionError, UsageError
from surgeon.session import Session
from surgeon.ui.state.screen_state import ScreenState
from tests.ui.zero_checkpoint import write_checkpoint

MOVES: dict[str, Callable[[ScreenState], object]] = {
    "down": lambda state: state.move_to(state.cursor + 1),
    "up": lambda state: state.move_to(state.cursor - 2),
    "extend": lambda state: state.move_to(state.cursor + 1, extend=True),
    "mark": lambda state: state.toggle_mark(),
    "range": lambda state: state.toggle_range(),
    "prune": lambda state: state.start_step("prune"),
    "expand": lambda state: state.start_step("expand"),
    "freeze": lambda state: state.start_step("freeze"),
    "adapter": lambda state: state.start_step("masked_lora"),
    "extend step": lambda state: state.extend(1),
    "shrink step": lambda state: state.extend(-1),
    "apply": lambda state: state.apply_pending_step(),
    "leave": lambda state: state.discard(),
    "undo": lambda state: state.undo(),
    "redo": lambda state: state.redo(),
    "base": lambda state: state.go_to(0),
    "sort": lambda state: state.cycle_sort(),
    "only frozen": lambda state: try_filter(state, "frozen"),
    "only marked": lambda state: try_filter(state, "marked"),
    "only some": lambda state: try_filter(state, "2-4"),
    "all again": lambda state: state.filter(""),
}


def try_filter(state: ScreenState, text: str) -> None:
    """List only some rows, if any fit."""
    with contextlib.suppress(UsageError):
        state.filter(text)


def check(state: ScreenState) -> None:
    """State what must hold at any time."""
    draft = state.session.draft
    living = [row for row in state.rows if row.position is not None]
    assert sorted(row.position or 0 for row in living) == list(range(len(draft.layers())))
    assert {row.key for row in living} == {layer.key for layer in draft.layers()}
    assert [row.key for row in living] == [layer.key for layer in draft.layers()]
    assert len({row.key for row in state.rows}) == len(state.rows)
    assert {str(at) for at in range(6)} <= {row.key for row in state.rows}
    assert len(set(state.order)) == len(state.order)
    assert set(state.order) <= set(range(len(state.rows)))
    assert state.filter_text or len(state.order) == len(state.rows)
    assert 0 <= state.cursor < len(state.order)
    assert state.marks <= {row.key for row in living}
    if state.pending_step is not None:
        assert state.pending_step.evaluated


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=40))
def test_any_sequence_of_keys_keeps_the_table_and_the_session_in_step(keys: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        session = Session.open(str(write_checkpoint(Path(directory) / "model")))
        try:
            state = ScreenState(session)
            for key in keys:
                MOVES[key](state)
                check(state)
            applied = session.draft
            state.go_to(0)
            assert not session.draft.moved
            check(state)
            state.go_to(len(session.steps))
            if len(session.steps) == session.position:
                check(state)
            assert applied.structure is session.draft.structure
        finally:
            session.close()


def test_a_pruned_layer_stays_where_it_was_and_comes_back_there(session: Session) -> None:
    state = ScreenState(session)
    state.move_to(2)
    state.start_step("prune")
    state.apply_pending_step()
    assert [row.key for row in state.rows] == list("012345")
    assert [row.position for row in state.rows] == [0, 1, None, 2, 3, 4]
    assert state.rows[2].removed_by == 1
    state.undo()
    assert [row.position for row in state.rows] == [0, 1, 2, 3, 4, 5]


def test_a_draft_opened_without_marks_is_about_the_row_under_the_cursor_and_leaving_it_unmarks(
    session: Session,
) -> None:
    state = ScreenState(session)
    state.move_to(3)
    state.start_step("freeze")
    assert state.marks == {"3"}
    state.discard()
    assert state.marks == frozenset()


def test_marking_while_a_draft_is_open_changes_its_layers(session: Session) -> None:
    state = ScreenState(session)
    state.start_step("prune")
    state.move_to(4)
    state.toggle_mark()
    assert state.pending_step is not None
    assert state.pending_step.positions == (0, 4)


def test_a_plain_range_ends_with_the_next_plain_move_and_a_sticky_one_follows(session: Session) -> None:
    state = ScreenState(session)
    state.move_to(1, extend=True)
    state.move_to(2, extend=True)
    assert state.range_keys == {"0", "1", "2"}
    state.move_to(3)
    assert state.range_keys == frozenset()
    state.toggle_range()
    state.move_to(5)
    assert state.range_keys == {"3", "4", "5"}
    state.toggle_range()
    assert state.marks == {"3", "4", "5"}


def test_marking_by_a_score_that_was_not_measured_says_so(session: Session) -> None:
    with pytest.raises(SelectionError, match="has not been measured"):
        ScreenState(session).mark_selection("lowest 2 by block_influence")


def listed(state: ScreenState) -> list[str]:
    """Return the layers that are listed."""
    return [state.rows[at].key for at in state.order]


def test_a_filter_lists_states_marks_and_selections_and_leaving_lists_all_again(session: Session) -> None:
    state = ScreenState(session)
    state.session.apply(session.step("freeze", {"layers": "1,3"}))
    state.reload()
    state.filter("frozen")
    assert listed(state) == ["1", "3"]
    state.move_to(1)
    state.toggle_mark()
    state.filter("marked")
    assert listed(state) == ["3"]
    state.filter("first 2")
    assert listed(state) == ["0", "1"]
    state.discard()  # the marks
    state.discard()
    assert listed(state) == ["0", "1", "2", "3", "4", "5"]


def test_a_filter_that_nothing_fits_is_refused_and_changes_nothing(session: Session) -> None:
    state = ScreenState(session)
    with pytest.raises(UsageError, match="no layer is marked"):
        state.filter("marked")
    with pytest.raises(SelectionError, match="'frozen' is no selection"):
        state.filter("frozen")
    with pytest.raises(SelectionError, match="removal has not been measured"):
        state.filter("lowest 2 by removal")
    assert len(listed(state)) == 6
    assert not state.filter_text


def test_a_filter_that_an_undo_leaves_nothing_of_is_dropped_with_a_word(session: Session) -> None:
    state = ScreenState(session)
    session.apply(session.step("freeze", {"layers": "1,3"}))
    state.reload()
    state.filter("frozen")
    session.undo()
    state.reload()
    assert len(listed(state)) == 6
    assert state.notice is not None
    assert "all are listed again" in state.notice.text


def test_options_that_choose_matrices_mark_their_layers_and_widening_goes_back_to_layers(session: Session) -> None:
    state = ScreenState(session)
    state.start_step("freeze")
    state.set_fields({"matrices": "2.mlp.up, 4.attention"})
    assert state.pending_step is not None
    assert state.pending_step.error is None
    assert state.marks == {"2", "4"}
    state.extend(1)
    assert state.pending_step.error is None
    assert state.pending_step.fields == {"layers": "2,4-5"}
