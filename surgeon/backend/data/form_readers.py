"""Parts of a row, found by their keys, become a row: running text, a question with choices, a dialogue with answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from surgeon.backend.data.dialogues import Message, Messages, answered, is_plain, messages_of, split, user, with_system
from surgeon.backend.data.row import READING, Row
from surgeon.errors import DataError

Cells = Mapping[str, tuple[str, Any]]
"""By part of a form: the key that the row has for it, and the value there."""


def _value(cells: Cells, part: str) -> Any:
    return cells[part][1] if part in cells else None


def read_text(cells: Cells, where: str) -> Row:
    """Return running text."""
    return Row(where, text=cells["text"][1])


def read_question(cells: Cells, where: str) -> Row:
    """Return a question with choices."""
    choices, number, asked = (_value(cells, part) for part in ("choices", "number", "asked"))
    offered = isinstance(choices, list) and len(choices) > 1 and all(isinstance(one, str) for one in choices)
    known = type(number) is int and offered and 0 <= number < len(choices)
    if not asked or not known or not isinstance(asked, str | list):
        raise DataError(
            "is no question with choices", where=where,
            allowed='{"question", "choices": [texts], "answer": the number of the right one, from 0}',
        )  # fmt: skip
    messages = with_system(_asked(cells, where), _value(cells, "system"), where)
    _, right = answered(messages, choices[number], "choices", where, as_text=True)
    since = READING if "system" in cells else 1
    return Row(where, asked=messages, right=right, choices=tuple(choices), since=since)


def _asked(cells: Cells, where: str) -> Messages:
    """Return the messages before the answer; with the answer, where it stands among them."""
    if "asked" not in cells:
        return ()
    key, value = cells["asked"]
    if isinstance(value, str):
        more = _value(cells, "input")
        if more is not None and not isinstance(more, str):
            raise DataError(f'has an "{cells["input"][0]}" that is no text', where=where, allowed="a text")
        messages: Messages = (user("\n".join(filter(None, (value, more)))),)
        return (*_history(_value(cells, "history"), where), *messages)
    if not isinstance(value, list) or not value:
        raise DataError(f'has no text in "{key}"', where=where, allowed="a text, or a list of messages")
    return messages_of(value, where)


def _history(turns: Any, where: str) -> Messages:
    """Return the turns before an instruction, as LLaMA-Factory writes them."""
    shaped = isinstance(turns or [], list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(one, str) for one in turn) for turn in turns or []
    )
    if not shaped:
        raise DataError('has a "history" of another form', where=where, allowed="[[question, answer], …]")
    both = [(user(asked), {"role": "assistant", "content": said}) for asked, said in turns or []]
    return tuple(one for turn in both for one in turn)


def read_dialogue(cells: Cells, where: str) -> Row:
    """Return a dialogue with its answers."""
    as_text = "asked" in cells and isinstance(cells["asked"][1], str)
    asked = _asked(cells, where)
    row = Row(where, tools=_tools(_value(cells, "tools"), where), variables=_variables(cells, where))
    right: Message | None = None
    before = asked
    if "right" in cells:
        before, right = answered(asked, cells["right"][1], cells["right"][0], where, as_text=as_text)
    elif not as_text:
        before, right = split(asked)
        asked = before
    wrong, before_wrong = None, before
    if "wrong" in cells:
        before_wrong, wrong = answered(asked, cells["wrong"][1], cells["wrong"][0], where, as_text=as_text)
    if "right" not in cells and right is None:
        before = before_wrong
    rewards, unread = _rewards(cells, where)
    if wrong is None and rewards is not None:  # an answer whose tokens are judged is there to be forgotten
        right, wrong, before_wrong = None, right, before
    if "label" in cells:
        right, wrong, before_wrong, unread = _labelled(cells, right, before, unread)
    system = _value(cells, "system")
    before, before_wrong = (with_system(one, system, where) for one in (before, before_wrong))
    if not before and not before_wrong:
        raise DataError("has no text before its answer", where=where, allowed="a question, and its answer")
    given = len(with_system(asked, system, where)) if cells.get("right", ("",))[0] == "completion" else 0
    row = replace(
        row, asked=before, right=right, wrong=wrong, asked_wrong=before_wrong if wrong is not None else (),
        rewards=rewards, unread=unread, given=min(given, len(before)),
    )  # fmt: skip
    return replace(row, since=READING if _read_anew(cells, row, asked) else 1)


def _read_anew(cells: Cells, row: Row, asked: Messages) -> bool:
    """Whether the first version of this reading took something else from the row, or less."""
    keys = {part: key for part, (key, _) in cells.items()}
    answers = [one for one in (row.right, row.wrong) if one is not None]
    histories = [one for one in (row.asked, row.asked_wrong) if one]
    return (
        bool(keys.keys() & {"system", "tools", "variables", "label", "history"})
        or keys.get("asked") not in (None, "prompt", "messages", "input")
        or (keys.get("right") not in (None, "response", "chosen") and not (keys["right"] == "output" and row.rewards))
        or keys.get("wrong") not in (None, "rejected", "output")
        or not all(map(is_plain, answers))
        or any(list(one) != list(histories[0]) for one in histories)
        or ("asked" in cells and any(list(one) != list(asked) for one in histories))
    )


def _labelled(
    cells: Cells, right: Message | None, before: Messages, unread: tuple[str, ...]
) -> tuple[Message | None, Message | None, Messages, tuple[str, ...]]:
    """Read TRL's unpaired preferences: an answer, and whether it is a good one."""
    good = {"true": True, "false": False}.get(str(cells["label"][1]).lower())
    if good is None:
        return right, None, (), (*unread, cells["label"][0])
    return (right, None, (), unread) if good else (None, right, before, unread)


def _rewards(cells: Cells, where: str) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
    """Return token rewards; one number for a whole answer is something else, and is not read."""
    if "rewards" not in cells:
        return None, ()
    key, found = cells["rewards"]
    if not isinstance(found, list):
        return None, (key,)
    if not all(type(one) in (int, float) and math.isfinite(one) for one in found):
        raise DataError(f'has a "{key}" that is no list of numbers', where=where, allowed="one number for each token")
    return tuple(map(float, found)), ()


def _tools(tools: Any, where: str) -> tuple[Any, ...]:
    """Return the tools that a dialogue may call: JSON schemas, or a text that says them."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except (ValueError, RecursionError) as error:
            raise DataError('has "tools" that are no JSON', where=where, allowed="a list of JSON schemas") from error
    if tools is not None and not (isinstance(tools, list) and all(isinstance(one, Mapping) for one in tools)):
        raise DataError('has "tools" that are no list', where=where, allowed="a list of JSON schemas")
    return tuple(tools or ())


_RESERVED = ("conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
             "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
             "return_assistant_tokens_mask", "messages", "sanitize_control_tokens")  # fmt: skip


def _variables(cells: Cells, where: str) -> Mapping[str, Any]:
    found = _value(cells, "variables") or {}
    if not isinstance(found, Mapping) or set(found) & set(_RESERVED):
        raise DataError(
            'has "chat_template_kwargs" that no template is given', where=where,
            allowed='variables of the template, such as {"enable_thinking": false}',
        )  # fmt: skip
    return found
