"""What an evaluation puts before a model: windows of text, questions with their choices, prompts, pairs; tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from surgeon.backend.data.examples import Tokens, labelled, last_alone
from surgeon.backend.data.rows import Row, read_rows, rendered
from surgeon.backend.data.text_sources import start_of
from surgeon.backend.model.losses import IGNORED
from surgeon.core.recipe.evaluation import Measure
from surgeon.errors import DataError

_UNCUT = 2**40


@dataclass(frozen=True)
class Items:
    """What is put before a model. An example is one sequence or several: a window, the choices, a prompt, a pair.

    sizes: for each example tokens, or UTF-8 bytes of each choice.   answers: the right choices.
    texts: the right answers to prompts.   nbytes: UTF-8 bytes of all text.   left_out: rows that are too long.
    """

    examples: Sequence[tuple[Tokens, ...]]
    sizes: Sequence[Sequence[int]] = ()
    answers: Sequence[int] = ()
    texts: Sequence[str] = ()
    nbytes: int = 0
    left_out: int = 0

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
    rows = read_rows(data, root, tokenizer)[0][: measure.rows]
    if measure.kind == "text":
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
    return items


def _windows(rows: Sequence[Row], tokenizer: Any, length: int) -> Items:
    """Cut all text into windows in which each token is predicted exactly once.

    Documents are parted by the end-of-text token, which is context and is not predicted: no byte of text is in it. A
    window begins with the token before it, or with BOS where the tokenizer adds one.
    """
    start, end = start_of(tokenizer), tokenizer.eos_token_id
    nbytes = sum(len(row.whole.encode()) for row in rows)
    stream: list[int] = []
    labels: list[int] = []
    for row in rows:
        ids = tokenizer(row.whole, add_special_tokens=False)["input_ids"]
        stream += ids
        labels += ids
        if end is not None:
            stream.append(end)
            labels.append(IGNORED)
    before: list[int] = start[:1] or ([end] if end is not None else [])
    if not before:  # nothing can stand before the first token, so it is context alone
        before, stream, labels = stream[:1], stream[1:], labels[1:]
        nbytes -= len(tokenizer.decode(before).encode())
    cuts = list(_cuts(stream, labels, start, before, length))
    windows = [(window,) for window in cuts if any(label != IGNORED for label in window.labels)]
    sizes = [[sum(label != IGNORED for label in window.labels)] for (window,) in windows]
    return Items(windows, sizes, nbytes=nbytes)


def _cuts(stream: list[int], labels: list[int], start: list[int], before: list[int], length: int) -> Iterator[Tokens]:
    for at in range(0, len(stream), length):
        first = start or (stream[at - 1 : at] if at else before)
        window = labels[at : at + length]
        yield Tokens([*first, *stream[at : at + len(window) - 1]], window)


def _questions(rows: Sequence[Row], tokenizer: Any, length: int) -> Items:
    examples, sizes, answers, left_out = [], [], [], 0
    for row in rows:
        if not row.choices:
            raise DataError("has no choices", where=row.where, allowed='{"question", "choices": [texts], "answer": 0}')
        choices = [_sequence(row, choice, tokenizer) for choice in row.choices]
        if max(len(one.tokens) for one in choices) > length:
            left_out += 1
            continue
        examples.append(tuple(choices))
        sizes.append([max(1, len(choice.encode())) for choice in row.choices])
        answers.append(row.choices.index(row.right or ""))
    return Items(examples, sizes, answers, left_out=left_out)


def _sequence(row: Row, answer: str, tokenizer: Any) -> Tokens:
    """Return a row's messages with one answer, which alone is labelled."""
    turns = rendered([*row.asked, {"role": "assistant", "content": answer}], row.where, tokenizer)
    found = labelled(turns, [False] * (len(turns) - 1) + [True], tokenizer, _UNCUT)
    if found is None:
        raise DataError("has an answer without any token", where=row.where)
    return found[0]


def _responses(rows: Sequence[Row], tokenizer: Any, length: int) -> Items:
    found = [_answered(row, tokenizer) for row in rows]
    fitting = [(one,) for one in found if len(one.tokens) <= length]
    sizes = [[sum(label != IGNORED for label in one.labels)] for (one,) in fitting]
    return Items(fitting, sizes, left_out=len(found) - len(fitting))


def _prompts(rows: Sequence[Row], tokenizer: Any, length: int) -> Items:
    examples, texts, left_out = [], [], 0
    for row in rows:
        found = _answered(row, tokenizer)
        asked = next(at for at, label in enumerate(found.labels) if label != IGNORED) + 1
        if asked > length:
            left_out += 1
            continue
        examples.append((Tokens(found.tokens[:asked], [IGNORED] * asked),))
        texts.append((row.right or "").strip())
    return Items(examples, texts=texts, left_out=left_out)


def _answered(row: Row, tokenizer: Any) -> Tokens:
    """Return a dialogue whose last answer alone is labelled."""
    if row.right is None:
        raise DataError("has no answer", where=row.where, allowed='{"prompt", "response"}, {"messages"}')
    found = labelled(row.turns, last_alone(row), tokenizer, _UNCUT)
    if found is None:
        raise DataError("has an answer without any token", where=row.where)
    return found[0]


def _pairs(rows: Sequence[Row], tokenizer: Any, length: int) -> Items:
    examples, left_out = [], 0
    for row in rows:
        if row.right is None or row.wrong is None:
            raise DataError(
                'has no "chosen" and "rejected"', where=row.where, allowed='{"prompt", "chosen", "rejected"}'
            )
        pair = (_sequence(row, row.right, tokenizer), _sequence(row, row.wrong, tokenizer))
        if max(len(one.tokens) for one in pair) > length:
            left_out += 1
            continue
        examples.append(pair)
    return Items(examples, left_out=left_out)
