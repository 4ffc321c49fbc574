"""Scores as they are asked for in text: `removal`, `block_removal(longest=4)`, `all`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

import msgspec

from surgeon.core.score import ScoreKind, score_kinds
from surgeon.errors import UsageError

_REQUEST = re.compile(r"([a-z]\w*)(?:\((.*)\))?")
_COMMA = re.compile(r",(?![^(]*\))")  # not one between parentheses


def split_requests(text: str) -> list[str]:
    """Split a list at its commas, but for those between the settings of one score."""
    return [part.strip() for part in _COMMA.split(text) if part.strip()]


def requested_scores(requests: Sequence[str], where: str = "--by") -> list[ScoreKind]:
    """Return the scores asked for, each once; `all` stands for every one that is not learned.

    Raises:
        UsageError: there is no such score or setting, or one score is asked for twice with different settings.
    """
    found: dict[str, ScoreKind] = {}
    for request in [request for request in requests if request != "all"]:
        kind = _parse(request, where)
        if found.setdefault(kind.name, kind) != kind:
            raise UsageError(f"{kind.name} is asked for twice, with different settings", where=where)
    if "all" in requests:
        measured = {name: kind for name, kind in score_kinds().items() if kind.needs != "learning"}
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


def _parse(request: str, where: str) -> ScoreKind:
    match = _REQUEST.fullmatch(request.strip().replace("-", "_") if "(" not in request else request.strip())
    kinds = score_kinds()
    name = match[1] if match else request
    if match is None or name not in kinds:
        near = get_close_matches(name, kinds, n=1)
        did = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(
            f"there is no score {name!r}{did}", where=where, allowed=", ".join((*kinds, "all")),
            hint="`surgeon list scores` explains them",
        )  # fmt: skip
    return _with_settings(kinds[name], match[2] or "", f"{where} {request}")


def _with_settings(kind: type[ScoreKind], text: str, where: str) -> ScoreKind:
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    given: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = part.partition("=")
        if name.strip() not in known:
            allowed = ", ".join(known) or "none: it has no settings"
            raise UsageError(f"{kind.name} has no setting {name.strip()!r}", where=where, allowed=allowed)
        given[name.strip()] = value.strip()
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"does not fit: {error}", where=where) from error
