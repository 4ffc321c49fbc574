"""Dialogues as a model reads them: written by its chat template, parted into what is asked and what is answered.

Where an answer begins: where the dialogue with it and what the model is asked with part, as in TRL, and never behind
the answer's own first character. Templates that mark with `{% generation %}` what the model writes say it themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

from surgeon.backend.data.dialogues import ASSISTANT, Message, Messages, assistant, content_of
from surgeon.backend.data.row import Row
from surgeon.backend.data.template_checks import refuse_unwritten
from surgeon.errors import DataError

Turn = tuple[str, bool]
"""A piece of text as the model reads it, and whether it is an answer, which is learned."""
Span = tuple[int, int]

_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_ONE_DAY = date(2024, 7, 26)
"""The day of every dialogue, which Llama's templates name where they cannot tell today's."""
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A dialogue as the model reads it, piece by piece.

    asked: all that stands before the last answer, as the template asks for it; it may end in more than the dialogue
    keeps, such as `<think>`.   begins: where in the text the last answer begins.   learned_from: where the answers
    begin that are not context alone.   rewritten: whether one of them is written otherwise once others follow.
    """

    turns: tuple[Turn, ...]
    asked: str = ""
    begins: int = 0
    learned_from: int = 0
    rewritten: bool = False

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(text for text, _ in self.turns)

    @property
    def last_alone(self) -> list[bool]:
        """Which turns are the last answer, or parts of it."""
        return self._counted(self.begins)

    @property
    def all_answers(self) -> list[bool]:
        """Which turns are answers that may be learned."""
        return self._counted(self.learned_from)

    def _counted(self, start: int) -> list[bool]:
        counted, at = [], 0
        for text, is_answer in self.turns:
            end = at + len(text)
            counted.append(is_answer and (at >= start or end > start))
            at = end
        return counted


def rendered_row(row: Row, tokenizer: Any) -> Rendered:
    """Return a row with its right answer, or else with its wrong one; running text as it is."""
    if row.text is not None:
        return Rendered(((row.text, False),))
    return rendered(row.messages, row, tokenizer)


def rendered(messages: Messages, row: Row, tokenizer: Any) -> Rendered:
    """Return a dialogue of a row: its own, or one with another answer.

    Answers that a template writes otherwise once another follows, as Qwen3's does, are part of what it is told.

    Raises:
        DataError: the chat template refuses it, or leaves out a message, a call, a thought or the tools.
    """
    write = _Writer(tokenizer, row)
    refuse_unwritten(messages, row, write.template, write)
    if not write.template:
        return _in_lines(messages, row.given, tokenizer.eos_token or "")
    return _by_marks(messages, row, write) if _MARKED.search(write.template) else _by_parting(messages, row, write)


def is_marked(tokenizer: Any) -> bool:
    """Whether the model's chat template marks what the model writes."""
    template = getattr(tokenizer, "chat_template", None)
    return any(_MARKED.search(str(one)) for one in (template.values() if isinstance(template, dict) else [template]))


class _Writer:
    """Writes dialogues of one row in the model's chat template."""

    def __init__(self, tokenizer: Any, row: Row) -> None:
        self.tokenizer, self.row = tokenizer, row
        self.template = dated_template(tokenizer, row.tools, row.where)
        # Kept with their messages, whose ids name them.
        self._written: dict[tuple[tuple[int, ...], bool, bool], tuple[Sequence[Message], str]] = {}

    def __call__(self, messages: Sequence[Message], *, prompt: bool = False, tools: bool = True) -> str:
        key = (tuple(map(id, messages)), prompt, tools)
        if key not in self._written:
            settings = {"tools": list(self.row.tools) if tools and self.row.tools else None, **self.row.variables}
            write = self.tokenizer.apply_chat_template
            with _in_words(self.row.where):
                text = write(
                    list(messages),
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    **settings,
                )
            self._written[key] = (messages, str(text))
        return self._written[key][1]

    def begins(self, dialogue: Messages, at: int, answered: str) -> tuple[str, int]:
        """Return what the answer at `at` is asked with, and where it begins in the dialogue up to it."""
        asked = self(dialogue[:at], prompt=True) if at else ""
        if at and answered.startswith(asked):
            return asked, len(asked)
        first = content_of(dialogue[at]).lstrip()[:1]
        other = self((*dialogue[:at], assistant("1" if first == "0" else "0")))
        start = min(_shared(answered, other), _shared(answered, asked) if at else len(answered))
        before = self(dialogue[:at]) if at else ""
        if not answered[:start].startswith(before):
            raise DataError(
                "does not fit the model's chat template: it writes what was asked otherwise once it is answered",
                where=self.row.where,
            )
        return asked, start

    def marked(self, messages: Messages) -> tuple[str, list[Span]]:
        """Return a dialogue, and the spans that the template marks as written by the model."""
        from transformers.utils.chat_template_utils import render_jinja_template

        settings = {**self.tokenizer.special_tokens_map, **self.row.variables}
        plain = [{key: value for key, value in one.items() if value is not None} for one in messages]
        with _in_words(self.row.where):
            found: Any = render_jinja_template(
                conversations=[plain], tools=list(self.row.tools) or None, chat_template=self.template,
                return_assistant_tokens_mask=True, **settings,
            )  # fmt: skip
        ((text,), (spans,)) = found
        return text, [(int(start), int(end)) for start, end in spans if start < end]


