"""Base, recipe and scores: apply, undo, redo, preview, measure, export. The whole of what a front end may do.

Torch-free. Measuring and exporting are handed to a worker as jobs; a session only builds them and takes in what comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.atomic_files import write_text
from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.core.checkpoint.model_location import locate_model
from surgeon.core.jobs import LearnJob, LearnResult, RunJob, RunResult, ScoreJob, ScoreResult
from surgeon.core.journal import Entry, Journal, Recovery, journal_path, recipe_digest
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.preview import Preview, preview_step
from surgeon.core.recipe.apply_steps import apply_step, resolve_step
from surgeon.core.recipe.data_paths import file_digests, rebase_data_paths
from surgeon.core.recipe.measured_selection import refuse_other_data, with_data
from surgeon.core.recipe.recipe import (
    Base,
    Recipe,
    Step,
    dump_recipe,
    load_recipe,
    recipe_from_builtins,
    recipe_to_builtins,
    step_from_builtins,
    step_of,
    step_to_builtins,
    trusting,
)
from surgeon.core.recipe.resolution import Resolution
from surgeon.core.scoring.requests import answers
from surgeon.core.scoring.score import Score
from surgeon.core.selection.selection import Ranked
from surgeon.core.structure.structure import Structure
from surgeon.errors import RecipeError, SelectionError

__all__ = ["Preview", "Session"]


@dataclass
class Session:
    """A model on the table. Built with `Session.open`. `notes` are what a person has to know of how it was opened."""

    model: str
    checkpoint: Checkpoint
    structure: Structure
    recipe: Recipe
    recipe_path: Path | None
    journal: Journal
    position: int = 0
    recovered: Recovery | None = None
    notes: list[str] = field(default_factory=list)
    scores: dict[str, Score] = field(default_factory=dict)
    revision: int = 0
    _drafts: list[Draft] = field(default_factory=list)
    _plan: Plan | None = None
    _saved: tuple[Step, ...] = ()
    _digest: str = ""

    @classmethod
    def open(cls, model: str, recipe_path: Path | None = None, *, trust_remote_code: bool = False) -> Session:
        """Open a model and, if one is given, its recipe; recover what a crash left unsaved.

        Raises:
            CheckpointError, ArchitectureError, RecipeError: as reading them does.
        """
        exists = recipe_path is not None and recipe_path.is_file()
        recipe = load_recipe(recipe_path) if recipe_path is not None and exists else Recipe(base=Base(model=model))
        recipe = trusting(recipe, model, recipe_path.parent if recipe_path else Path(), trust=trust_remote_code)
        own = recipe.base
        checkpoint = open_checkpoint(locate_model(model), trust_remote_code=own.trust_remote_code, load_in=own.load_in)
        recipe.base.check(checkpoint.fingerprint, str(checkpoint.path), str(recipe_path or "recipe"))
        session = cls(
            model=model, checkpoint=checkpoint, structure=read_structure(checkpoint), recipe=recipe,
            recipe_path=recipe_path, journal=Journal(journal_path(checkpoint.fingerprint, recipe_path)),
        )  # fmt: skip
        session._drafts = [draft_of(session.structure)]
        session.notes += filter(None, [session.journal.fault])
        session._digest, session.position = recipe_digest(recipe_path), len(recipe.steps)
        session._show(recipe.steps, str(recipe_path))
        session._saved = session.steps
        session._recover()
        session.draft  # noqa: B018 - folding now reports a recipe that does not fit
        return session

    def _recover(self) -> None:
        if (entry := self.journal.last()) is None:
            return
        if entry.recipe_digest != self._digest:
            raise RecipeError(
                "has changed since a session on it was interrupted",
                where=str(self.recipe_path),
                hint=f"look at {self.journal.path}, keep what you need, delete it and open again",
            )
        steps = tuple(step_from_builtins(plain, str(self.journal.path)) for plain in entry.steps)
        self._show(steps, str(self.journal.path))
        self.position = entry.position
        self.recovered = Recovery(len(steps), entry.position, self.journal.path)

    def _show(self, steps: tuple[Step, ...], where: str) -> None:
        """Take steps over from a file, as far as what they came to still holds."""
        shown = self._resolution.to_show(steps, where)
        stale = [str(number) for number, step in enumerate(steps) if step != shown[number]]
        if stale:
            self.notes.append(f"changed since they were made: results of steps {', '.join(stale)}; they are left out")
        self.recipe = msgspec.structs.replace(self.recipe, steps=shown)

    @property
    def _resolution(self) -> Resolution:
        return Resolution(self.recipe, self.checkpoint.fingerprint, file_digests(self.root))

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
        """
        step = step_of(operation, fields, operation)
        step = step_of(operation, with_data(fields, step.operation, self.score_for), operation)
        measured = {ranked: self.score_for(ranked) for ranked in step.operation.ranked()}
        step = resolve_step(self.draft, step, self.position, measured)
        return self._resolution.signed(step, self.steps[: self.position], measured=True)

    def score_for(self, ranked: Ranked) -> Score:
        """Return the score a selection asks for, if it was measured on the current draft.

        Raises:
            SelectionError: it was not.
        """
        score = next((one for one in self.scores.values() if answers(one, ranked.by)), None)
        if score is None or self.is_stale(score):
            state = "has not been measured" if score is None else "was measured before the last edit"
            raise SelectionError(f"{ranked.by} {state}", hint=f"measure it first: score --by {ranked.by}")
        refuse_other_data(ranked, score, self.recipe.data)
        return score

    def is_stale(self, score: Score) -> bool:
        """Whether a score was measured on other weights than the current draft's."""
        return not self.draft.is_what(score.provenance.draft)

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
        self._move(self.position + 1)
        self._plan = preview.plan
        return preview

    def undo(self) -> bool:
        """Step back; False at the base."""
        return self.position > 0 and self._move(self.position - 1)

    def redo(self) -> bool:
        """Step forward again; False at the newest step."""
        return self.position < len(self.steps) and self._move(self.position + 1)

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

    def save(self, path: Path | None = None) -> Path:
        """Write the recipe of the applied steps, atomically; comments of the file survive.

        Raises:
            RecipeError: there is no path, it cannot be written, or it holds what this session has not read.
        """
        path = path or self.recipe_path
        if path is None:
            raise RecipeError("no file name for the recipe yet", hint="give one")
        if recipe_digest(path) not in ("", self._digest):
            what = "was changed by someone else meanwhile" if path == self.recipe_path else "is there already"
            raise RecipeError(what, where=str(path), hint="save under another name")
        place = path.absolute().parent
        here = path == self.recipe_path
        applied = self.applied_recipe()
        write_text(path, dump_recipe(applied if here else rebase_data_paths(applied, self.root, place), like=path))
        if not here:
            self.recipe = rebase_data_paths(self.recipe, self.root, place)
            self.recipe_path = path
            self.journal.close(keep=False)
            self.journal = Journal(journal_path(self.checkpoint.fingerprint, path))
        self._digest = recipe_digest(path)
        self.journal.clear()
        self._saved = self.steps[: self.position]
        return path

    def close(self, *, keep_journal: bool = False) -> None:
        """End the session; `keep_journal` leaves unsaved steps to be recovered."""
        self.journal.close(keep=keep_journal)

    def score_job(self, names: tuple[str, ...], data: str | None, **settings: Any) -> ScoreJob:
        """Return a `score` job for the current draft; measured as a run of the recipe measures."""
        return ScoreJob(
            recipe=recipe_to_builtins(self.applied_recipe()), root=str(self.root), names=names, data=data,
            **{"seed": self.recipe.seed, **settings},
        )  # fmt: skip

    def learn_job(self, step: Step | None = None, **settings: Any) -> LearnJob:
        """Return a `learn` job: what the applied steps, and one more, still have to learn."""
        recipe = self.applied_recipe()
        recipe = recipe if step is None else msgspec.structs.replace(recipe, steps=(*recipe.steps, step))
        return LearnJob(recipe=recipe_to_builtins(recipe), root=str(self.root), **settings)

    def take_learned(self, result: LearnResult | RunResult) -> Preview | None:
        """Take in what a finished `learn` or `run` job has resolved; apply the step that it had one more, if any.

        Raises:
            RecipeError: the applied steps are not those that the job was given.
        """
        done = recipe_from_builtins(result.recipe).steps
        applied = self.steps[: self.position]
        if [one.operation for one in done[: self.position]] != [one.operation for one in applied]:
            hint = "its result is kept: undo, and the same step is there at once"
            raise RecipeError("the steps before it have changed meanwhile", hint=hint)
        if done[: self.position] != applied:
            steps = list(done[: self.position])
            for step in self.steps[self.position :]:  # what was undone may be stale behind other results
                if self._resolution.stale(step, steps):
                    break
                steps.append(step)
            self.recipe = msgspec.structs.replace(self.recipe, steps=tuple(steps))
            self._move(self.position)
        del self._drafts[1:]  # the results are there now
        self._plan = None
        return self.apply(done[-1]) if len(done) > self.position else None

    def run_job(self, out: Path, *, verify: bool = True, **settings: Any) -> RunJob:
        """Return a `run` job: execute the applied steps and export."""
        return RunJob(
            recipe=recipe_to_builtins(self.applied_recipe()), root=str(self.root),
            out=str(out.expanduser().absolute()), verify=verify, **settings,
        )  # fmt: skip

    @property
    def root(self) -> Path:
        """The directory that data files of the recipe are relative to."""
        return self.recipe_path.parent.absolute() if self.recipe_path else Path.cwd()

    def take_scores(self, result: ScoreResult) -> tuple[Score, ...]:
        """Take in the scores of a finished `score` job."""
        scores = tuple(msgspec.convert(plain, Score) for plain in result.scores)
        self.scores.update({score.name: score for score in scores})
        return scores
