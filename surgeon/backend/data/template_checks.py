"""Refuses dialogues of which a chat template leaves something out: what it does not write is not learned either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from surgeon.backend.data.dialogues import PAYLOAD, Message, Messages, content_of
from surgeon.backend.data.row import Row
from surgeon.errors import DataError

_PROBE = "surgeon"
_written: dict[tuple[str, str, str | None], bool] = {}
"""Whether a template writes a message of a role behind one of another role: tried once for all rows."""


class Write(Protocol):
    """Writes messages in a chat template."""

    def __call__(self, messages: Any, *, prompt: bool = False, tools: bool = True) -> str:
        """Return them as the model reads them."""
        ...


def refuse_unwritten(messages: Messages, row: Row, template: str, write: Write) -> None:
    """Refuse a dialogue of which the template leaves a message, a call, a thought or the tools out.

    Raises:
        DataError: there is such a thing; the error names its key or role.
    """
    for at, message in enumerate(messages):
        for key in PAYLOAD:
            if message.get(key) and not (template and _writes_key(messages[: at + 1], key, write)):
                raise _left_out(f'has "{key}"', row, template)
    if row.tools and not (template and write(messages) != write(messages, tools=False)):
        raise _left_out('has "tools"', row, template)
    if template:
        _refuse_unknown_roles(messages, row, template, write)


def _left_out(what: str, row: Row, template: str) -> DataError:
    who = "the model's chat template does not write" if template else "the model has no chat template to write"
    return DataError(
        f"{what}, which {who}", where=row.where, allowed="what the chat template writes",
        hint="give the model's directory a chat template that does, or leave it out",
    )  # fmt: skip


def _writes_key(messages: Messages, key: str, write: Write) -> bool:
    """Whether the last message is written otherwise with what it says under a key."""
    whole = write(messages)
    # Reasoning goes by several names, and transformers gives a template all of them.
    names = (key,) if key in ("tool_calls", "function_call") else ("reasoning_content", "thinking", "reasoning")
    rest = {name: value for name, value in messages[-1].items() if name not in names}
    try:
        return whole != write((*messages[:-1], {"content": "", **rest}))
    except DataError:  # it cannot do without
        return True


def _refuse_unknown_roles(messages: Messages, row: Row, template: str, write: Write) -> None:
    whole = write(messages)
    before: str | None = None
    for at, message in enumerate(messages):
        role, content = str(message["role"]), content_of(message).strip()
        key = (template, role, before)
        before = role
        if not content or (_written.get(key) and content in whole):
            continue
        if not _is_written(messages, at, whole, write):
            raise DataError(
                f"has a message of the role {role!r} that the model's chat template does not write", where=row.where,
                allowed="roles that it knows", hint="rename the role, or leave the message out",
            )  # fmt: skip
        _written[key] = True


def _is_written(messages: Messages, at: int, whole: str, write: Write) -> bool:
    """Whether another content of a message would be seen in the dialogue."""
    probed: Message = {**messages[at], "content": f"{_PROBE} {len(whole)}"}
    try:
        other = write((*messages[:at], probed, *messages[at + 1 :]))
    except DataError:  # it reads the content, or it could not mind
        return True
    return other != whole


def unread_message_keys(row: Row, template: str) -> tuple[str, ...]:
    """Return the keys of a row's messages that its chat template does not name."""
    messages = (*row.ended_rightly, *row.ended_wrongly)
    keys: Mapping[str, None] = dict.fromkeys(key for message in messages for key in message)
    return tuple(f"messages.{key}" for key in keys if key not in ("role", "content", *PAYLOAD, *_named(keys, template)))


def _named(keys: Mapping[str, None], template: str) -> tuple[str, ...]:
    return tuple(key for key in keys if key in template)
