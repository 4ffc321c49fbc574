"""Which layers: the little language of recipes, the command line and the screen.

As text, terms separated by commas: `0-3`, `7`, `all`, `first`, `first 2`, `last`, `last 4`, `inserted`,
`original 21-24`, `lowest 4 by block_influence`, `highest 25% by weight_norm`, `block 4 by block_influence`
(adjacent layers: the lowest run where the score measures runs, else the lowest sum), `through highest by semantic_gain`
(that layer and all before it), and `except TERMS` in front of everything. In YAML also as a list, or as a mapping such
as `{lowest: 4, by: block_influence, data: docs, protect: [first, last]}`. A score may have settings:
`by block_removal(longest=4)`, `by: {block_removal: {longest: 4}}`. Positions count from 0 in the model at that step;
`original` positions count in the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from surgeon.core.plan.draft import Layer
from surgeon.core.scoring.requests import request_text, split_terms
from surgeon.core.scoring.score import Score
from surgeon.core.selection.ranking import extreme_layers
from surgeon.core.selection.spans import spans
from surgeon.errors import SelectionError, UsageError

__all__ = ["GRAMMAR", "HEADS", "Ranked", "Selection", "Term", "parse_selection", "select", "spans"]

GRAMMAR = (
    "0-3,7 · all · first 2 · last 4 · inserted · original 21-24 · lowest 4 by SCORE · block 4 by SCORE · "
    "through highest by SCORE · except …"
)
_RANGE = re.compile(r"([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?")
_END = re.compile(r"(first|last)(?:\s+([0-9]{1,9}))?")
_RANKED = re.compile(r"((?:lowest|highest|block) [0-9]{1,9}%?|through (?:lowest|highest)) by ([a-z].*)")
_RANKED_HEADS = ("lowest", "highest", "block", "through")
HEADS = (*_RANKED_HEADS, "original", "except", "first", "last")
"""What a selection written as a mapping begins with."""
_MAPPING_KEYS = (*HEADS, "by", "data", "protect")


@dataclass(frozen=True, slots=True)
class Ranked:
    """The extreme layers by a score. `order` is lowest, highest, block or through; `by` as in `score --by`.

    `count` is a number or a percentage; for `through`, which ends at one layer, it is highest or lowest.
    """

    order: str
    count: str
    by: str
    data: str | None
    protect: tuple[Selection, ...]


@dataclass(frozen=True, slots=True)
class _Positions:
    first: int
    last: int
    original: bool


@dataclass(frozen=True, slots=True)
class _Named:
    word: str
    count: int = 0


@dataclass(frozen=True, slots=True)
class Except:
    """Everything but a selection."""

    of: Selection


Term = Ranked | _Positions | _Named | Except


class Selection:
    """A parsed selection. `raw` is what was written, kept so that a recipe is saved as it was read.

    No dataclass: msgspec would decode one field by field, and a selection has a language of its own.
    """

    __slots__ = ("raw", "terms")
    grammar: ClassVar[str] = GRAMMAR
    metavar: ClassVar[str] = "LAYERS"

    def __init__(self, terms: tuple[Term, ...], raw: Any) -> None:
        self.terms, self.raw = terms, raw

    def __repr__(self) -> str:
        return f"Selection({self})"

    def __eq__(self, other: object) -> bool:
        """Compare by meaning, not by spelling."""
        return isinstance(other, Selection) and self.terms == other.terms

    def __hash__(self) -> int:
        """Hash by meaning."""
        return hash(self.terms)

    def __str__(self) -> str:
        """Return it as text that `parse_selection` reads; only `data` and `protect` have no words there."""
        return self.raw if isinstance(self.raw, str) else ",".join(map(_term_text, self.terms))

    def ranked(self) -> Iterator[Ranked]:
        """Yield every part that needs a score."""
        for term in self.terms:
            if isinstance(term, Ranked):
                yield term
            elif isinstance(term, Except):
                yield from term.of.ranked()

    def positions(self, layers: Sequence[Layer], scores: Mapping[Ranked, Score] | None = None) -> tuple[int, ...]:
        """Return the chosen positions in ascending order.

        Raises:
            SelectionError: a position is out of range, a score is missing, or too few layers are left to choose from.
        """
        chosen: set[int] = set()
        for term in self.terms:
            chosen.update(_resolve(term, layers, scores or {}))
        return tuple(sorted(chosen))


def select(*positions: int) -> Selection:
    """Return the selection of these positions."""
    return parse_selection(list(positions))


def parse_selection(raw: Any) -> Selection:
    """Parse what was written in a recipe or on the command line.

    Raises:
        SelectionError: it is not in the language above.
    """
    if isinstance(raw, Selection):
        return raw
    terms = tuple(_parse(raw))
    if len(terms) > 1 and any(isinstance(term, Except) for term in terms):
        raise SelectionError(
            "`except` beside other terms has two meanings", allowed="except 0-3,7: everything but all of them"
        )
    return Selection(terms, raw)


def _parse(raw: Any) -> Iterator[Term]:
    if isinstance(raw, bool) or raw is None:
        raise SelectionError(f"{raw!r} is no selection", allowed=GRAMMAR)
    if isinstance(raw, int):
        yield from _parse_text(str(raw))
    elif isinstance(raw, str):
        yield from _parse_text(raw)
    elif isinstance(raw, Mapping):
        yield from _parse_mapping(raw)
    elif isinstance(raw, Sequence):
        for part in raw:
            yield from _parse(part)
    else:
        raise SelectionError(f"{raw!r} is no selection", allowed=GRAMMAR)


def _parse_text(text: str) -> Iterator[Term]:
    text = " ".join(text.split())
    if text.startswith("except "):
        yield Except(parse_selection(text.removeprefix("except ")))
        return
    for part in split_terms(text):
        yield _parse_term(part, text)


def _parse_term(part: str, text: str) -> Term:
    if part in ("all", "inserted"):
        return _Named(part)
    if match := _END.fullmatch(part):
        return _Named(match[1], int(match[2] or 1))
    if match := _RANKED.fullmatch(part):
        return _ranked(match[1], match[2], None, ())
    original = part.startswith("original ")
    if match := _RANGE.fullmatch(part.removeprefix("original ")):
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise SelectionError(f"the range {part!r} runs backwards", allowed=f"{last}-{first}")
        return _Positions(first, last, original)
    raise SelectionError(f"{part!r} is no selection" + (f" (in {text!r})" if part != text else ""), allowed=GRAMMAR)


def _parse_mapping(raw: Mapping[str, Any]) -> Iterator[Term]:
    unknown = [key for key in raw if key not in _MAPPING_KEYS]
    if unknown:
        raise SelectionError(f"unknown key {unknown[0]!r} in a selection", allowed=", ".join(_MAPPING_KEYS))
    heads = [key for key in raw if key not in ("by", "data", "protect")]
    if len(heads) != 1:
        allowed = ", ".join(key for key in _MAPPING_KEYS if key not in ("by", "data", "protect"))
        raise SelectionError(f"one of {allowed} is needed, not {heads}")
    head = heads[0]
    if head in _RANKED_HEADS:
        yield _parse_ranked(head, raw)
        return
    stray = [key for key in ("by", "data", "protect") if key in raw]
    if stray:
        raise SelectionError(f"{stray[0]!r} does not go with {head!r}", allowed=", ".join(_RANKED_HEADS))
    if head == "except":
        yield Except(parse_selection(raw[head]))
        return
    parts = raw[head] if isinstance(raw[head], (list, tuple)) else str(raw[head]).split(",")
    for part in parts:
        yield _parse_term(f"{head} {str(part).strip()}", str(dict(raw)))


def _parse_ranked(head: str, raw: Mapping[str, Any]) -> Ranked:
    if "by" not in raw:
        raise SelectionError(f"{head!r} needs `by: SCORE`", hint="`surgeon list scores` shows them")
    match = _RANKED.fullmatch(f"{head} {raw[head]} by score")
    if not match:
        allowed = "through: highest or through: lowest" if head == "through" else f"{head}: 4 or {head}: 25%"
        raise SelectionError(f"{head}: {raw[head]!r} is no count", allowed=allowed)
    protect = raw.get("protect", ())
    protect = (protect,) if isinstance(protect, (str, int)) else protect
    data = raw.get("data")
    if data is not None and not isinstance(data, str):
        raise SelectionError(f"data: {data!r} is no name", allowed="a name from the recipe's `data`, or a file")
    return _ranked(match[1], raw["by"], data, tuple(map(parse_selection, protect)))


def _ranked(order_and_count: str, by: Any, data: str | None, protect: tuple[Selection, ...]) -> Ranked:
    order, _, count = order_and_count.partition(" ")
    try:
        return Ranked(order, count, request_text(by), data, protect)
    except UsageError as error:
        raise SelectionError(error.what, where=error.where, allowed=error.allowed, hint=error.hint) from error


def _resolve(term: Term, layers: Sequence[Layer], scores: Mapping[Ranked, Score]) -> Sequence[int]:
    count = len(layers)
    if isinstance(term, Ranked):
        return _resolve_ranked(term, layers, scores)
    if isinstance(term, Except):
        return [position for position in range(count) if position not in set(term.of.positions(layers, scores))]
    if isinstance(term, _Positions):
        return _resolve_range(term, layers)
    if term.word == "all":
        return range(count)
    if term.word == "inserted":
        return [position for position, layer in enumerate(layers) if layer.inserted]
    if term.count > count:
        raise SelectionError(f"{term.word} {term.count} of {count} layers", allowed=f"at most {count}")
    return range(term.count) if term.word == "first" else range(count - term.count, count)


def _resolve_range(term: _Positions, layers: Sequence[Layer]) -> Sequence[int]:
    wanted = range(term.first, term.last + 1)
    if term.original:
        places = {layer.original: position for position, layer in enumerate(layers) if layer.original is not None}
        gone = next((number for number in wanted if number not in places), None)
        if gone is not None:
            raise SelectionError(
                f"original layer {gone} is not in the model at this step", allowed=spans(sorted(places))
            )
        return [places[number] for number in wanted]
    if term.last >= len(layers):
        raise SelectionError(
            f"{term.last} is out of range", allowed=f"the model has layers 0-{len(layers) - 1} at this step"
        )
    return wanted


def _resolve_ranked(term: Ranked, layers: Sequence[Layer], scores: Mapping[Ranked, Score]) -> Sequence[int]:
    if term not in scores:
        raise SelectionError(f"{term.by} has not been measured here", hint="run the recipe where it can be measured")
    protected = {position for part in term.protect for position in part.positions(layers, scores)}
    return extreme_layers(term.order, term.count, scores[term], layers, protected)


def _term_text(term: Term) -> str:
    if isinstance(term, Ranked):
        return f"{term.order} {term.count} by {term.by}"
    if isinstance(term, _Positions):
        span = str(term.first) if term.first == term.last else f"{term.first}-{term.last}"
        return f"original {span}" if term.original else span
    if isinstance(term, Except):
        return f"except {term.of}"
    return f"{term.word} {term.count}" if term.word in ("first", "last") else term.word
