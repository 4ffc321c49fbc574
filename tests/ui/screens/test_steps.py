"""Steps on screen: drafted, edited, typed, applied, undone."""

from __future__ import annotations

import pytest

from tests.ui.app_driver import AppDriver, Drive


async def test_a_draft_shows_its_consequence_and_its_command_before_it_is_applied(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.job_ended()
        await driver.press("j", "j", "space", "d")
        assert driver.session.position == 0
        assert "DRAFT" in driver.text
        assert "6→5 layers" in driver.text
        assert "Σ BI .050" in driver.text
        assert "--layers 2" in driver.text
        await driver.press("right", "right")
        assert "6→3 layers" in driver.text
        assert "--layers 2-4" in driver.text
        await driver.press("left", "enter")
        assert driver.session.position == 1
        assert [layer.key for layer in driver.session.draft.layers()] == ["0", "1", "4", "5"]
        assert "DRAFT" not in driver.text
        assert "pruned·1" in driver.text
        assert ".250~" in driver.text  # measured before the edit

    await drive(scenario)


async def test_a_draft_that_cannot_be_done_says_why_and_enter_does_nothing(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("v", "G", "d")
        assert "removes all 6 layers" in driver.text
        await driver.press("enter")
        assert driver.session.position == 0
        assert "at least one layer must stay" in driver.text
        await driver.press("escape")
        assert driver.state.pending_step is None

    await drive(scenario)


async def test_freeze_expand_and_adapter_are_seen_in_the_state_of_their_layers(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("f", "enter", "j", "a", "enter", "e", "enter")
        assert driver.session.position == 3
        assert "FROZEN" in driver.line(" 0 0")
        assert "LoRA8" in driver.line(" 1 1")
        assert "new" in driver.line("1+1")

    await drive(scenario)


async def test_undo_and_redo_walk_the_recipe_and_the_pane_shows_where(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("d", "enter", "j", "f", "enter", "u")
        assert driver.session.position == 1
        await driver.press("3")
        assert "✓ prune 0" in driver.text
        assert "○ freeze" in driver.text
        await driver.press("k", "enter")
        assert driver.session.position == 0
        await driver.press("G", "enter", "u")
        assert driver.session.position == 2

    await drive(scenario)


async def test_the_options_form_is_made_from_the_fields_of_the_operation(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("e", "O")
        assert "duplicate" in driver.text
        await driver.press("tab", "right", "right", "enter")
        assert driver.state.pending_step is not None
        assert driver.state.pending_step.fields["init"] == "duplicate"
        assert "--init duplicate" in driver.text
        await driver.press("enter")
        assert driver.session.steps[0].operation.init == "duplicate"  # type: ignore[attr-defined]

    await drive(scenario)


async def test_the_layers_of_a_draft_can_be_chosen_by_a_measured_score_in_the_form(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.measure()
        await driver.job_ended()
        await driver.press("d", "O", "end", "ctrl+u")
        await driver.type("lowest 2 by block_influence")
        await driver.press("enter")
        assert driver.state.pending_step is not None
        assert driver.state.pending_step.positions == (2, 3)
        assert driver.state.marks == {"2", "3"}
        await driver.press("enter")
        assert driver.session.steps[0].resolved == {"layers": (2, 3)}

    await drive(scenario)


async def test_a_typed_command_is_evaluated_while_it_is_typed_and_then_applied(drive: Drive) -> None:
    async def scenario(driver: AppDriver) -> None:
        await driver.press("colon")
        await driver.type("prune --layers 9")
        assert "out of range" in driver.text
        await driver.press("enter")
        assert driver.session.position == 0
        await driver.press("backspace")
        await driver.type("1-2")
        assert "6→4 layers" in driver.text
        await driver.press("enter")
        assert driver.session.position == 1
        await driver.press("colon")
        await driver.type("undo")
        await driver.press("enter")
        assert driver.session.position == 0

    await drive(scenario)


async def test_a_draft_on_a_model_of_very_many_tensors_is_evaluated_when_the_keys_rest(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.ui.state.screen_state._MANY_TENSORS", 3)

    async def scenario(driver: AppDriver) -> None:
        await driver.press("d", "right", "right")
        assert driver.state.pending_step is not None
        assert driver.state.pending_step.positions == (0, 1, 2)
        await driver.wait_until(lambda: "6→3 layers" in driver.text)
        await driver.press("left", "enter")
        assert len(driver.session.draft.layers()) == 4

    await drive(scenario)


async def test_a_command_behind_other_steps_is_marked_as_one_of_several(drive: Drive) -> None:
    """Pasted on a shell it would act on the base; on the `:` line it is right."""

    async def scenario(driver: AppDriver) -> None:
        await driver.press("d")
        assert "$ surgeon prune" in driver.text
        await driver.press("enter", "j", "f")
        assert "$ surgeon" not in driver.text
        assert ": freeze --layers 0" in driver.text
        assert "step 2; w writes the whole recipe" in driver.text

    await drive(scenario)


async def test_an_operation_without_layers_is_drafted_on_a_pruned_row_too(drive: Drive) -> None:
    """Which row the cursor is on says nothing of it."""

    async def scenario(driver: AppDriver) -> None:
        await driver.press("d", "enter", "g", "f")
        assert "has been pruned" in driver.text
        await driver.press("m", "enter")
        assert driver.state.pending_step is not None
        assert driver.state.pending_step.operation == "evaluate"

    await drive(scenario)


async def test_marks_by_a_selection_are_recorded_as_the_selection(drive: Drive) -> None:
    """With what it came to beside it; a change of the marks makes them numbers."""

    async def scenario(driver: AppDriver) -> None:
        await driver.measure("weight_norm")
        await driver.job_ended()
        await driver.press("asterisk")
        await driver.type("lowest 2 by weight_norm")
        await driver.press("enter", "d")
        assert "lowest 2 by weight_norm" in driver.text
        await driver.press("enter")
        step = driver.session.steps[0]
        assert str(step.operation.selections()["layers"]) == "lowest 2 by weight_norm"
        assert step.resolved == {"layers": (2, 3)}
        await driver.press("u", "asterisk")
        await driver.type("lowest 2 by weight_norm")
        await driver.press("enter", "d", "right", "enter")
        assert str(driver.session.steps[0].operation.selections()["layers"]) == "2-4"

    await drive(scenario)


async def test_a_draft_grows_by_the_layer_listed_next(drive: Drive) -> None:
    """In a sorted table that is the next by rank."""

    async def scenario(driver: AppDriver) -> None:
        await driver.measure("weight_norm")
        await driver.job_ended()
        await driver.press("s", "s", "g", "d")
        listed = [driver.state.rows[index].position for index in driver.state.order]
        await driver.press("right", "right")
        assert driver.state.pending_step is not None
        assert set(driver.state.pending_step.positions) == set(listed[:3])
        await driver.press("left")
        assert set(driver.state.pending_step.positions) == set(listed[:2])

    await drive(scenario)


async def test_words_before_the_options_are_the_selection_and_marks_stand_for_it(drive: Drive) -> None:
    """On the `:` line, as on the keys."""

    async def scenario(driver: AppDriver) -> None:
        await driver.measure("weight_norm")
        await driver.job_ended()
        await driver.press("colon")
        await driver.type("prune lowest 2 by norm")
        await driver.press("enter")
        assert driver.session.steps[0].resolved == {"layers": (2, 3)}
        await driver.press("g", "space", "colon")
        await driver.type("freeze")
        await driver.press("enter")
        assert str(driver.session.steps[1].operation.selections()["layers"]) == "0"

    await drive(scenario)


async def test_enter_in_the_recipe_reads_the_step_and_keys_edit_it(drive: Drive) -> None:
    """What follows is folded again; what would break is refused by its name; undo takes the edit back."""

    async def scenario(driver: AppDriver) -> None:
        await driver.press("j", "d", "enter", "j", "f", "enter", "3")
        await driver.press("k", "enter")
        assert "step 1: prune 1" in driver.text
        assert "6→5 layers" in driver.text
        assert driver.session.position == 2
        await driver.press("D")
        assert [step.operation.name for step in driver.session.steps] == ["freeze"]
        assert "deleted: prune 1" in driver.text
        await driver.press("u")
        assert [step.operation.name for step in driver.session.steps] == ["prune", "freeze"]
        assert driver.session.position == 2

    await drive(scenario)
