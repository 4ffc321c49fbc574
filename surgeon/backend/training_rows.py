"""Rows of training data: what a file says, before anything is tokenised.

`{"text"}` · `{"messages"}` · `{"prompt", "response"}` · `{"prompt", "chosen", "rejected"}` · for forgetting
`{"prompt", "rejected", "reward": [per token]}`. Plain text is cut at empty lines. Dialogues take the form of the model's
own chat template; without one, turns are parted by line ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.backend.calibration import PYTHON_DOCS
from surgeon.errors import DataError

Turn = tuple[str, bool]
"""A piece of text as the model reads it, and whether it is an answer, which is learned."""


@dataclass(frozen=True)
class Row:
    """One row. `rejected` replaces the last turn; `rewards` weigh the tokens of the last answer."""

    where: str
    turns: tuple[Turn, ...]
    rejected: Turn | None = None
    rewards: tuple[float, ...] | None = None

    @property
    def whole(self) -> str:
        """All of its text."""
        return "".join(text for text, _ in self.turns)


def read_rows(data: str | None, root: Path, tokenizer: Any) -> tuple[list[Row], str]:
    """Read a source: a file relative to `root`, or the built-in text; return its rows and the digest of its text.

    Raises:
        DataError: it cannot be read, or a row is of no known form.
    """
    if data in (None, PYTHON_DOCS):
        texts = _python_docs()
        return [Row(PYTHON_DOCS, ((text, False),)) for text in texts], source_digest(None, root)
    path, raw = _bytes(str(data), root)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=str(path)) from error
    if path.suffix in (".jsonl", ".json"):
        rows = list(_json_rows(text, path, tokenizer))
    else:
        rows = [Row(str(path), ((part, False),)) for part in text.split("\n\n\n") if part.strip()]
    return rows, _digest(raw)


def source_digest(data: str | None, root: Path) -> str:
    """Return the digest of a source's bytes.

    Raises:
        DataError: it cannot be read.
    """
    if data in (None, PYTHON_DOCS):
        return _digest("\0".join(_python_docs()).encode())
    return _digest(_bytes(str(data), root)[1])


def _bytes(data: str, root: Path) -> tuple[Path, bytes]:
    path = root / Path(data).expanduser()
    try:
        return path, path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", where=str(path), allowed=f"a .jsonl or .txt file, or {PYTHON_DOCS}"
        ) from error


def _python_docs() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def _json_rows(text: str, path: Path, tokenizer: Any) -> Iterator[Row]:
    # Not splitlines: JSON strings may hold the other line ends of Unicode.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            plain = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"is not valid JSON: {error.msg}", where=where) from error
        yield _row(plain, where, tokenizer)


def _row(plain: Any, where: str, tokenizer: Any) -> Row:
    if isinstance(plain, Mapping):
        if isinstance(plain.get("text"), str):
            return Row(where, ((plain["text"], False),))
        messages = plain.get("messages")
        if messages is None and isinstance(plain.get("prompt"), str):
            answer = next(
                (plain[key] for key in ("response", "chosen", "rejected") if isinstance(plain.get(key), str)), None
            )
            if answer is not None:
                return _dialogue(_turns(plain["prompt"], answer), plain, where, tokenizer)
        elif isinstance(messages, list) and messages:
            return _dialogue(messages, plain, where, tokenizer)
    raise DataError(
        "has no text", where=where,
        allowed='{"text"}, {"messages"}, {"prompt", "response"} or {"prompt", "chosen", "rejected"}',
    )  # fmt: skip


def _turns(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _dialogue(messages: Sequence[Any], plain: Mapping[str, Any], where: str, tokenizer: Any) -> Row:
    turns = rendered(messages, where, tokenizer)
    rejected: Turn | None = None
    if isinstance(plain.get("rejected"), str):
        other = [*messages[:-1], {"role": "assistant", "content": plain["rejected"]}]
        rejected = rendered(other, where, tokenizer)[-1]
    rewards = plain.get("reward")
    return Row(where, turns, rejected, tuple(map(float, rewards)) if isinstance(rewards, list) else None)


def rendered(messages: Sequence[Any], where: str, tokenizer: Any) -> tuple[Turn, ...]:
    """Return a dialogue as the model reads it, piece by piece: what it is told, and what it answers.

    Raises:
        DataError: a message has no role or content, or the chat template refuses it.
    """
    try:
        roles = [(str(message["role"]), str(message["content"])) for message in messages]
    except (TypeError, KeyError) as error:
        raise DataError('has messages without "role" or "content"', where=where) from error
    if not getattr(tokenizer, "chat_template", None):
        end = tokenizer.eos_token or ""
        return tuple(
            (f"{text}{end}" if role == "assistant" else f"{text}\n", role == "assistant") for role, text in roles
        )
    turns: list[Turn] = []
    read = ""
    for at, (role, _) in enumerate(roles):
        if role != "assistant":
            continue
        asked = _template(tokenizer, messages[:at], where, prompt=True)
        answered = _template(tokenizer, messages[: at + 1], where, prompt=False)
        if not answered.startswith(asked) or not asked.startswith(read):
            raise DataError("does not fit the model's chat template: it rewrites earlier turns", where=where)
        turns += [(asked.removeprefix(read), False), (answered.removeprefix(asked), True)]
        read = answered
    return tuple(turns) or ((_template(tokenizer, messages, where, prompt=False), False),)


def _template(tokenizer: Any, messages: Sequence[Any], where: str, *, prompt: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # a template may raise anything, from jinja2 or its own checks
        raise DataError(f"does not fit the model's chat template: {error}", where=where) from error
