"""The recipe of a session while it is edited: the model after each step, undo, redo, edits of earlier steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from surgeon.backend.data.required_data import require_data
from surgeon.core.checkpoint.checkpoint import Checkpoint
from surgeon.core.journal import Entry, Journal, Kept, Recovery
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.preview import Preview, preview_step
from surgeon.core.recipe.apply_steps import apply_step, pin_step, resolve_step
from surgeon.core.recipe.data_paths import file_digests
from surgeon.core.recipe.measured_selection import current_score, with_data
from surgeon.core.recipe.recipe import Recipe, Step, step_of, step_to_builtins
from surgeon.core.recipe.resolution import Resolution, unresolved_result
from surgeon.core.scoring.score import Score
from surgeon.core.selection.selection import Ranked
from surgeon.core.structure.structure import Structure
from surgeon.errors import DataError

State = tuple[tuple[Step, ...], int]
"""All steps, and how many of them are applied."""


class Edit(NamedTuple):
    """A change of steps that others follow: the state before it and after it."""

    before: State
    after: State


@dataclass
class EditedRecipe:
    """A model and the steps on it.

    notes: what a person has to know of how it was opened.   kept: steps that other sessions on the model left unsaved.
    """

    model: str
    checkpoint: Checkpoint
    structure: Structure
    recipe: Recipe
    recipe_path: Path | None
    journal: Journal
    position: int = 0
    recovered: Recovery | None = None
    notes: list[str] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    scores: dict[str, Score] = field(default_factory=dict)
    revision: int = 0
    _drafts: list[Draft] = field(default_factory=list)
    _plan: Plan | None = None
    _saved: tuple[Step, ...] = ()
    _digest: str = ""
    _edits: list[Edit] = field(default_factory=list)
    _undone_edits: list[Edit] = field(default_factory=list)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, the undone ones too."""
        return self.recipe.steps

    @property
    def draft(self) -> Draft:
        """The model after the applied steps."""
        while len(self._drafts) <= self.position:
            number = len(self._drafts) - 1
            self._drafts.append(apply_step(self._drafts[number], self.steps[number], number))
        return self._drafts[self.position]

    def draft_at(self, position: int) -> Draft:
        """Return the model after the first `position` steps, at most the applied ones; 0 is the base."""
        return self.draft and self._drafts[position]

    @property
    def plan(self) -> Plan:
        """The plan of the current draft."""
        if self._plan is None:
            self._plan = compile_plan(self.draft)
        return self._plan

    @property
    def unsaved(self) -> bool:
        """Whether the applied steps differ from the recipe on disk."""
        return self.steps[: self.position] != self._saved

    def step(self, operation: str, fields: Mapping[str, Any]) -> Step:
        """Build a step on the current draft, its measured selections resolved from the scores at hand.

        Raises:
            RecipeError: the fields are wrong, or a score it needs has not been measured on this draft.
            DataError: it reads data that are not there.
        """
        step = step_of(operation, fields, operation)
        step = step_of(operation, with_data(fields, step.operation, self.score_for), operation)
        measured = {ranked: self.score_for(ranked) for ranked in step.operation.ranked()}
        step = resolve_step(self.draft, pin_step(step, self.root), self.position, measured)
        self._require_data(step)
        return self._resolution.signed(step, self.steps[: self.position], measured=True)

    def score_for(self, ranked: Ranked) -> Score:
        """Return the score a selection asks for, if it was measured on the current draft.

        Raises:
            SelectionError: it was not.
        """
        return current_score(ranked, self.scores.values(), self.draft, self.recipe.data)

    def is_stale(self, score: Score) -> bool:
        """Whether a score was measured on other weights than the current draft's."""
        return not self.draft.is_what(score.provenance.draft, weights_only=score.weights_only)

    def preview(self, step: Step) -> Preview:
        """Say what a step would do. Changes nothing.

        Raises:
            RecipeError, ArchitectureError: the step does not fit.
        """
        return preview_step(step, self.position, self.draft, self.plan, self.model)

    def apply(self, step: Step) -> Preview:
        """Append a step; steps that were undone are dropped."""
        preview = self.preview(step)
        self.recipe = msgspec.structs.replace(self.recipe, steps=(*self.steps[: self.position], step))
        self._drafts[self.position + 1 :] = [preview.draft]
        self._undone_edits.clear()
        self._move(self.position + 1)
        self._plan = preview.plan
        return preview

    def undo(self) -> bool:
        """Take back the newest edit of a step, or step back; False at the base."""
        if self._edits and self._is_state(self._edits[-1].after):
            edit = self._edits.pop()
            self._undone_edits.append(edit)
            return self._restore(edit.before)
        return self.position > 0 and self._move(self.position - 1)

    def redo(self) -> bool:
        """Make the edit again that was taken back, or step forward; False at the newest step."""
        if self._undone_edits and self._is_state(self._undone_edits[-1].before):
            edit = self._undone_edits.pop()
            self._edits.append(edit)
            return self._restore(edit.after)
        return self.position < len(self.steps) and self._move(self.position + 1)

    def go_to(self, position: int) -> None:
        """Apply so many of the steps, forwards or backwards; edits of steps stay."""
        position = min(max(position, 0), len(self.steps))
        if position != self.position:
            self._move(position)

    @property
    def can_undo(self) -> bool:
        """Whether there is anything to take back."""
        return self.position > 0 or bool(self._edits and self._is_state(self._edits[-1].after))

    @property
    def can_redo(self) -> bool:
        """Whether there is anything to do again."""
        again = bool(self._undone_edits and self._is_state(self._undone_edits[-1].before))
        return again or self.position < len(self.steps)

    # ── edits of steps that others follow ──

    def replace_step(self, number: int, step: Step) -> None:
        """Put another step in the place of the one at `number`, and fold what follows again.

        Raises:
            RecipeError, ArchitectureError: a step that follows does not fit any more; nothing is changed.
        """
        self._edit((*self.steps[:number], step, *self.steps[number + 1 :]), self.position)

    def delete_step(self, number: int) -> None:
        """Take a step out of the recipe, and fold what follows again; raises as `replace_step`."""
        self._edit((*self.steps[:number], *self.steps[number + 1 :]), self.position - (number < self.position))

    def move_step(self, number: int, place: int) -> None:
        """Put a step at another place of the recipe, and fold what follows again; raises as `replace_step`."""
        steps = list(self.steps)
        steps.insert(place, steps.pop(number))
        self._edit(tuple(steps), max(self.position, place + 1 if number < self.position else 0))

    def duplicate_step(self, number: int) -> None:
        """Put a step into the recipe once more, behind itself; raises as `replace_step`."""
        steps = (*self.steps[: number + 1], unresolved_result(self.steps[number]), *self.steps[number + 1 :])
        self._edit(steps, self.position + (number < self.position))

    def step_at(self, number: int, operation: str, fields: Mapping[str, Any]) -> Step:
        """Build a step for the place of the one at `number`; a selection by a score keeps what it came to there.

        Raises:
            RecipeError: the fields are wrong, or a score it needs was not measured at that place.
        """
        step, old = step_of(operation, fields, operation), self.steps[number]
        kept = step.operation.ranked() and step.operation.selections() == old.operation.selections()
        if kept:
            step = msgspec.structs.replace(step, resolved=old.resolved)
        else:
            measured = {
                one: current_score(one, self.scores.values(), self._draft_before(number), self.recipe.data)
                for one in step.operation.ranked()
            }
            step = resolve_step(self._draft_before(number), step, number, measured)
        self._require_data(step)
        return self._resolution.signed(step, self.steps[:number], measured=not kept)

    def _draft_before(self, number: int) -> Draft:
        """Return the model before a step, an undone one too."""
        draft = self.draft_at(min(number, self.position))
        for place in range(self.position, number):
            draft = apply_step(draft, self.steps[place], place)
        return draft

    def _require_data(self, step: Step) -> None:
        try:
            require_data(msgspec.structs.replace(self.recipe, steps=(step,)), self.root)
        except DataError as error:
            where = error.where.replace("steps[0].", "")
            raise DataError(error.what, where=where, allowed=error.allowed, hint=error.hint) from error

    def _edit(self, steps: tuple[Step, ...], position: int) -> None:
        pinned = tuple(pin_step(step, self.root) for step in steps)
        shown = self._resolution.to_show(pinned, "recipe")
        drafts = self._drafts[:1]
        for number, step in enumerate(shown[:position]):
            drafts.append(apply_step(drafts[number], step, number))
        edit = Edit(self._state, (shown, position))
        self._restore(edit.after)
        self._drafts = drafts
        self._edits.append(edit)
        self._undone_edits.clear()

    @property
    def _state(self) -> State:
        return self.steps, self.position

    def _is_state(self, state: State) -> bool:
        """Whether the applied steps are those of a state; what was undone does not count."""
        steps, position = state
        return steps[:position] == self.steps[: self.position]

    def _restore(self, state: State) -> bool:
        steps, position = state
        self.recipe = msgspec.structs.replace(self.recipe, steps=steps)
        del self._drafts[1:]
        return self._move(position)

    def _move(self, position: int) -> bool:
        self.position = position
        self.revision += 1
        self._plan = None
        steps = [step_to_builtins(step) for step in self.steps]
        self.journal.append(Entry(model=self.model, steps=steps, position=position, recipe_digest=self._digest))
        return True

    def applied_recipe(self) -> Recipe:
        """Return the recipe of the applied steps, with the base's fingerprint."""
        base = msgspec.structs.replace(self.recipe.base, fingerprint=self.checkpoint.fingerprint)
        return msgspec.structs.replace(self.recipe, base=base, steps=self.steps[: self.position])

    @property
    def root(self) -> Path:
        """The directory that data files of the recipe are relative to."""
        return self.recipe_path.parent.absolute() if self.recipe_path else Path.cwd()

    def _show(self, steps: tuple[Step, ...], where: str) -> None:
        """Take steps over from a file, as far as what they came to still holds."""
        steps = tuple(pin_step(step, self.root) for step in steps)
        shown = self._resolution.to_show(steps, where)
        stale = [str(number) for number, step in enumerate(steps, start=1) if step != shown[number - 1]]
        if stale:
            self.notes.append(f"changed since they were made: results of steps {', '.join(stale)}; they are left out")
        self.recipe = msgspec.structs.replace(self.recipe, steps=shown)

    @property
    def _resolution(self) -> Resolution:
        return Resolution(self.recipe, self.checkpoint.fingerprint, file_digests(self.root))
