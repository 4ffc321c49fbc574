"""The main screen, driven by keys: state first, then what is to be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon.core.recipe.recipe import load_recipe
from surgeon.core.scoring.score import Provenance, Score
from surgeon.session import Session
from surgeon.ui.app import SurgeonApp
from surgeon.ui.screens.dialogs import ErrorDialog
from tests.ui.conftest import Drive, Operator, fake_worker


async def test_the_first_screen_lists_every_layer_and_says_how_to_go_on(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        assert [row.position for row in operator.room.rows] == list(range(6))
        assert "▶  0" in operator.text
        assert "tiny-llama" in operator.line("surgeon")
        assert "S measures importance" in operator.text
        assert len(operator.text.splitlines()) == 24

    await drive(scenario)


async def test_scores_arrive_as_numbers_bars_and_dots(drive: Drive, tmp_path: Path) -> None:
    """Some layers are there, the rest are pending; then all are there."""
    gate = tmp_path / "gate"

    async def scenario(operator: Operator) -> None:
        await operator.measure()
        columns = operator.room.board.columns
        await operator.until(lambda: "block_influence" in columns and len(columns["block_influence"].values) == 2)
        assert "···" in operator.text
        assert ".250" in operator.line("▶  0")
        assert "█" in operator.line("▶  0")
        assert "x cancels" in operator.text
        gate.touch()
        await operator.measured()
        assert "···" not in operator.text
        assert set(operator.session.scores) == {"block_influence", "weight_norm"}
        assert "measured" in operator.text

    await drive(scenario, worker=fake_worker("--pause-after", "4", "--gate", str(gate)))


async def test_a_matrix_that_was_not_trained_has_a_mark_and_no_number(drive: Drive) -> None:
    """Its place in the ranking was drawn by lot."""
    names = ("mlp.up_proj", "mlp.down_proj")
    score = Score(
        name="ila", values={"1": 4.5}, matrices={"1": {"mlp.up_proj.weight": 4.375, "mlp.down_proj.weight": 3.25}},
        details={"not_trained": ["model.layers/1/mlp.down_proj"]}, provenance=Provenance(fingerprint="ff"),
    )  # fmt: skip

    async def scenario(operator: Operator) -> None:
        operator.room.board.take(score)
        await operator.press("j")
        assert "4.375" in operator.line(names[0])
        assert "·" in operator.line(names[1])
        assert "3.25" not in operator.text
        assert "· was not trained" in operator.text
        await operator.press("j")
        assert "was not trained" not in operator.text

    await drive(scenario, size=(140, 50))


async def test_a_layer_that_cannot_be_measured_is_marked_and_the_others_stand(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.measured()
        assert operator.room.board.columns["block_influence"].failed == {"3"}
        await operator.press("j", "j", "j")
        assert "!" in operator.line("▶  3")
        assert "failed" in operator.line("▶  3")

    await drive(scenario, worker=fake_worker("--fail", "3"))


async def test_a_draft_shows_its_consequence_and_its_command_before_it_is_applied(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.measured()
        await operator.press("j", "j", "space", "d")
        assert operator.session.position == 0
        assert "DRAFT" in operator.text
        assert "6→5 layers" in operator.text
        assert "Σ BI .050" in operator.text
        assert "--layers 2" in operator.text
        await operator.press("right", "right")
        assert "6→3 layers" in operator.text
        assert "--layers 2-4" in operator.text
        await operator.press("left", "enter")
        assert operator.session.position == 1
        assert [layer.key for layer in operator.session.draft.layers()] == ["0", "1", "4", "5"]
        assert "DRAFT" not in operator.text
        assert "pruned·1" in operator.text
        assert ".250~" in operator.text  # measured before the edit

    await drive(scenario)


async def test_a_draft_that_cannot_be_done_says_why_and_enter_does_nothing(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("v", "G", "d")
        assert "removes all 6 layers" in operator.text
        await operator.press("enter")
        assert operator.session.position == 0
        assert "at least one layer must stay" in operator.text
        await operator.press("escape")
        assert operator.room.proposal is None

    await drive(scenario)


async def test_freeze_expand_and_adapter_are_seen_in_the_state_of_their_layers(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("f", "enter", "j", "a", "enter", "e", "enter")
        assert operator.session.position == 3
        assert "FROZEN" in operator.line(" 0 0")
        assert "LoRA8" in operator.line(" 1 1")
        assert "new" in operator.line("1+1")

    await drive(scenario)


async def test_undo_and_redo_walk_the_recipe_and_the_pane_shows_where(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("d", "enter", "j", "f", "enter", "u")
        assert operator.session.position == 1
        await operator.press("3")
        assert "✓ prune 0" in operator.text
        assert "○ freeze" in operator.text
        await operator.press("k", "enter")
        assert operator.session.position == 0
        await operator.press("G", "enter")
        assert operator.session.position == 2

    await drive(scenario)


async def test_the_options_form_is_made_from_the_fields_of_the_operation(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("e", "O")
        assert "duplicate" in operator.text
        await operator.press("tab", "right", "right", "enter")
        assert operator.room.proposal is not None
        assert operator.room.proposal.fields["init"] == "duplicate"
        assert "--init duplicate" in operator.text
        await operator.press("enter")
        assert operator.session.steps[0].operation.init == "duplicate"  # type: ignore[attr-defined]

    await drive(scenario)


async def test_the_layers_of_a_draft_can_be_chosen_by_a_measured_score_in_the_form(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.measured()
        await operator.press("d", "O", "end", "ctrl+u")
        await operator.type("lowest 2 by block_influence")
        await operator.press("enter")
        assert operator.room.proposal is not None
        assert operator.room.proposal.positions == (2, 3)
        assert operator.room.marks == {"2", "3"}
        await operator.press("enter")
        assert operator.session.steps[0].resolved == {"layers": (2, 3)}

    await drive(scenario)


async def test_a_typed_command_is_judged_while_it_is_typed_and_then_applied(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("colon")
        await operator.type("prune --layers 9")
        assert "out of range" in operator.text
        await operator.press("enter")
        assert operator.session.position == 0
        await operator.press("backspace")
        await operator.type("1-2")
        assert "6→4 layers" in operator.text
        await operator.press("enter")
        assert operator.session.position == 1
        await operator.press("colon")
        await operator.type("undo")
        await operator.press("enter")
        assert operator.session.position == 0

    await drive(scenario)


async def test_scores_are_measured_and_marked_from_the_command_line_too(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("colon")
        await operator.type("score --by block_influence")
        await operator.press("enter")
        await operator.measured()
        assert set(operator.session.scores) == {"block_influence"}
        await operator.press("asterisk")
        await operator.type("lowest 3 by block_influence")
        await operator.press("enter")
        assert operator.room.marks == {"1", "2", "3"}

    await drive(scenario)


async def test_sorting_keeps_the_cursor_on_its_layer_and_marks_on_theirs(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.measured()
        await operator.press("j", "space", "s")
        keys = [operator.room.rows[at].key for at in operator.room.order]
        assert keys[0] == "5"
        assert operator.room.row.key == "2"
        assert operator.room.marks == {"1"}

    await drive(scenario)


async def test_writing_asks_for_a_name_and_what_is_written_is_the_recipe(drive: Drive, tmp_path: Path) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("d", "enter", "w", "end", "ctrl+u")
        await operator.type(f"{tmp_path}/slim.yaml")
        await operator.press("enter")
        assert load_recipe(tmp_path / "slim.yaml").steps == operator.session.steps
        assert "recipe written to" in operator.text
        assert not operator.session.unsaved

    await drive(scenario)


async def test_exporting_says_what_it_will_take_and_where_it_went(drive: Drive, tmp_path: Path) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("d", "enter", "E")
        assert "5 layers" in operator.text
        assert "free there" in operator.text
        await operator.press("end", "ctrl+u")
        await operator.type(str(tmp_path / "out"))
        await operator.press("enter")
        await operator.measured()
        assert (tmp_path / "out").is_dir()
        assert "exported to" in operator.text
        assert "proven equal" in operator.text

    await drive(scenario)


async def test_an_export_that_fails_is_told_in_full_and_loses_nothing(drive: Drive, tmp_path: Path) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("d", "enter", "colon")
        await operator.type(f"export {tmp_path}/refused")
        await operator.press("enter")
        await operator.until(lambda: isinstance(operator.app.screen, ErrorDialog))
        assert "is there already" in operator.text
        assert "refused" in operator.text
        assert "a new one" in operator.text
        await operator.press("escape")
        assert operator.session.position == 1

    await drive(scenario)


async def test_quitting_asks_when_steps_are_not_written(session: Session) -> None:
    app = SurgeonApp(session, fake_worker())
    async with app.run_test(size=(80, 24)) as pilot:
        operator = Operator(app, pilot)
        await operator.press("d", "enter", "q")
        assert "recovers them" in operator.text
        await operator.press("escape")
        assert app.is_running
        await operator.press("q", "k")
        await operator.until(lambda: app.return_value == 0)
    assert app.keep_journal


async def test_a_key_that_does_nothing_now_says_why(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        for key, reason in (
            ("u", "this is the base"),
            ("x", "no job"),
            ("s", "no scores yet"),
            ("O", "nothing is drafted"),
        ):
            await operator.press(key)
            assert reason in operator.text

    await drive(scenario)


async def test_a_terminal_that_is_too_small_says_what_it_needs(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        assert "needs 80×24" in operator.text
        assert "60×16" in operator.text

    await drive(scenario, size=(60, 16))


async def test_a_wide_terminal_shows_table_layer_and_recipe_at_once(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("j", "d", "enter")
        assert "5 layers" in operator.text
        assert "self_attn.q_proj" in operator.text
        assert "✓ prune 1" in operator.text

    await drive(scenario, size=(120, 36))


async def test_help_and_log_are_read_and_left(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("question_mark")
        assert "half a page down" in operator.text
        await operator.press("escape", "L")
        assert "what libraries print" in operator.text
        await operator.press("escape")
        assert operator.app.screen is operator.main

    await drive(scenario)


async def test_a_click_chooses_a_row_and_a_click_on_a_score_sorts(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.measure()
        await operator.measured()
        await operator.pilot.click("#layers", offset=(5, 4))
        assert operator.room.row.key == "3"
        await operator.pilot.click("#layers", offset=(70, 0))
        await operator.pilot.pause()
        assert operator.room.sort == ("weight_norm", True)

    await drive(scenario)


async def test_recovered_steps_are_told_and_can_be_undone(tiny: Path) -> None:
    first = Session.open(str(tiny))
    first.apply(first.step("prune", {"layers": "1"}))
    first.close(keep_journal=True)
    again = Session.open(str(tiny))
    app = SurgeonApp(again, fake_worker())
    async with app.run_test(size=(80, 24)) as pilot:
        operator = Operator(app, pilot)
        await pilot.pause()
        assert "recovered 1 step" in operator.text
        await operator.press("u")
        assert again.position == 0
    again.close()


async def test_a_draft_on_a_model_of_very_many_tensors_is_judged_when_the_keys_rest(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.ui.state.screen_state._MANY_TENSORS", 3)

    async def scenario(operator: Operator) -> None:
        await operator.press("d", "right", "right")
        assert operator.room.proposal is not None
        assert operator.room.proposal.positions == (0, 1, 2)
        await operator.until(lambda: "6→3 layers" in operator.text)
        await operator.press("left", "enter")
        assert len(operator.session.draft.layers()) == 4

    await drive(scenario)


@pytest.mark.parametrize("theme", ["surgeon-light", "nord", "textual-light", "ansi-dark"])
async def test_every_theme_paints_the_screen(session: Session, monkeypatch: pytest.MonkeyPatch, theme: str) -> None:
    monkeypatch.setenv("TEXTUAL_THEME", theme)
    app = SurgeonApp(session, fake_worker())
    async with app.run_test(size=(120, 36)) as pilot:
        operator = Operator(app, pilot)
        await operator.press("d")
        assert app.theme == theme
        assert app.screen.styles.background.brightness > 0.5 or app.current_theme.dark
        assert "6→5 layers" in operator.text
        app.theme = "surgeon-dark"
        await operator.press("enter")
        assert "pruned·1" in operator.text


async def test_slash_lists_only_what_fits_and_esc_lists_all_again(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("j", "j", "f", "enter", "slash")
        await operator.type("frozen")
        await operator.press("enter")
        assert "only frozen: 1 of 6 rows" in operator.text
        assert "▶  2" in operator.text
        assert "   3 " not in operator.text
        await operator.press("j", "d")
        assert "--layers 2" in operator.text
        await operator.press("escape", "escape")
        assert "only frozen" not in operator.text
        assert "   3 " in operator.text

    await drive(scenario)


async def test_the_model_is_compared_with_its_base_and_config_fields_that_changed_are_named(drive: Drive) -> None:
    async def scenario(operator: Operator) -> None:
        await operator.press("c")
        assert "config.json stays as it is" in operator.text
        await operator.press("escape", "d", "enter", "c")
        assert operator.line(" layers").split()[1:4] == ["layers", "6", "5"]
        assert operator.line("num_hidden_layers").split()[1:4] == ["num_hidden_layers", "6", "5"]
        await operator.press("escape")
        assert "pruned·1" in operator.text

    await drive(scenario)
