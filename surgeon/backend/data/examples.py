"""Training data as token sequences with labels: running text packed, answers and pairs one by one, padded in batches.

Nothing is shuffled here: which examples a step sees is computed from the seed and the step's number alone, so that an
interrupted run goes on exactly where it was.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from surgeon.backend.data.chat_template import Rendered, rendered, rendered_row
from surgeon.backend.data.row import Row
from surgeon.backend.data.rows import rows_of, unread_by
from surgeon.backend.data.sources import open_source
from surgeon.backend.data.tokens import Tokens, TokenStream, ids_of, labelled, start_of, whole_text
from surgeon.backend.model.losses import IGNORED
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.objective import Rows
from surgeon.errors import DataError

Example = tuple[Tokens, ...]
"""The sequences that belong together: one, or the chosen one and the rejected one."""


@dataclass(frozen=True)
class Examples:
    """All examples of one source, and the digest of its text. `left_out` rows have no answer within the length.

    unread: which keys of the rows nothing reads, in words.
    """

    examples: Sequence[Example]
    digest: str
    left_out: int = 0
    unread: str = ""

    @property
    def weighted(self) -> bool:
        """Whether labels have weights."""
        return self.examples[0][0].weights is not None

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(one.tokens) for example in self.examples for one in example)

    def split(self, share: float) -> tuple[Examples, Examples]:
        """Return the examples to train on and those held out: every n-th, so that both are alike.

        Raises:
            DataError: there are too few, or the share is none.
        """
        if not 0 < share <= 0.5:
            raise DataError(f"{share:.0%} is no share to hold out", where="held_out", allowed="up to 50%, such as 5%")
        stride = max(2, round(1 / share))
        held = [example for at, example in enumerate(self.examples) if at % stride == stride - 1]
        rest = [example for at, example in enumerate(self.examples) if at % stride != stride - 1]
        if not held or not rest:
            raise DataError(f"{len(self.examples)} examples cannot spare a share of {share:.0%}", where="held_out")
        return Examples(rest, self.digest, self.left_out, self.unread), Examples(held, self.digest)


Rewarding = Callable[[Sequence[Row]], Sequence[Row]]
"""Gives rows the token rewards that they lack."""


@dataclass(frozen=True)
class Wanted:
    """How much of its data a training sees: so many examples, or so many tokens; all of it where neither is said."""

    examples: int | None = None
    tokens: int | None = None


ALL = Wanted()


def read_examples(
    data: str | None, root: Path, tokenizer: Any, rows: Rows, max_length: int, rewarding: Rewarding | None = None,
    wanted: Wanted = ALL,
) -> Examples:  # fmt: skip
    """Read a source and tokenise it. Of a source that is streamed, only what is wanted is fetched.

    Raises:
        DataError: it cannot be read, a row lacks what the objective needs, or nothing is left.
    """
    source = open_source(data, root)
    found: list[Row] = []
    if rows == "text":
        stream = _kept(rows_of(source), found)
        most = None
        if source.streamed:
            most = wanted.examples or (wanted.tokens and math.ceil(wanted.tokens / max_length))
        examples: list[Example] = [(one,) for one in _packed(stream, tokenizer, max_length, most)]
        left_out = 0
    else:
        stream = rows_of(source, wanted.examples if source.streamed else None)
        cut = wanted.tokens if source.streamed else None
        found += stream if cut is None else _up_to(stream, cut, tokenizer, max_length)
        given: Sequence[Row] = rewarding(found) if rewarding is not None and rows == "rejected" else found
        examples, left_out = examples_of(given, tokenizer, rows, max_length)
    if not examples:
        what = f"no answer within {max_length} tokens" if found else "nothing to learn from"
        hint = "raise max_length" if found else ""
        raise DataError(f"holds {what}", where=data or "data", allowed=f"rows of {rows}", hint=hint)
    unread = filter(None, (unread_by(data, found, tokenizer), _wrong_as_text(data, found) if rows == "text" else ""))
    return Examples(examples, source.digest(), left_out, "; ".join(unread))


def _wrong_as_text(data: str | None, rows: Sequence[Row]) -> str:
    """Say how many rows hold a wrong answer alone, which running text has no way to tell from a right one."""
    count = sum(row.wrong is not None and row.right is None for row in rows)
    return f"{data or 'data'}: {count} rows hold a wrong answer alone, which is learned like any text" if count else ""


def examples_of(rows: Sequence[Row], tokenizer: Any, kind: Rows, max_length: int) -> tuple[list[Example], int]:
    """Tokenise rows; return their examples, and how many rows have no answer within the length.

    Raises:
        DataError: a row lacks what the objective needs.
    """
    if kind == "text":
        return [(one,) for one in _packed(rows, tokenizer, max_length, None)], 0
    make = {"answers": _answer, "pairs": _pair, "rejected": _rejected}[kind]
    examples = [example for row in rows if (example := make(row, tokenizer, max_length))]
    if kind == "rejected":
        _refuse_mixed(rows)
    return examples, len(rows) - len(examples)


def _up_to(rows: Iterable[Row], tokens: int, tokenizer: Any, length: int) -> Iterator[Row]:
    """Yield rows until they have so many tokens, each cut at `length`."""
    read = 0
    for row in rows:
        yield row
        read += min(len(ids_of(whole_text(row, tokenizer), tokenizer)), length)
        if read >= tokens:
            return


def _kept(rows: Iterable[Row], found: list[Row]) -> Iterator[Row]:
    for row in rows:
        found.append(row)
        yield row


def _refuse_mixed(rows: Sequence[Row]) -> None:
    bare = [row for row in rows if row.rewards is None]
    if bare and len(bare) < len(rows):
        raise DataError(
            'has no token rewards, and other rows have', where=bare[0].where,
            allowed='"reward" in every row, or in none', hint="name a rewriter: it judges the rows that have none",
        )  # fmt: skip


def _packed(rows: Iterable[Row], tokenizer: Any, length: int, most: int | None) -> Iterator[Tokens]:
    """Cut running text, documents parted by the end-of-text token, into sequences of full length."""
    start = start_of(tokenizer)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    room = length - len(start)
    stream = TokenStream()
    for row in rows:
        ids = [*ids_of(whole_text(row, tokenizer), tokenizer), *end]
        stream.add(ids, ids, row.where)
        if most is not None and len(stream.ids) >= most * room:
            break
    ids = stream.ids
    cuts = range(0, len(ids) - room + 1, room) if len(ids) >= room else range(1 if len(ids) > 1 else 0)
    for at in cuts:
        tokens = start + ids[at : at + room]
        labels = [IGNORED] * max(len(start) - 1, 0) + tokens[max(len(start), 1) :] + [IGNORED]
        yield Tokens(tokens, labels, marks=stream.marks_of(at, at + room, len(start)))


def _answer(row: Row, tokenizer: Any, length: int) -> Example | None:
    if row.right is None:
        what = "has a wrong answer alone" if row.wrong is not None else "has no answer"
        raise DataError(what, where=row.where, allowed='{"messages"} with an answer at the end, {"prompt", "response"}')
    dialogue = rendered_row(row, tokenizer)
    if dialogue.rewritten:
        raise DataError(
            "has several answers, and the model's chat template rewrites all but the last", where=row.where,
            hint="give each answer a row of its own, with the messages before it",
        )  # fmt: skip
    return _alone(labelled(dialogue, dialogue.all_answers, tokenizer, length, row))


def _pair(row: Row, tokenizer: Any, length: int) -> Example | None:
    if row.wrong is None or row.right is None:
        raise DataError('has no "chosen" and "rejected"', where=row.where, allowed='{"prompt", "chosen", "rejected"}')
    both = (rendered(row.ended_rightly, row, tokenizer), rendered(row.ended_wrongly, row, tokenizer))
    chosen, rejected = (_last_alone(one, tokenizer, length, row) for one in both)
    return (chosen, rejected) if chosen and rejected else None


def _rejected(row: Row, tokenizer: Any, length: int) -> Example | None:
    if row.wrong is None:
        raise DataError(
            "has no wrong answer", where=row.where, allowed='{"prompt", "chosen", "rejected"} or token rewards'
        )
    dialogue = rendered(row.ended_wrongly, row, tokenizer)
    return _alone(labelled(dialogue, dialogue.last_alone, tokenizer, length, row, rewarded=True))


def _last_alone(dialogue: Rendered, tokenizer: Any, length: int, row: Row) -> Tokens | None:
    """Label the last answer: earlier ones are the same for all answers to a dialogue's end."""
    return labelled(dialogue, dialogue.last_alone, tokenizer, length, row)


