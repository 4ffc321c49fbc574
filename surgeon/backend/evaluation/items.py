"""What an evaluation puts before a model: windows of text, questions with their choices, prompts, pairs; tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from surgeon.backend.data.chat_template import rendered
from surgeon.backend.data.dialogues import PAYLOAD, Messages, assistant, content_of
from surgeon.backend.data.row import Row
from surgeon.backend.data.rows import read_rows, unread_by
from surgeon.backend.data.tokens import Tokens, TokenStream, ids_of, labelled, start_of, whole_text
from surgeon.backend.model.losses import IGNORED
from surgeon.core.recipe.evaluation_metrics import Measure
from surgeon.errors import DataError

_UNCUT = 2**40


@dataclass(frozen=True)
class Items:
    """What is put before a model. An example is one sequence or several: a window, the choices, a prompt, a pair.

    sizes: for each example tokens, or UTF-8 bytes of each choice.   answers: the right choices.
    texts: the right answers to prompts.   nbytes: UTF-8 bytes of all text.   left_out: rows that are too long.
    unread: which keys of the rows nothing reads, in words.
    """

    examples: Sequence[tuple[Tokens, ...]]
    sizes: Sequence[Sequence[int]] = ()
    answers: Sequence[int] = ()
    texts: Sequence[str] = ()
    nbytes: int = 0
    left_out: int = 0
    unread: str = ""

    @property
    def digest(self) -> str:
        """Sixteen hex digits that name everything the model is asked."""
        tokens = [[(one.tokens, one.labels) for one in example] for example in self.examples]
        plain = (tokens, self.sizes, self.answers, self.texts, self.nbytes)
        return hashlib.sha256(msgspec.json.encode(plain)).hexdigest()[:16]


def read_items(measure: Measure, data: str | None, root: Path, tokenizer: Any) -> Items:
    """Read the data of an evaluation.

    Raises:
        DataError: it cannot be read, a row lacks what is measured, or nothing fits into `max_length`.
    """
    rows, _ = read_rows(data, root, measure.rows)
    if measure.kind in ("text", "divergence"):
        items = _windows(rows, tokenizer, measure.max_length)
    elif measure.kind == "responses":
        items = _responses(rows, tokenizer, measure.max_length)
    elif measure.kind == "choices":
        items = _questions(rows, tokenizer, measure.max_length)
    elif measure.kind == "answers":
        items = _prompts(rows, tokenizer, measure.max_length)
    else:
        items = _pairs(rows, tokenizer, measure.max_length)
    if not items.examples:
        raise DataError(
            f"holds nothing of at most {measure.max_length} tokens to measure", where=data or "data",
            hint="give other data, or raise max_length",
        )  # fmt: skip
    return replace(items, unread=unread_by(data, rows, tokenizer))


def _windows(rows: Sequence[Row], tokenizer: Any, length: int) -> Items:
    """Cut all text into windows in which each token is predicted exactly once.

    Documents are parted by the end-of-text token, which is context and is not predicted: no byte of text is in it. A
    window begins with the token before it, or with BOS where the tokenizer adds one.
    """
    start, end = start_of(tokenizer), tokenizer.eos_token_id
    parted = ([end], [IGNORED]) if end is not None else ([], [])
    stream = TokenStream()
    nbytes = 0
    for row in rows:
        text = whole_text(row, tokenizer)
        ids = ids_of(text, tokenizer)
        nbytes += len(text.encode())
        stream.add([*ids, *parted[0]], [*ids, *parted[1]], row.where)
    before: list[int] = start[:1] or parted[0]
    first = 0
    if not before:  # nothing can stand before the first token, so it is context alone
        before, first = stream.ids[:1], 1
        nbytes -= len(tokenizer.decode(before).encode())
    cuts = list(_cuts(stream, first, start, before, length))
    windows = [(window,) for window in cuts if any(label != IGNORED for label in window.labels)]
    sizes = [[sum(label != IGNORED for label in window.labels)] for (window,) in windows]
    return Items(windows, sizes, nbytes=nbytes)


def _cuts(stream: TokenStream, begin: int, start: list[int], before: list[int], length: int) -> Iterator[Tokens]:
    for at in range(begin, len(stream.ids), length):
        first = start or (stream.ids[at - 1 : at] if at > begin else before)
        labels = stream.labels[at : at + length]
        tokens = [*first, *stream.ids[at : at + len(labels) - 1]]
        yield Tokens(tokens, labels, marks=stream.marks_of(at, at + length, len(first)))


def _questions(rows: Sequence[Row], tokenizer: Any, length: int) -> Items:
    examples, sizes, answers, left_out = [], [], [], 0
    for row in rows:
        if not row.choices:
            raise DataError("has no choices", where=row.where, allowed='{"question", "choices": [texts], "answer": 0}')
        choices = [_sequence(row, (*row.asked, assistant(choice)), tokenizer) for choice in row.choices]
        if max(len(one.tokens) for one in choices) > length:
            left_out += 1
            continue
        examples.append(tuple(choices))
        sizes.append([max(1, len(choice.encode())) for choice in row.choices])
        answers.append(row.choices.index(content_of(row.right or {})))
    return Items(examples, sizes, answers, left_out=left_out)


def _sequence(row: Row, messages: Messages, tokenizer: Any) -> Tokens:
    """Return a dialogue of a row, of which the last answer alone is labelled."""
    dialogue = rendered(messages, row, tokenizer)
    found = labelled(dialogue, dialogue.last_alone, tokenizer, _UNCUT, row)
    if found is None:
        raise DataError("has an answer without any token", where=row.where)
    return found


def _responses(rows: Sequence[Row], tokenizer: Any, length: int) -> Items:
    found = [_answered(row, tokenizer) for row in rows]
    fitting = [(one,) for one in found if len(one.tokens) <= length]
    sizes = [[sum(label != IGNORED for label in one.labels)] for (one,) in fitting]
    return Items(fitting, sizes, left_out=len(found) - len(fitting))


def _prompts(rows: Sequence[Row], tokenizer: Any, length: int) -> Items:
    examples, texts, left_out = [], [], 0
    for row in rows:
        _refuse_unanswered(row)
        if any((row.right or {}).get(key) for key in PAYLOAD):
            raise DataError(
                "has an answer with more than a text, and exact_match compares texts alone", where=row.where,
                allowed="answers that are texts", hint="measure response_perplexity",
            )  # fmt: skip
        asked = _asked(row, tokenizer)
        if len(asked) > length:
            left_out += 1
            continue
        examples.append((Tokens(asked, [IGNORED] * len(asked), marks=((0, row.where),)),))
        texts.append(content_of(row.right or {}).strip())
    return Items(examples, texts=texts, left_out=left_out)


def _asked(row: Row, tokenizer: Any) -> list[int]:
    """Return what the model is asked with: all that the chat template writes before an answer."""
    text = rendered(row.messages, row, tokenizer).asked
    start, ids = start_of(tokenizer), ids_of(text, tokenizer)
    return ids if ids[: len(start)] == start else [*start, *ids]


def _answered(row: Row, tokenizer: Any) -> Tokens:
    """Return a dialogue whose last answer alone is labelled."""
    _refuse_unanswered(row)
    return _sequence(row, row.messages, tokenizer)


def _refuse_unanswered(row: Row) -> None:
    if row.right is None:
        raise DataError("has no answer", where=row.where, allowed='{"prompt", "response"}, {"messages"}')


def _pairs(rows: Sequence[Row], tokenizer: Any, length: int) -> Items:
    examples, left_out = [], 0
    for row in rows:
        if row.right is None or row.wrong is None:
            raise DataError(
                'has no "chosen" and "rejected"', where=row.where, allowed='{"prompt", "chosen", "rejected"}'
            )
        pair = (_sequence(row, row.ended_rightly, tokenizer), _sequence(row, row.ended_wrongly, tokenizer))
        if max(len(one.tokens) for one in pair) > length:
            left_out += 1
            continue
        examples.append(pair)
    return Items(examples, left_out=left_out)
