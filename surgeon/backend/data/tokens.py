"""Rows as token sequences with labels, and where each token comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from surgeon.backend.data.chat_template import Rendered, rendered_row
from surgeon.backend.data.row import Row
from surgeon.backend.model.losses import IGNORED
from surgeon.errors import DataError


@dataclass(frozen=True)
class Tokens:
    """One sequence: `labels[t]` is the token after `tokens[t]`, or -1; `weights` weighs the labels.

    marks: positions from which on tokens come from another place of the data, and that place.
    """

    tokens: list[int]
    labels: list[int]
    weights: list[float] | None = None
    marks: Sequence[tuple[int, str]] = field(default=(), compare=False)

    def where_of(self, position: int) -> str:
        """Return the place in the data that a token comes from."""
        return next((where for start, where in reversed(self.marks) if start <= position), "")


class TokenStream:
    """Texts one after the other, each token with its label and its place in the data."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.marks: list[tuple[int, str]] = []

    def add(self, ids: Sequence[int], labels: Sequence[int], where: str) -> None:
        """Add the tokens of a row."""
        self.marks.append((len(self.ids), where))
        self.ids += ids
        self.labels += labels

    def marks_of(self, start: int, end: int, shift: int) -> list[tuple[int, str]]:
        """Return the marks of a part, in which the token at `start` stands at `shift`."""
        before = [mark for mark in self.marks if mark[0] <= start][-1:]
        return [(max(at - start, 0) + (shift if at > start else 0), where)
                for at, where in [*before, *(mark for mark in self.marks if start < mark[0] < end)]]  # fmt: skip


def start_of(tokenizer: Any) -> list[int]:
    """Return what the model's tokenizer starts a text with: its BOS token if it adds one."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def ids_of(text: str, tokenizer: Any) -> list[int]:
    """Return the tokens of a text, nothing added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def whole_text(row: Row, tokenizer: Any) -> str:
    """Return all of a row as the model reads it."""
    return rendered_row(row, tokenizer).text


def labelled(
    dialogue: Rendered, counted: Sequence[bool], tokenizer: Any, length: int, row: Row, *, rewarded: bool = False
) -> Tokens | None:
    """Return a dialogue with labels on the turns that count, cut at `length`; None where none is left within it."""
    turns = dialogue.turns
    pieces = list(pieces_of([text for text, _ in turns], tokenizer))
    start = start_of(tokenizer)
    if pieces[0][: len(start)] == start:  # many chat templates write it themselves
        start = []
    tokens = [*start, *(token for piece in pieces for token in piece)]
    counts = [False] * len(start) + [count for piece, count in zip(pieces, counted, strict=True) for _ in piece]
    weights = None
    if rewarded and row.rewards is not None:
        weights = _spread(row.rewards, counts, row.where, turns[-1][0])[:length]
    labels = [token if count else IGNORED for token, count in zip(tokens[1:], counts[1:], strict=True)]
    labels = [*labels[: length - 1], IGNORED]
    if all(label == IGNORED for label in labels):
        return None
    return Tokens(tokens[:length], labels, weights, ((0, row.where),))


def pieces_of(texts: Sequence[str], tokenizer: Any) -> Iterator[list[int]]:
    """Yield the tokens of each text as it follows the one before it.

    On its own a text may begin otherwise: tokenizers made with SentencePiece write a space in front of it. Where a
    token would reach over the border, both are cut on their own, as a prompt is when the model is to answer it.
    """
    first = ids_of(texts[0], tokenizer)
    yield first
    for at, (before, text) in enumerate(pairwise(texts)):
        asked, both = ids_of(before, tokenizer) if at else first, ids_of(before + text, tokenizer)
        yield both[len(asked) :] if both[: len(asked)] == asked else ids_of(text, tokenizer)


def _spread(rewards: Sequence[float], counts: Sequence[bool], where: str, answer: str) -> list[float]:
    """Return the weight of each position's label from one number per answer token."""
    if len(rewards) != sum(counts):
        raise DataError(
            f"has {len(rewards)} token rewards for an answer of {sum(counts)} tokens", where=where,
            hint=f"make them with this model's tokenizer, the end of the turn included: it ends in {answer[-16:]!r}",
        )  # fmt: skip
    told = iter(rewards)
    by_token = [next(told) if counted else 0.0 for counted in counts]
    return [*by_token[1:], 0.0]