def _alone(one: Tokens | None) -> Example | None:
    return None if one is None else (one,)


@dataclass(frozen=True)
class Batch:
    """Padded sequences, (B, T): tokens, attention mask, labels, their weights. Pairs: chosen first, then rejected."""

    tokens_BT: torch.Tensor
    mask_BT: torch.Tensor
    labels_BT: torch.Tensor
    weights_BT: torch.Tensor | None
    examples: tuple[int, ...]


def collate(examples: Sequence[Example], numbers: Sequence[int], device: torch.device) -> Batch:
    """Pad examples on the right; of pairs the chosen sequences come first. `numbers` are theirs in the data."""
    sequences = [example[part] for part in range(len(examples[0])) for example in examples]
    width = max(len(one.tokens) for one in sequences)

    def padded(rows: Sequence[Sequence[Any]], filling: Any) -> torch.Tensor:
        return torch.tensor([[*row, *[filling] * (width - len(row))] for row in rows], device=device)

    weighted = sequences[0].weights is not None
    return Batch(
        tokens_BT=padded([one.tokens for one in sequences], 0),
        mask_BT=padded([[1] * len(one.tokens) for one in sequences], 0),
        labels_BT=padded([one.labels for one in sequences], IGNORED),
        weights_BT=padded([one.weights or [] for one in sequences], 0.0) if weighted else None,
        examples=tuple(numbers),
    )


def examples_of_step(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Return the numbers of the examples that optimiser step `step` sees: every pass in an order of its own."""
    wanted = range(step * batch_size, (step + 1) * batch_size)
    return [_order(count, seed, at // count)[at % count] for at in wanted]


@cache
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    numbers = list(range(count))
    digest = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
    random.Random(int.from_bytes(digest[:8], "little")).shuffle(numbers)
    return tuple(numbers)


def steps_wanted(step: LearningStep, data: Examples) -> int:
    """Return how many optimiser steps a learning step's `steps`, `tokens` or `epochs` come to."""
    if step.steps is not None:
        return step.steps
    if step.tokens is not None:
        mean = sum(len(one.tokens) for example in data.examples for one in example) / len(data.examples)
        return max(1, math.ceil(step.tokens / (mean * step.batch_size)))
    return max(1, math.ceil((step.epochs or 1) * len(data.examples) / step.batch_size))
