"""The room without widgets: whatever is pressed in whatever order, it agrees with the session."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.errors import SelectionError
from surgeon.session import Session
from surgeon.ui.room import Room
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
}


def check(room: Room) -> None:
    """State what must hold at any time."""
    draft = room.session.draft
    living = [row for row in room.rows if row.position is not None]
    assert sorted(row.position or 0 for row in living) == list(range(len(draft.layers())))
    assert {row.key for row in living} == {layer.key for layer in draft.layers()}
    assert [row.key for row in living] == [layer.key for layer in draft.layers()]
    assert len({row.key for row in room.rows}) == len(room.rows)
    assert {str(at) for at in range(6)} <= {row.key for row in room.rows}
    assert sorted(room.order) == list(range(len(room.rows)))
    assert 0 <= room.cursor < len(room.rows)
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
