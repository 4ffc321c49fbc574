"""What the resolved part of a step was resolved for, and whether that is still what the recipe says.

An answer of a measurement depends on the base, the seed, the step's own words, what the steps before it came to, and
the bytes of the data. Beside `resolved` stands a digest of these, `resolved_for`; where it differs, the answer is stale
and is measured anew. A recipe without `resolved_for` is trusted: see `contradictions` for what is refused there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from surgeon.core.recipe.learning_step import LEARNED, WITHOUT_EFFECT, LearningStep, ResultStep
from surgeon.core.recipe.operation import Operation
from surgeon.core.recipe.read_only_step import ReadOnlyStep
from surgeon.core.recipe.recipe import Recipe, ResolvedFor, Step
from surgeon.core.scoring.score import PYTHON_DOCS
from surgeon.core.selection.selection import Ranked, Selection
from surgeon.core.selection.spot_selection import SpotSelection
from surgeon.errors import RecipeError

FileDigest = Callable[[str], str | None]
"""Gives the digest of a data file's bytes by the file's name in the recipe; None where it is not at hand."""

WORDS_CHANGED = "for other words: the step's own, those before it, the seed or a name of its data"


def words_digest(recipe: Recipe, before: Sequence[Step], operation: Operation) -> str:
    """Return the digest of an operation's words behind the steps `before`; of the recipe seed and data names count.

    What a step before came to counts, not the words by which it came to it; what it only evaluates does not count.
    """
    effects = [_effect(step, recipe) for step in before if not isinstance(step.operation, ReadOnlyStep)]
    made_of = (recipe.seed, effects, _meaning(operation, recipe))
    return hashlib.sha256(msgspec.json.encode(made_of, order="deterministic")).hexdigest()[:16]


def _effect(step: Step, recipe: Recipe) -> Any:
    resolved = step.resolved or {}
    if LEARNED in resolved:
        return step.operation.name, resolved[LEARNED]  # the address of everything that made it
    name, fields = _meaning(step.operation, recipe)
    came_to = {field: resolved[field] for field in ranked_fields(step.operation) if field in resolved}
    return name, {field: value for field, value in fields.items() if field not in came_to}, came_to


def _meaning(operation: Operation, recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Return an operation as plain data by what it means, however it is spelled; data by the names of their files."""

    def plain(value: Any) -> Any:
        if isinstance(value, SpotSelection):
            return [list(map(named, value.terms)), value.named]
        return list(map(named, value.terms)) if isinstance(value, Selection) else value.plain

    def named(term: Any) -> Any:
        return replace(term, data=_file(recipe, term.data)) if isinstance(term, Ranked) and term.data else term

    fields: dict[str, Any] = msgspec.to_builtins(operation, enc_hook=plain)
    if isinstance(operation, LearningStep):
        fields = {name: value for name, value in fields.items() if name not in WITHOUT_EFFECT}
        fields |= {name: _file(recipe, fields[name]) for name in ("data", "held_out") if name in fields}
    return operation.name, fields


def _file(recipe: Recipe, name: str) -> str:
    return recipe.data.get(name, name)


def ranked_fields(operation: Operation) -> list[str]:
    """Return the fields whose selections need a score."""
    return [name for name, selection in operation.selections().items() if any(selection.ranked())]


def data_files(step: Step, recipe: Recipe) -> list[str]:
    """Return the names of the data that a step's selections are measured on, but for the built-in text; each once."""
    named = dict.fromkeys(_file(recipe, ranked.data) for ranked in step.operation.ranked() if ranked.data)
    return [name for name in named if name != PYTHON_DOCS]


def unresolved(step: Step) -> Step:
    """Return a step without what it came to."""
    return Step(step.operation)


def unresolved_result(step: Step) -> Step:
    """Return a step without the result that it made; what its selections came to stays."""
    kept = {name: found for name, found in (step.resolved or {}).items() if name != LEARNED}
    return step if LEARNED not in (step.resolved or {}) else msgspec.structs.replace(step, resolved=kept or None)


def resolved_text(step: Step) -> str:
    """Return in words what a step came to."""
    found = (f"{name} {','.join(map(str, chosen)) or 'none'}" for name, chosen in (step.resolved or {}).items())
    return "; ".join(found)


