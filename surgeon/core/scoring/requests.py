"""Scores as they are asked for in text: `removal`, `block_removal(longest=4)`, `all`; in YAML also as a mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from surgeon.core.scoring.score import Score
from surgeon.core.scoring.score_kinds import ScoreKind, score_kinds
from surgeon.errors import UsageError

_REQUEST = re.compile(r"([a-z]\w*)(?:\((.*)\))?")
_COMMA = re.compile(r",(?![^(]*\))")  # not one between parentheses


def split_terms(text: str) -> list[str]:
    """Split a list at its commas, but for those between the settings of one score."""
    return [part.strip() for part in _COMMA.split(text)]


def split_requests(text: str) -> list[str]:
    """Return the parts of a list that say anything."""
    return [part for part in split_terms(text) if part]


def requested_scores(requests: Sequence[str], where: str = "--by") -> list[ScoreKind]:
    """Return the scores asked for, each once; `all` stands for every one that is not learned, nor of adapters.

    Raises:
        UsageError: there is no such score or setting, or one score is asked for twice with different settings.
    """
    found: dict[str, ScoreKind] = {}
    for request in [request for request in requests if request != "all"]:
        kind = _parse(request, where)
        if found.setdefault(kind.name, kind) != kind:
            raise UsageError(f"{kind.name} is asked for twice, with different settings", where=where)
    if "all" in requests:
        measured = {
            name: kind for name, kind in score_kinds().items() if not (kind.of_adapters or kind.needs == "learning")
        }
        found |= {name: kind() for name, kind in measured.items() if name not in found}
    if not found:
        raise UsageError("names no score", where=where, allowed=", ".join((*score_kinds(), "all")))
    return list(found.values())


def request_of(kind: ScoreKind) -> str:
    """Return a score as it is asked for, with the settings that are not as usual."""
    usual = msgspec.to_builtins(type(kind)())
    given = {name: value for name, value in msgspec.to_builtins(kind).items() if value != usual[name]}
    settings = ",".join(f"{name}={value}" for name, value in given.items())
    return f"{kind.name}({settings})" if settings else kind.name


def request_text(raw: Any, where: str = "by") -> str:
    """Return a score of a recipe, `NAME`, `NAME(setting=value)` or `{NAME: {setting: value}}`, always in one spelling.

    Raises:
        UsageError: there is no such score or setting.
    """
    if not isinstance(raw, Mapping):
        return request_of(_parse(str(raw), where))
    if len(raw) != 1:
        raise UsageError(f"{dict(raw)} is not one score", where=where, allowed="{SCORE: {setting: value}}")
    ((name, settings),) = raw.items()
    kind = _parse(str(name), where)
    if settings is None:
        return request_of(kind)
    if not isinstance(settings, Mapping):
        raise UsageError(f"{settings!r} are no settings", where=f"{where} {name}", allowed="{setting: value}")
    return request_of(_checked(type(kind), settings, f"{where} {name}", strict=True))


def request_name(request: str) -> str:
    """Return the name of a score as `request_text` returns it."""
    return request.partition("(")[0]


def answers(score: Score, request: str) -> bool:
    """Whether a score is what a request in text asks for: the same one, measured with the same settings."""
    kind = _parse(request, "by")
    settings = score.provenance.settings or msgspec.to_builtins(type(kind)())
    return score.name == kind.name and settings == msgspec.to_builtins(kind)


def _by_title(request: str) -> str:
    """Return a score that is asked for by the title of its column, such as BI, by its name."""
    titles = {kind.title.lower(): name for name, kind in score_kinds().items()}
    title, parenthesis, settings = request.strip().partition("(")
    if title in score_kinds():
        return request
    return titles.get(title.strip().lower(), title) + parenthesis + settings


def _parse(request: str, where: str) -> ScoreKind:
    request = _by_title(request)
    match = _REQUEST.fullmatch(request.strip().replace("-", "_") if "(" not in request else request.strip())
    kinds = score_kinds()
    name = match[1] if match else request
    if match is None or name not in kinds:
        near = get_close_matches(name, kinds, n=1)
        did = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"there is no score {name!r}{did}", where=where, allowed=", ".join(kinds),
            hint="`surgeon list scores` explains them",
        )  # fmt: skip
    return _with_settings(kinds[name], match[2] or "", f"{where} {request}")


def _with_settings(kind: type[ScoreKind], text: str, where: str) -> ScoreKind:
    pairs = [part.partition("=") for part in map(str.strip, text.split(",")) if part]
    given = {name.strip(): value.strip() for name, _, value in pairs}
    return _checked(kind, given, where, strict=False)


def _checked(kind: type[ScoreKind], given: Mapping[str, Any], where: str, *, strict: bool) -> ScoreKind:
    known = [field.name for field in msgspec.structs.fields(kind)]
    stray = next((name for name in given if name not in known), None)
    if stray is not None:
        allowed = ", ".join(known) or "none: it has no settings"
        raise UsageError(f"{kind.name} has no setting {stray!r}", where=where, allowed=allowed)
    try:
        return msgspec.convert(dict(given), kind, strict=strict)
    except msgspec.ValidationError as error:
        raise UsageError(f"does not fit: {error}", where=where) from error
