"""Calibration text as sequences of token ids: read, tokenised, packed without padding."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from surgeon.backend.data.chat_template import rendered_row
from surgeon.backend.data.row import Row
from surgeon.backend.data.rows import rows_of, unread_by
from surgeon.backend.data.sources import open_source
from surgeon.backend.data.tokens import Tokens, TokenStream, ids_of, pieces_of, start_of
from surgeon.backend.model.losses import IGNORED
from surgeon.core.scoring.score import PYTHON_DOCS
from surgeon.errors import DataError

# Position 0 is left out of averages, so one token tells nothing; and a BOS token may take one place.
_SHORTEST = 3


@dataclass(frozen=True)
class Calibration:
    """Sequences of equal length, (sequences, length), and the digest of the text they come from.

    `targets_BT` holds the label of each position or -1. Where rows have an answer, the one label of a row is the
    answer's first token, at the last token of the prompt; otherwise every position but the first is labelled with
    what follows. `rows` are the sequences with the places they come from; `unread` says which keys nothing reads.
    """

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    digest: str
    rows: tuple[Tokens, ...] = field(default=(), compare=False)
    unread: str = ""


def read_calibration(
    data: str | None, root: Path, tokenizer: Any, *, sequences: int, length: int, seed: int
) -> Calibration:
    """Read rows, shuffle them by `seed`, and pack the first tokens into `sequences` of `length`.

    Every sequence starts as the model's tokenizer starts a text: with its BOS token if it adds one, otherwise not.
    Of a data set on the hub no more rows are fetched than tokens are wanted; a file is read whole.

    `data` is whatever training reads, relative to `root`, or None for the built-in text.

    Raises:
        DataError: it cannot be read, a row is of no known form, or it is too short.
    """
    if sequences < 1 or length < _SHORTEST:
        raise DataError(
            f"{sequences} sequences of {length} tokens measure nothing",
            allowed=f"at least 1 sequence of {_SHORTEST} tokens",
        )
    source = open_source(data, root)
    start = start_of(tokenizer)
    room = length - len(start)
    wanted = sequences * room
    rows = [row for row in rows_of(source, wanted) if row.text is None or row.text.strip()]
    unread = unread_by(data, rows, tokenizer)
    random.Random(seed).shuffle(rows)
    stream = TokenStream()
    for row in rows:
        stream.add(*_tokenize(row, tokenizer), row.where)
        if len(stream.ids) >= wanted:
            break
    if len(stream.ids) < wanted:
        raise DataError(
            f"holds {len(stream.ids)} tokens",
            where=data or PYTHON_DOCS,
            allowed=f"at least {wanted} ({sequences} sequences of {length})",
            hint="give a longer file, or fewer or shorter sequences",
        )
    packed = [_cut(stream, at, room, start) for at in range(0, wanted, room)]
    tokens_BT = torch.tensor([one.tokens for one in packed])
    targets_BT = torch.tensor([one.labels for one in packed])
    if not (targets_BT >= 0).any():
        targets_BT = torch.cat([tokens_BT[:, 1:], torch.full((sequences, 1), IGNORED)], dim=1)
        targets_BT[:, 0] = IGNORED
    return Calibration(tokens_BT, targets_BT, source.digest(), tuple(packed), unread)


def _cut(stream: TokenStream, at: int, room: int, start: list[int]) -> Tokens:
    labels = [*[IGNORED] * len(start), *stream.labels[at : at + room]]
    return Tokens(start + stream.ids[at : at + room], labels, marks=stream.marks_of(at, at + room, len(start)))


def _tokenize(row: Row, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return a row's tokens, and the first token of its last answer as the label of the token before it."""
    dialogue = rendered_row(row, tokenizer)
    asked, answer = dialogue.text[: dialogue.begins], dialogue.text[dialogue.begins :]
    if not asked or not answer:
        ids = ids_of(dialogue.text + "\n\n", tokenizer)
        return ids, [IGNORED] * len(ids)
    before, after = pieces_of([asked, answer + "\n\n"], tokenizer)
    return before + after, [IGNORED] * (len(before) - 1) + after[:1] + [IGNORED] * len(after)