@dataclass(frozen=True)
class Resolution:
    """Signs what steps came to, and tells which of it is stale.

    recipe: gives seed and data names; its steps do not count.   base: fingerprint of the base, None where it is not
    known.   digest: of the recipe's data files.
    """

    recipe: Recipe
    base: str | None
    digest: FileDigest

    def signed(self, step: Step, before: Sequence[Step], *, measured: bool) -> Step:
        """Return a step that says what it was resolved for; `measured` says that it was just now, on the data here."""
        if step.resolved is None:
            return step
        known = step.resolved_for.data if step.resolved_for is not None else ()
        data = tuple(map(self.digest, data_files(step, self.recipe))) if measured else known
        words = words_digest(self.recipe, before, step.operation)
        made_for = ResolvedFor(recipe=words, base=self.base, data=data if any(data) else ())
        return msgspec.structs.replace(step, resolved_for=made_for)

    def stale(self, step: Step, before: Sequence[Step]) -> str:
        """Return why what a step came to does not hold any more, or an empty string where it does.

        `before` are the steps before it with what they came to.
        """
        if step.resolved is None:
            return ""
        lacking = [name for name in ranked_fields(step.operation) if name not in step.resolved]
        if lacking:
            return f"without {lacking[0]}, which is chosen by a score too"
        made_for = step.resolved_for
        if made_for is None:
            return ""
        if made_for.base is not None and self.base is not None and made_for.base != self.base:
            return f"on a base with fingerprint {made_for.base}, and this one has {self.base}"
        if made_for.recipe != words_digest(self.recipe, before, step.operation):
            return WORDS_CHANGED
        return self.other_data(step)

    def other_data(self, step: Step) -> str:
        """Return which data at hand is not what a step's selections were measured on; empty where all is, or none."""
        then = step.resolved_for.data if step.resolved_for is not None else ()
        for name, digest in zip(data_files(step, self.recipe), then, strict=False):
            if digest is not None and (self.digest(name) or digest) != digest:
                return f"on other bytes of {name}"
        return ""

    def current(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """Return steps without what is stale, where those before it come to what they came to then."""
        return tuple(
            unresolved(step) if self.stale(step, steps[:number]) else step for number, step in enumerate(steps)
        )

    def to_show(self, steps: Sequence[Step], where: str) -> tuple[Step, ...]:
        """Return steps for someone who looks at the model they make: stale results are left out, to be made again.

        Raises:
            RecipeError: a selection by a score is stale; only a run can measure it anew.
        """
        shown: list[Step] = []
        for number, step in enumerate(steps):
            reason = self.stale(step, shown)
            if reason and not isinstance(step.operation, ResultStep) and step.operation.ranked():
                raise RecipeError(
                    stale_text(step, number, reason), where=where, allowed="what the step says, and what that came to",
                    hint="run the recipe, which measures it anew, and open that of the result; or undo the change",
                )  # fmt: skip
            shown.append(unresolved(step) if reason else step)
        return tuple(shown)


def resigned(old: Recipe, new: Recipe) -> Recipe:
    """Return `new`, which is `old` under other names of files, with the digests of its words where `old` had its."""
    steps = []
    for number, (step, renamed) in enumerate(zip(old.steps, new.steps, strict=True)):
        made_for = step.resolved_for
        if made_for is not None and made_for.recipe == words_digest(old, old.steps[:number], step.operation):
            words = words_digest(new, new.steps[:number], renamed.operation)
            made_for = msgspec.structs.replace(made_for, recipe=words)
        steps.append(msgspec.structs.replace(renamed, resolved_for=made_for))
    return msgspec.structs.replace(new, steps=tuple(steps))


def stale_text(step: Step, number: int, reason: str) -> str:
    """Say what a step asks for, what its `resolved` holds instead, and why that does not hold any more."""
    where = f"steps[{number}].{step.operation.name}"
    if isinstance(step.operation, ResultStep):
        return f"{where}: its result ({resolved_text(step)}) was made {reason}"
    asks = ", ".join(f"{name} {selection}" for name, selection in step.operation.selections().items())
    return f"{where} asks for {asks or 'nothing'}, but its `resolved` ({resolved_text(step)}) was found {reason}"