@contextmanager
def _in_words(where: str) -> Iterator[None]:
    """Turn whatever a template raises, from jinja2 or its own checks, into an error in words."""
    try:
        yield
    except Exception as error:
        raise DataError(f"does not fit the model's chat template: {error}", where=where) from error


def dated_template(tokenizer: Any, tools: Sequence[Any] = (), where: str = "") -> str:
    """Return the model's chat template; empty where it has none.

    A template that writes today's date is given one day: what is learned or measured must not depend on when.
    """
    if not getattr(tokenizer, "chat_template", None):
        return ""
    try:
        template = tokenizer.get_chat_template(tools=list(tools) or None)
    except ValueError as error:
        raise DataError(f"finds no chat template to use: {error}", where=where) from error
    return _NOW.sub(lambda found: repr(_ONE_DAY.strftime(found[2])), template)


def _shared(one: str, other: str) -> int:
    """Return how long the common beginning is."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _in_lines(messages: Messages, given: int, end: str) -> Rendered:
    """Part turns by line ends, as a model without a chat template is told them."""
    answers = [one["role"] == ASSISTANT for one in messages]
    turns = [
        (f"{content_of(one)}{end}" if is_answer else f"{content_of(one)}\n", is_answer)
        for one, is_answer in zip(messages, answers, strict=True)
    ]
    before = "".join(text for text, _ in turns[:-1])
    return Rendered(
        tuple(turns), before if answers[-1] else "", len(before), sum(len(text) for text, _ in turns[:given])
    )


def _by_parting(messages: Messages, row: Row, write: _Writer) -> Rendered:
    turns: list[Turn] = []
    read = asked = ""
    begins = learned_from = 0
    rewritten = False
    for at, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        answered = write(messages[: at + 1])
        asked, begins = write.begins(messages, at, answered)
        if not answered[:begins].startswith(read):
            rewritten = rewritten or any(one["role"] == ASSISTANT for one in messages[row.given : at])
            turns, read = [], ""
        turns += [(answered[len(read) : begins], False), (answered[begins:], True)]
        read = answered
        if row.given and at < row.given:
            learned_from = len(answered)
    if messages[-1]["role"] != ASSISTANT:
        whole = write(messages)
        if not whole.startswith(read):
            rewritten = rewritten or any(one["role"] == ASSISTANT for one in messages[row.given :])
            turns, read = [], ""
        turns.append((whole.removeprefix(read), False))
        asked, begins = "", len(whole)
    return Rendered(tuple(turns), asked, begins, min(learned_from, begins), rewritten)


def _by_marks(messages: Messages, row: Row, write: _Writer) -> Rendered:
    text, spans = write.marked(messages)
    is_answered = messages[-1]["role"] == ASSISTANT
    asked, begins = write.begins(messages, len(messages) - 1, text) if is_answered else ("", len(text))
    learned_from = _shared(text, write(messages[: row.given], prompt=True)) if row.given else 0
    turns: list[Turn] = []
    at = 0
    for start, end in spans:
        turns += [(text[at:start], False), (text[start:end], True)] if start > at else [(text[at:end], True)]
        at = end
    if at < len(text):
        turns.append((text[at:], False))
    found = Rendered(tuple(turns), asked, begins, learned_from)
    if is_answered and not any(found.last_alone):
        raise DataError(
            "has an answer of which the model's chat template marks nothing as written by the model", where=row.where,
            hint="mend {% generation %} in the chat template, or take the marks out",
        )  # fmt: skip
    return found
