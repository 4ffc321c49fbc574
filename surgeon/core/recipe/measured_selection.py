"""Selections by a score as a recipe says them: with the data it is measured on, which text has no words for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from surgeon.core.plan.draft import Draft
from surgeon.core.recipe.operation import Operation
from surgeon.core.scoring.requests import answers, split_terms
from surgeon.core.scoring.score import PYTHON_DOCS, Score
from surgeon.core.selection.selection import Ranked
from surgeon.errors import SelectionError

_MEASURED = re.compile(r"(lowest|highest|block|through) (\S+) by (\S.*)")


def with_data(fields: Mapping[str, Any], operation: Operation, score_for: Callable[[Ranked], Score]) -> dict[str, Any]:
    """Return an operation's fields with the data that its selections were measured on, where they do not say it."""
    said = dict(fields)
    for name, selection in operation.selections().items():
        data = {score_for(ranked).measured_on for ranked in selection.ranked() if ranked.data is None}
        text = said.get(name)
        if isinstance(text, str) and len(data) == 1 and (one := data.pop()) is not None:
            said[name] = measured_selection(text, one, None)
    return said


def current_score(ranked: Ranked, scores: Iterable[Score], draft: Draft, names: Mapping[str, str]) -> Score:
    """Return the score that a selection asks for, if it was measured on the draft; `names` are the recipe's data.

    Raises:
        SelectionError: it was not, or without the draft's trained adapters, or on other data.
    """
    score = next((one for one in scores if answers(one, ranked.by)), None)
    state = ""
    if score is None:
        state = "has not been measured"
    elif score.weights_only:
        state = "was measured without the trained adapters, which a selection sees"
    elif not draft.is_what(score.provenance.draft):
        state = "was measured before the last edit"
    if score is None or state:
        raise SelectionError(f"{ranked.by} {state}", hint=f"measure it first: score --by {ranked.by}")
    refuse_other_data(ranked, score, names)
    return score


def refuse_other_data(ranked: Ranked, score: Score, names: Mapping[str, str]) -> None:
    """Refuse a selection by a score that was measured on other data than it says; `names` are the recipe's own.

    Raises:
        SelectionError: it was.
    """
    said, data = ranked.data, score.measured_on
    if said is not None and names.get(said, said) != (names.get(data, data) if data else PYTHON_DOCS):
        text = f"{ranked.by} was measured on {data or 'the built-in text'}, not on {said}"
        raise SelectionError(text, hint=f"measure it on {said} first")


def measured_selection(text: str, data: str | None, protect: str | None) -> Any:
    """Return a selection as a recipe says it, with data and protected layers where it ranks by a score."""
    text = " ".join(text.split())
    if text.startswith("except "):
        inner = measured_selection(text.removeprefix("except "), data, protect)
        return text if isinstance(inner, str) else {"except": inner}
    parts = [_measured_part(part.strip(), data, protect) for part in split_terms(text)]
    if all(isinstance(part, str) for part in parts):
        return text
    return parts[0] if len(parts) == 1 else parts


def _measured_part(part: str, data: str | None, protect: str | None) -> Any:
    match = _MEASURED.fullmatch(part)
    if match is None:
        return part
    count = int(match[2]) if match[2].isdigit() else match[2]
    plain: dict[str, Any] = {match[1]: count, "by": match[3]}
    if data is not None:
        plain["data"] = data
    if protect is not None:
        plain["protect"] = [word.strip() for word in protect.split(",")]
    return plain
