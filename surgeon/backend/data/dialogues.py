"""Dialogues as files write them, in one form: messages of role and content, and whatever else a template may read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.errors import DataError

Message = Mapping[str, Any]
Messages = tuple[Message, ...]

ASSISTANT = "assistant"
PAYLOAD = ("tool_calls", "reasoning_content", "thinking", "reasoning", "function_call")
"""What a message may say besides its content, or in place of it."""
_ROLES = {
    "human": "user", "user": "user", "gpt": ASSISTANT, "assistant": ASSISTANT, "chatgpt": ASSISTANT, "bing": ASSISTANT,
    "bard": ASSISTANT, "model": ASSISTANT, "system": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool", "function_call": ASSISTANT,
}  # fmt: skip
"""ShareGPT's names of roles, as axolotl and LLaMA-Factory read them."""
_SHAPE = '[{"role", "content"}, …] or [{"from", "value"}, …]'


def user(text: str) -> Message:
    """Return a question."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Return an answer."""
    return {"role": ASSISTANT, "content": text}


def content_of(message: Message) -> str:
    """Return a message's text; empty where it has none."""
    return str(message.get("content") or "")


def is_plain(message: Message) -> bool:
    """Whether a message has a role and a content and says nothing else."""
    return message.keys() <= {"role", "content"}


def messages_of(value: Any, where: str) -> Messages:
    """Return the messages that a file gives as a list, or as one message.

    Raises:
        DataError: one has no role or no content.
    """
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(_message(one, where) for one in listed)


def _message(one: Any, where: str) -> Message:
    if isinstance(one, Mapping) and "from" in one and "role" not in one:
        one = _of_sharegpt(one, where)
    if isinstance(one, Mapping):
        one = {key: value for key, value in one.items() if value is not None}
        says = isinstance(one.get("content"), str) or ("content" not in one and any(one.get(key) for key in PAYLOAD))
        if isinstance(one.get("role"), str) and says:
            return dict(one)
    raise DataError("has messages whose role or content is no text", where=where, allowed=_SHAPE)


def _of_sharegpt(one: Message, where: str) -> Message:
    said, value = one["from"], one.get("value")
    if not isinstance(said, str) or said not in _ROLES:
        raise DataError(f"has a message from {said!r}", where=where, allowed=", ".join(_ROLES))
    rest = {key: more for key, more in one.items() if key not in ("from", "value")}
    if said != "function_call":
        return {"role": _ROLES[said], "content": value, **rest}
    try:
        calls = json.loads(str(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            "has a function_call that is no JSON", where=where, allowed='{"name", "arguments"}, or a list of them'
        ) from error
    listed = calls if isinstance(calls, list) else [calls]
    return {"role": ASSISTANT, "tool_calls": [{"type": "function", "function": call} for call in listed], **rest}


def split(dialogue: Messages) -> tuple[Messages, Message | None]:
    """Return a dialogue without the answer that ends it, and the answer; None where none does."""
    if dialogue and dialogue[-1]["role"] == ASSISTANT:
        return dialogue[:-1], dialogue[-1]
    return dialogue, None


def answered(asked: Messages, value: Any, key: str, where: str, *, as_text: bool) -> tuple[Messages, Message]:
    """Return what stands before an answer, and the answer: a text, one message, a dialogue's end, or a whole dialogue.

    asked: what the row asks apart from it.   as_text: it was written as a text, which may be one message of many.

    Raises:
        DataError: it is none of these, or a whole dialogue in which what is asked does not occur.
    """
    if isinstance(value, str):
        if not asked:
            raise DataError(
                f'has a text in "{key}" and nothing that was asked', where=where,
                allowed='"prompt" beside it, or a list of messages', hint="give the question apart, as \"prompt\"",
            )  # fmt: skip
        return _awaiting(asked, key, where), assistant(value)
    if not isinstance(value, Mapping | Sequence) or not value:
        raise DataError(f'has a "{key}" whose role or content is no text', where=where, allowed=f"a text, or {_SHAPE}")
    messages = messages_of(value, where)
    before, answer = split(messages)
    if answer is None:
        raise DataError(
            f'has a "{key}" that ends with a message of {messages[-1]["role"]}', where=where,
            allowed="messages that end with one of the assistant",
        )  # fmt: skip
    if not before and asked:
        return _awaiting(asked, key, where), answer
    if not asked or _holds(before, asked, anywhere=as_text):
        return before, answer
    if not as_text and before[0]["role"] in (ASSISTANT, "tool"):
        return (*asked, *before), answer
    if not as_text and asked[-1]["role"] == ASSISTANT and before[0]["role"] == "user":
        return (*asked, *before), answer
    raise DataError(
        f'has a whole dialogue in "{key}", and what is asked apart from it does not occur there', where=where,
        allowed="the dialogue's own beginning, or nothing apart", hint="leave one of the two out",
    )  # fmt: skip


def _awaiting(asked: Messages, key: str, where: str) -> Messages:
    """Return what was asked, if it waits for an answer."""
    if asked[-1]["role"] == ASSISTANT:
        raise DataError(
            f'has an answer at the end of what is asked, and another one in "{key}"', where=where,
            allowed="messages that end with a question, and the answer apart",
        )  # fmt: skip
    return asked


def _holds(dialogue: Messages, asked: Messages, *, anywhere: bool) -> bool:
    """Whether a dialogue begins with what was asked, perhaps behind a system message; or has it anywhere."""
    seen, wanted = ([(one["role"], content_of(one).strip()) for one in some] for some in (dialogue, asked))
    if anywhere:
        return all(one in seen for one in wanted)
    behind = 1 if seen[:1] and seen[0][0] == "system" and wanted[0][0] != "system" else 0
    return seen[behind : behind + len(wanted)] == wanted


def with_system(messages: Messages, system: Any, where: str) -> Messages:
    """Return messages behind a system message that the row gives apart.

    Raises:
        DataError: it is no text, or they begin with another one.
    """
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise DataError('has a "system" that is no text', where=where, allowed="a text")
    if messages and messages[0]["role"] == "system":
        if content_of(messages[0]) != system:
            raise DataError("has two system messages that differ", where=where, allowed="one of them")
        return messages
    return ({"role": "system", "content": system}, *messages)
