"""Training data as token sequences with labels: running text packed, answers and pairs one by one, padded in batches.

Files are JSON lines or plain text, see `read_rows`. Nothing is shuffled here: which examples a step sees is computed
from the seed and the step's number alone, so that an interrupted run goes on exactly where it was.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from surgeon.backend.data.rows import Row, Turn, read_rows
from surgeon.backend.data.text_sources import start_of
from surgeon.backend.model.losses import IGNORED
from surgeon.core.recipe.learning_step import LearningStep
from surgeon.core.recipe.objective import Rows
from surgeon.errors import DataError


@dataclass(frozen=True)
class Tokens:
    """One sequence: `labels[t]` is the token after `tokens[t]`, or -1; `weights` weighs the labels."""

    tokens: list[int]
    labels: list[int]
    weights: list[float] | None = None


Example = tuple[Tokens, ...]
"""The sequences that belong together: one, or the chosen one and the rejected one."""


@dataclass(frozen=True)
class Examples:
    """All examples of one source, and the digest of its text. `left_out` rows have no answer within the length."""

    examples: Sequence[Example]
    digest: str
    left_out: int = 0

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
        return Examples(rest, self.digest, self.left_out), Examples(held, self.digest)


Rewarding = Callable[[Sequence[Row]], Sequence[Row]]
"""Gives rows the token rewards that they lack."""


def read_examples(
    data: str | None, root: Path, tokenizer: Any, rows: Rows, max_length: int, rewarding: Rewarding | None = None
) -> Examples:
    """Read a source and tokenise it.

    Raises:
        DataError: it cannot be read, a row lacks what the objective needs, or nothing is left.
    """
    found, digest = read_rows(data, root, tokenizer)
    if rows == "text":
        examples: list[Example] = [(one,) for one in _packed(found, tokenizer, max_length)]
        left_out = 0
    else:
        given: Sequence[Row] = rewarding(found) if rewarding is not None and rows == "rejected" else found
        make = {"answers": _answer, "pairs": _pair, "rejected": _rejected}[rows]
        examples = [example for row in given if (example := make(row, tokenizer, max_length))]
        left_out = len(given) - len(examples)
        if rows == "rejected":
            _refuse_mixed(given)
    if not examples:
        what = f"no answer within {max_length} tokens" if found else "nothing to learn from"
        hint = "raise max_length" if found else ""
        raise DataError(f"holds {what}", where=data or "data", allowed=f"rows of {rows}", hint=hint)
    return Examples(examples, digest, left_out)


def _refuse_mixed(rows: Sequence[Row]) -> None:
    bare = [row for row in rows if row.rewards is None]
    if bare and len(bare) < len(rows):
        raise DataError(
            'has no token rewards, and other rows have', where=bare[0].where,
            allowed='"reward" in every row, or in none', hint="name a rewriter: it judges the rows that have none",
        )  # fmt: skip


def _packed(rows: Sequence[Row], tokenizer: Any, length: int) -> Iterator[Tokens]:
    """Cut running text, documents parted by the end-of-text token, into sequences of full length."""
    start = start_of(tokenizer)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    ids = [token for row in rows for token in (*_ids(row.whole, tokenizer), *end)]
    room = length - len(start)
    cuts = range(0, len(ids) - room + 1, room) if len(ids) >= room else range(1 if len(ids) > 1 else 0)
    for at in cuts:
        tokens = start + ids[at : at + room]
        labels = [IGNORED] * max(len(start) - 1, 0) + tokens[max(len(start), 1) :] + [IGNORED]
        yield Tokens(tokens, labels)


def _answer(row: Row, tokenizer: Any, length: int) -> Example | None:
    if row.right is None:
        what = "has a wrong answer alone" if row.wrong is not None else "has no answer"
        raise DataError(what, where=row.where, allowed='{"messages"} with an answer at the end, {"prompt", "response"}')
    counted = [is_answer for _, is_answer in row.turns]
    if sum(counted) <= sum(message["role"] == "assistant" for message in row.asked):
        raise DataError(
            "has several answers, and the model's chat template rewrites all but the last", where=row.where,
            hint="give each answer a row of its own, with the messages before it",
        )  # fmt: skip
    return labelled(row.turns, counted, tokenizer, length)


def _pair(row: Row, tokenizer: Any, length: int) -> Example | None:
    if row.rejected is None or row.right is None:
        raise DataError('has no "chosen" and "rejected"', where=row.where, allowed='{"prompt", "chosen", "rejected"}')
    counted = last_alone(row)
    chosen = labelled(row.turns, counted, tokenizer, length)
    rejected = labelled((*row.turns[:-1], row.rejected), counted, tokenizer, length)
    return (*chosen, *rejected) if chosen and rejected else None


def _rejected(row: Row, tokenizer: Any, length: int) -> Example | None:
    if row.rejected is None:
        raise DataError(
            "has no wrong answer", where=row.where, allowed='{"prompt", "chosen", "rejected"} or token rewards'
        )
    turns = (*row.turns[:-1], row.rejected)
    return labelled(turns, last_alone(row), tokenizer, length, row)


def last_alone(row: Row) -> list[bool]:
    """Return which turns count: the last. Earlier answers are the same for all answers to a dialogue's end."""
    return [False] * (len(row.turns) - 1) + [True]


def labelled(
    turns: Sequence[Turn], counted: Sequence[bool], tokenizer: Any, length: int, rewarded: Row | None = None
) -> Example | None:
    """Return a dialogue with labels on the turns that count, cut at `length`; None where none is left within it."""
    pieces = list(_pieces([text for text, _ in turns], tokenizer))
    start = start_of(tokenizer)
    if pieces[0][: len(start)] == start:  # many chat templates write it themselves
        start = []
    tokens = [*start, *(token for piece in pieces for token in piece)]
    counts = [False] * len(start) + [count for piece, count in zip(pieces, counted, strict=True) for _ in piece]
    weights = None
    if rewarded is not None and rewarded.rewards is not None:
        weights = _spread(rewarded.rewards, counts, rewarded.where, turns[-1][0])[:length]
    labels = [token if count else IGNORED for token, count in zip(tokens[1:], counts[1:], strict=True)]
    labels = [*labels[: length - 1], IGNORED]
    if all(label == IGNORED for label in labels):
        return None
    return (Tokens(tokens[:length], labels, weights),)


def _pieces(texts: Sequence[str], tokenizer: Any) -> Iterator[list[int]]:
    """Yield the tokens of each text as it follows the one before it.

    On its own a text may begin otherwise: tokenizers made with SentencePiece write a space in front of it. Where a
    token would reach over the border, both are cut on their own, as a prompt is when the model is to answer it.
    """
    first = _ids(texts[0], tokenizer)
    yield first
    for at, (before, text) in enumerate(pairwise(texts)):
        asked, both = _ids(before, tokenizer) if at else first, _ids(before + text, tokenizer)
        yield both[len(asked) :] if both[: len(asked)] == asked else _ids(text, tokenizer)


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


def _ids(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


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
