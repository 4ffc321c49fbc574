"""Which experts, neurons or heads: the language for layers, of the parts within each layer.

`0,3`, `first 2`, `except 0-5`, `lowest 25% by expert_activation` mean the same in each layer: those numbers, or so many
of each layer's own. `3.0`, `0-3.5-7` (a selection of layers, a dot, numbers) mean parts of these layers alone. What it
comes to is one text for each layer, `POSITION.NUMBERS`, such as `3.0,5-7`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import msgspec

from surgeon.core.parts.divide import divide
from surgeon.core.parts.division import PartKind
from surgeon.core.plan.draft import Draft
from surgeon.core.plan.layer_layouts import layout_of
from surgeon.core.scoring.requests import request_name
from surgeon.core.scoring.score import Score
from surgeon.core.scoring.score_kinds import score_kinds
from surgeon.core.selection.ranking import number_of
from surgeon.core.selection.selection import Ranked, Selection, Term, parse_selection, spans
from surgeon.core.selection.spot_selection import SpotSelection, many, required, split_spot
from surgeon.errors import SelectionError


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a layer, as a selection looks at what it selects from."""

    key: str
    original: None = None
    inserted: bool = False


class PartSelection(SpotSelection):
    """A parsed selection of parts of one kind.

    multiple: a share leaves a multiple of so many parts: fewer go than it says.
    """

    __slots__ = ("multiple",)
    kind: ClassVar[PartKind]

    def __init__(self, terms: tuple[Term, ...], named: tuple[tuple[Selection, str], ...], raw: Any) -> None:
        super().__init__(terms, named, raw)
        self.multiple = 1

    def leaving_multiples(self, multiple: int) -> Self:
        """Return the selection whose shares leave a multiple of so many parts."""
        found = type(self)(self.terms, self.named, self.raw)
        found.multiple = multiple
        return found

    @classmethod
    def name_of(cls, text: str) -> str:
        """Return numbers as text, once they are checked."""
        cls.terms_of(text)
        return text

    @classmethod
    def terms_of(cls, part: Any) -> tuple[Term, ...]:
        """Return what a part means that names no layers.

        Raises:
            SelectionError: it makes no sense for parts of layers.
        """
        selection = parse_selection(part)
        text = part if isinstance(part, str) else str(part)
        for term in selection.ranked():
            name = request_name(term.by)
            measured = score_kinds()[name].part
            if measured != cls.kind or term.order not in ("lowest", "highest"):
                raise SelectionError(
                    f"{name} says nothing of single {cls.kind}" if measured != cls.kind
                    else f"{term.order} is for layers",
                    allowed=", ".join(score for score, kind in score_kinds().items() if kind.part == cls.kind)
                    if measured != cls.kind else "lowest, highest",
                )  # fmt: skip
            if term.protect:
                raise SelectionError(
                    f"protect names layers, and {cls.kind} are chosen in each layer on its own",
                    allowed=f"lowest 25% by …, or the {cls.kind} of chosen layers: 3.0",
                )
        if any(word in text for word in ("original", "inserted")):
            raise SelectionError(f"{text!r} says something of layers, and {cls.kind} are numbered", allowed=cls.grammar)
        return selection.terms

    def numbers(self, draft: Draft, stack: str | None, scores: Mapping[Ranked, Score]) -> dict[int, tuple[int, ...]]:
        """Return the chosen parts of each layer that has such parts, by its position.

        Raises:
            SelectionError: a layer has no such part, or a score is missing.
        """
        counts = part_counts(draft, stack, self.kind)
        layers = draft.layers(stack)
        chosen: dict[int, set[int]] = {position: set() for position in counts}
        for position, count in counts.items() if self.terms else ():
            chosen[position].update(self._resolved(self.terms, position, count, layers[position].key, scores))
        for where, name in self.named:
            for position in where.positions(layers):
                if position not in counts:
                    raise SelectionError(f"layer {position} has no {self.kind}", allowed=spans(sorted(counts)))
                terms = parse_selection(name).terms
                count, key = counts[position], layers[position].key
                chosen[position].update(self._resolved(terms, position, count, key, scores))
        return {position: tuple(sorted(numbers)) for position, numbers in chosen.items()}

    def spots(self, draft: Draft, stack: str | None, scores: Mapping[Ranked, Score]) -> tuple[str, ...]:
        """Return the chosen parts as `POSITION.NUMBERS`, one text for each layer that has any to lose.

        Raises:
            SelectionError: a layer has no such part, or a score is missing.
        """
        numbers = self.numbers(draft, stack, scores)
        return tuple(f"{position}.{spans(found)}" for position, found in sorted(numbers.items()) if found)

    def contradiction(self, chosen: Sequence[str], draft: Draft, stack: str | None) -> str:
        """Return what it comes to instead of `chosen`, in words; empty where it may come to that.

        Raises:
            SelectionError: it asks for what is not there.
        """
        found, counts = numbers_by_position(chosen), part_counts(draft, stack, self.kind)
        stray = next((f"{at}.{numbers[-1]}" for at, numbers in found.items() if numbers[-1] >= counts.get(at, 0)), None)
        if stray:
            return f"is {self.kind} of the model, and {stray} is none"
        if not any(self.ranked()):
            expected = {at: numbers for at, numbers in self.numbers(draft, stack, {}).items() if numbers}
            return "" if expected == found else f"is {', '.join(self.spots(draft, stack, {})) or 'none'}"
        for position, count in counts.items():
            here = found.get(position, ())
            most = sum(self._number(term, count) for term in self.ranked())
            plain = [term for term in self.terms if not isinstance(term, Ranked)]
            if not plain and not self.named and len(here) > most:
                return f"is {many(most, most)} in layer {position}"
        return ""

    def _resolved(
        self, terms: Sequence[Term], position: int, count: int, key: str, scores: Mapping[Ranked, Score]
    ) -> tuple[int, ...]:
        selection = Selection(tuple(terms), self.raw)
        ranked = {term: self._score(term, scores, key, count, position) for term in selection.ranked()}
        exact = {term: self._exact(term, count) for term in ranked}
        known = {exact[term]: score for term, score in ranked.items()}
        try:
            rounded = Selection(tuple(exact.get(term, term) for term in terms), self.raw)  # type: ignore[arg-type]
            return rounded.positions([_Part(str(number)) for number in range(count)], known)  # type: ignore[misc]
        except SelectionError as error:
            what = error.what.replace("layers", self.kind)
            raise SelectionError(
                f"{what}, in layer {position}", allowed=f"layer {position} has {self.kind} 0-{count - 1} at this step"
            ) from error

    def _number(self, term: Ranked, count: int) -> int:
        wanted = number_of(term.count, count)
        if not term.count.endswith("%") or self.multiple == 1:
            return wanted
        return max(0, count - -(-(count - wanted) // self.multiple) * self.multiple)

    def _exact(self, term: Ranked, count: int) -> Ranked:
        return replace(term, count=str(self._number(term, count)))

    def _score(self, term: Ranked, scores: Mapping[Ranked, Score], key: str, count: int, position: int) -> Score:
        """Return a layer's part of a score, as if its parts were layers."""
        score = required(term, scores)
        values = score.parts.get(key, [])
        if len(values) != count:
            raise SelectionError(
                f"{score.name} has {len(values) or 'no'} values for the {count} {self.kind} of layer {position}",
                hint="measure it on the model at this step",
            )
        own = {str(number): value for number, value in enumerate(values)}
        return msgspec.structs.replace(score, values=own, blocks={}, details={}, parts={})


class ExpertSelection(PartSelection):
    """Experts of layers that have some."""

    __slots__ = ()
    kind = "experts"
    what = "experts"
    metavar = "EXPERTS"
    grammar = "0,3 · lowest 25% by expert_activation · lowest 2 by expert_frequency · except 0-5 · 3.0 (of layer 3)"


class NeuronSelection(PartSelection):
    """Neurons in the middle of layers' MLPs."""

    __slots__ = ()
    kind = "neurons"
    what = "neurons"
    metavar = "NEURONS"
    grammar = "lowest 25% by neuron_activation · lowest 512 by neuron_fluctuation · 0-63 · 3.0-63 (neurons of layer 3)"


class HeadSelection(PartSelection):
    """Key-value heads of layers, each with its query heads."""

    __slots__ = ()
    kind = "heads"
    what = "key-value heads"
    metavar = "HEADS"
    grammar = "lowest 1 by head_activation · 0,2 · 3.0 (head 0 of layer 3)"


def part_counts(draft: Draft, stack: str | None, kind: PartKind) -> dict[int, int]:
    """Return how many parts of a kind the layers of a draft have that have any, by position.

    Raises:
        ArchitectureError: one cannot be divided.
    """
    structure, found = draft.structure, draft.structure.stack(stack)
    config = structure.stack_config(found)
    return {
        position: division.count
        for position, layer in enumerate(draft.layers(stack))
        if (division := divide(structure, config, layout_of(structure, found, layer.source), kind))
    }


def numbers_by_position(spots: Sequence[Any]) -> dict[int, tuple[int, ...]]:
    """Turn `POSITION.NUMBERS` texts into numbers by position.

    Raises:
        SelectionError: one is not of that form.
    """
    found: dict[int, set[int]] = {}
    for spot in spots:
        position, numbers = split_spot(spot, "part of a layer", "3.0,5-7")
        found.setdefault(position, set()).update(_numbers(numbers, spot))
    return {position: tuple(sorted(numbers)) for position, numbers in found.items()}


def _numbers(text: str, spot: Any) -> Iterator[int]:
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise SelectionError(f"{spot!r} names no parts of a layer", allowed="POSITION.NUMBERS, such as 3.0,5-7")
        yield from range(int(first), int(last or first) + 1)


def by_scores_of_layers(selection: Selection) -> Selection:
    """Return a selection of layers.

    Raises:
        SelectionError: it ranks them by a score of their parts, which layers without such parts do not have.
    """
    kinds = score_kinds()
    for term in selection.ranked():
        part = kinds[request_name(term.by)].part
        if part:
            raise SelectionError(
                f"{request_name(term.by)} says nothing of whole layers, only of their {part}",
                allowed=", ".join(name for name, kind in kinds.items() if not kind.part),
            )
    return selection
