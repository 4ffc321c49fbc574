"""Base, recipe and scores: apply, undo, redo, preview, measure, export. The whole of what a front end may do.

Torch-free. Measuring and exporting are handed to a worker as jobs; a session only builds them and takes in what comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.adapters.opened_model import opened_recipe
from surgeon.core.checkpoint.atomic_files import write_text
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.model_location import adapter_beside, locate_model
from surgeon.core.jobs import (
    EvaluateJob,
    EvaluateResult,
    LearnJob,
    LearnResult,
    RunJob,
    RunResult,
    ScoreJob,
    ScoreResult,
)
from surgeon.core.journal import Journal, Recovery, journal_path, kept_steps, note_recipe, recipe_digest
from surgeon.core.plan.draft import draft_of
from surgeon.core.preview import Preview
from surgeon.core.recipe.data_paths import rebase_data_paths
from surgeon.core.recipe.recipe import (
    Recipe,
    Step,
    dump_recipe,
    recipe_from_builtins,
    recipe_to_builtins,
    step_from_builtins,
)
from surgeon.core.scoring.score import Score
from surgeon.errors import RecipeError
from surgeon.session.editing import EditedRecipe

__all__ = ["Preview", "Session"]


@dataclass
class Session(EditedRecipe):
    """A model on the table. Built with `Session.open`."""

    @classmethod
    def open(cls, model: str, recipe_path: Path | None = None, *, trust_remote_code: bool = False) -> Session:
        """Open a model and, if one is given, its recipe; recover what a crash left unsaved.

        Raises:
            CheckpointError, ArchitectureError, RecipeError: as reading them does.
        """
        named, recipe = opened_recipe(model, recipe_path, trust=trust_remote_code)
        checkpoint = open_checkpoint(locate_model(named), trust_remote_code=recipe.base.trust_remote_code)
        recipe.base.check(checkpoint.fingerprint, str(checkpoint.path), str(recipe_path or "recipe"))
        session = cls(
            model=model, checkpoint=checkpoint, structure=read_structure(checkpoint), recipe=recipe,
            recipe_path=recipe_path, journal=Journal(journal_path(checkpoint.fingerprint, recipe_path)),
        )  # fmt: skip
        session._drafts = [draft_of(session.structure, session.root)]
        session.notes += filter(None, [session.journal.fault, adapter_beside(checkpoint.path)])
        session._digest = recipe_digest(recipe_path)
        session.kept = [kept for kept in kept_steps(checkpoint.fingerprint) if not _is_same(kept.recipe, recipe_path)]
        if recipe_path is not None:
            note_recipe(checkpoint.fingerprint, recipe_path)
        session.position = len(recipe.steps)
        session._show(recipe.steps, str(recipe_path))
        session._saved = session.steps
        session._recover()
        session.draft  # noqa: B018 - folding now reports a recipe that does not fit
        return session

    def _recover(self) -> None:
        entry = self.journal.last()
        if entry is None:
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
        note_recipe(self.checkpoint.fingerprint, path)
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

    def take_learned(self, result: LearnResult | EvaluateResult | RunResult) -> Preview | None:
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

    def evaluate_job(self, first: int, recipe: Recipe | None = None, **settings: Any) -> EvaluateJob:
        """Return an `evaluate` job: look at the applied steps, or at a recipe of more, from step `first` on."""
        plain = recipe_to_builtins(recipe or self.applied_recipe())
        return EvaluateJob(recipe=plain, root=str(self.root), first=first, **settings)

    def run_job(self, out: Path, *, verify: bool = True, **settings: Any) -> RunJob:
        """Return a `run` job: execute the applied steps and export."""
        return RunJob(
            recipe=recipe_to_builtins(self.applied_recipe()), root=str(self.root),
            out=str(out.expanduser().absolute()), verify=verify, **settings,
        )  # fmt: skip

    def take_scores(self, result: ScoreResult) -> tuple[Score, ...]:
        """Take in the scores of a finished `score` job."""
        scores = tuple(msgspec.convert(plain, Score) for plain in result.scores)
        self.scores.update({score.name: score for score in scores})
        return scores


def _is_same(one: Path | None, other: Path | None) -> bool:
    return one == other if one is None or other is None else one.absolute() == other.absolute()
