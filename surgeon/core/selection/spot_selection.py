"""Selections of what layers hold: matrices, sublayers, experts, neurons, heads. Each is a layer's position and a name.

They resolve to texts, `POSITION.NAME`, in the order of the layers. What is common to them is here: a selection of
layers, a dot and a name of what is meant in them, or a ranking by a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from surgeon.core.plan.draft import Draft
from surgeon.core.scoring.requests import split_terms
from surgeon.core.scoring.score import Score
from surgeon.core.selection.selection import Ranked, Selection, Term, parse_selection
from surgeon.errors import SelectionError


class SpotSelection(Selection):
    """A parsed selection of spots. `named` pairs layers with a name; `terms` are all others.

    what: what is selected, for messages.
    """

    __slots__ = ("named",)
    what: ClassVar[str]

    def __init__(self, terms: tuple[Term, ...], named: tuple[tuple[Selection, str], ...], raw: Any) -> None:
        super().__init__(terms, raw)
        self.named = named

    def __eq__(self, other: object) -> bool:
        """Compare by meaning, not by spelling."""
        return isinstance(other, type(self)) and (self.terms, self.named) == (other.terms, other.named)

    def __hash__(self) -> int:
        """Hash by meaning."""
        return hash((self.terms, self.named))

    def __str__(self) -> str:
        """Return it as text that `parse` reads."""
        parts = [super().__str__()] if self.terms else []
        return (
            self.raw if isinstance(self.raw, str) else ", ".join([*parts, *(f"{at}.{name}" for at, name in self.named)])
        )

    @classmethod
    def parse(cls, raw: Any) -> Self:
        """Parse what was written in a recipe or on the command line.

        Raises:
            SelectionError: it is not in the language of these selections.
        """
        if isinstance(raw, cls):
            return raw
        terms: list[Term] = []
        named: list[tuple[Selection, str]] = []
        for part in _parts(raw):
            if isinstance(part, float):
                raise SelectionError(
                    f"{part!r} is a number, and {cls.what} are named by a text", allowed=cls.grammar,
                    hint=f"put it in quotes: '{part}'",
                )  # fmt: skip
            named_here = isinstance(part, str) and " by " not in part  # settings of a score may have dots too
            head, dot, name = part.strip().partition(".") if named_here else ("", "", "")
            if dot:
                named.append((parse_selection(head), cls.name_of(name)))
            else:
                terms += cls.terms_of(part)
        return cls(tuple(terms), tuple(named), raw)

    @classmethod
    def name_of(cls, text: str) -> str:
        """Return what stands behind the dot, once it is checked."""
        return text

    @classmethod
    def terms_of(cls, part: Any) -> tuple[Term, ...]:
        """Return what a part means that names no layers: a ranking, unless changed.

        Raises:
            SelectionError: it is none.
        """
        selection = parse_selection(part)
        if not all(isinstance(term, Ranked) and term.order in ("lowest", "highest") for term in selection.terms):
            raise SelectionError(f"{part!r} is no selection of {cls.what}", allowed=cls.grammar)
        return selection.terms

    def spots(self, draft: Draft, stack: str | None, scores: Mapping[Ranked, Score]) -> tuple[str, ...]:
        """Return what is chosen as `POSITION.NAME`, in the order of the layers.

        Raises:
            SelectionError: a layer has no such thing, or a score is missing.
        """
        raise NotImplementedError

    def contradiction(self, chosen: Sequence[str], draft: Draft, stack: str | None) -> str:
        """Return what it comes to instead of `chosen`, in words; empty where it may come to that.

        Raises:
            SelectionError: it asks for what is not there.
        """
        raise NotImplementedError


def _parts(raw: Any) -> Sequence[Any]:
    if isinstance(raw, str):
        return [raw] if raw.strip().startswith("except ") else split_terms(raw)
    return raw if isinstance(raw, (list, tuple)) else [raw]


def required(term: Ranked, scores: Mapping[Ranked, Score]) -> Score:
    """Return the score of a ranking.

    Raises:
        SelectionError: it has not been measured.
    """
    if term not in scores:
        raise SelectionError(f"{term.by} has not been measured here", hint="run the recipe where it can be measured")
    return scores[term]


def split_spot(spot: Any, what: str, example: str) -> tuple[int, str]:
    """Return the position and the name in a spot; `what` and `example` are for the message where it is none.

    Raises:
        SelectionError: it is none.
    """
    position, dot, name = str(spot).partition(".")
    if not dot or not position.isdigit():
        raise SelectionError(f"{spot!r} is no {what}", allowed=f"POSITION.NAME, such as {example}")
    return int(position), name


def many(least: int, most: int) -> str:
    """Say how many."""
    return f"{least} of them" if least == most else f"{least} to {most} of them"
