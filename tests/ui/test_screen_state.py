"""The room without widgets: whatever is pressed in whatever order, it agrees with the session."""

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
from surgeon.ui.state.screen_state import Room
from tests.ui.conftest import write_checkpoint

MOVES: dict[str, Callable[[Room], object]] = {
    "down": lambda room: room.move_to(room.cursor + 1),
    "up": lambda room: room.move_to(room.cursor - 2),
    "extend": lambda room: room.move_to(room.cursor + 1, extend=True),
    "mark": lambda room: room.toggle_mark(),
    "range": lambda room: room.toggle_range(),
    "prune": lambda room: room.open_proposal("prune"),
    "expand": lambda room: room.open_proposal("expand"),
    "freeze": lambda room: room.open_proposal("freeze"),
    "adapter": lambda room: room.open_proposal("masked_lora"),
    "widen": lambda room: room.widen(1),
    "narrow": lambda room: room.widen(-1),
    "apply": lambda room: room.apply(),
    "leave": lambda room: room.leave(),
    "undo": lambda room: room.undo(),
    "redo": lambda room: room.redo(),
    "base": lambda room: room.go_to(0),
    "sort": lambda room: room.cycle_sort(),
    "only frozen": lambda room: try_filter(room, "frozen"),
    "only marked": lambda room: try_filter(room, "marked"),
    "only some": lambda room: try_filter(room, "2-4"),
    "all again": lambda room: room.filter(""),
}


def try_filter(room: Room, text: str) -> None:
    """List only some rows, if any fit."""
    with contextlib.suppress(UsageError):
        room.filter(text)


def check(room: Room) -> None:
    """State what must hold at any time."""
    draft = room.session.draft
    living = [row for row in room.rows if row.position is not None]
    assert sorted(row.position or 0 for row in living) == list(range(len(draft.layers())))
    assert {row.key for row in living} == {layer.key for layer in draft.layers()}
    assert [row.key for row in living] == [layer.key for layer in draft.layers()]
    assert len({row.key for row in room.rows}) == len(room.rows)
    assert {str(at) for at in range(6)} <= {row.key for row in room.rows}
    assert len(set(room.order)) == len(room.order)
    assert set(room.order) <= set(range(len(room.rows)))
    assert room.wanted or len(room.order) == len(room.rows)
    assert 0 <= room.cursor < len(room.order)
    assert room.marks <= {row.key for row in living}
    if room.proposal is not None:
        assert room.proposal.judged


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=40))
def test_any_sequence_of_keys_keeps_the_table_and_the_session_in_step(keys: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        session = Session.open(str(write_checkpoint(Path(directory) / "model")))
        try:
            room = Room(session)
            for key in keys:
                MOVES[key](room)
                check(room)
            applied = session.draft
            room.go_to(0)
            assert not session.draft.moved
            check(room)
            room.go_to(len(session.steps))
            if len(session.steps) == session.position:
                check(room)
            assert applied.structure is session.draft.structure
        finally:
            session.close()


def test_a_pruned_layer_stays_where_it_was_and_comes_back_there(session: Session) -> None:
    room = Room(session)
    room.move_to(2)
    room.open_proposal("prune")
    room.apply()
    assert [row.key for row in room.rows] == list("012345")
    assert [row.position for row in room.rows] == [0, 1, None, 2, 3, 4]
    assert room.rows[2].removed_by == 1
    room.undo()
    assert [row.position for row in room.rows] == [0, 1, 2, 3, 4, 5]


def test_a_draft_opened_without_marks_is_about_the_row_under_the_cursor_and_leaving_it_unmarks(
    session: Session,
) -> None:
    room = Room(session)
    room.move_to(3)
    room.open_proposal("freeze")
    assert room.marks == {"3"}
    room.leave()
    assert room.marks == frozenset()


def test_marking_while_a_draft_is_open_changes_its_layers(session: Session) -> None:
    room = Room(session)
    room.open_proposal("prune")
    room.move_to(4)
    room.toggle_mark()
    assert room.proposal is not None
    assert room.proposal.positions == (0, 4)


def test_a_plain_range_ends_with_the_next_plain_move_and_a_sticky_one_follows(session: Session) -> None:
    room = Room(session)
    room.move_to(1, extend=True)
    room.move_to(2, extend=True)
    assert room.range_keys == {"0", "1", "2"}
    room.move_to(3)
    assert room.range_keys == frozenset()
    room.toggle_range()
    room.move_to(5)
    assert room.range_keys == {"3", "4", "5"}
    room.toggle_range()
    assert room.marks == {"3", "4", "5"}


def test_marking_by_a_score_that_was_not_measured_says_so(session: Session) -> None:
    with pytest.raises(SelectionError, match="has not been measured"):
        Room(session).mark_selection("lowest 2 by block_influence")


def listed(room: Room) -> list[str]:
    """Return the layers that are listed."""
    return [room.rows[at].key for at in room.order]


def test_a_filter_lists_states_marks_and_selections_and_leaving_lists_all_again(session: Session) -> None:
    room = Room(session)
    room.session.apply(session.step("freeze", {"layers": "1,3"}))
    room.renew()
    room.filter("frozen")
    assert listed(room) == ["1", "3"]
    room.move_to(1)
    room.toggle_mark()
    room.filter("marked")
    assert listed(room) == ["3"]
    room.filter("first 2")
    assert listed(room) == ["0", "1"]
    room.leave()  # the marks
    room.leave()
    assert listed(room) == ["0", "1", "2", "3", "4", "5"]


def test_a_filter_that_nothing_fits_is_refused_and_changes_nothing(session: Session) -> None:
    room = Room(session)
    with pytest.raises(UsageError, match="no layer is marked"):
        room.filter("marked")
    with pytest.raises(SelectionError, match="'frozen' is no selection"):
        room.filter("frozen")
    with pytest.raises(SelectionError, match="removal has not been measured"):
        room.filter("lowest 2 by removal")
    assert len(listed(room)) == 6
    assert not room.wanted


def test_a_filter_that_an_undo_leaves_nothing_of_is_dropped_with_a_word(session: Session) -> None:
    room = Room(session)
    session.apply(session.step("freeze", {"layers": "1,3"}))
    room.renew()
    room.filter("frozen")
    session.undo()
    room.renew()
    assert len(listed(room)) == 6
    assert room.notice is not None
    assert "all are listed again" in room.notice.text


def test_options_that_choose_matrices_mark_their_layers_and_widening_goes_back_to_layers(session: Session) -> None:
    room = Room(session)
    room.open_proposal("freeze")
    room.set_fields({"matrices": "2.mlp.up, 4.attention"})
    assert room.proposal is not None
    assert room.proposal.error is None
    assert room.marks == {"2", "4"}
    room.widen(1)
    assert room.proposal.error is None
    assert room.proposal.fields == {"layers": "2,4-5"}
