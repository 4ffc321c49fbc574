"""Rows of training data: what a file says, before anything is tokenised.

`{"text"}` · `{"messages"}` · `{"prompt", "response"}` · `{"prompt", "chosen", "rejected"}` · `{"question" or "prompt",
"choices": [texts], "answer": the number of the right one}` · for forgetting
`{"prompt", "rejected", "reward": [per token]}`, or `{"input", "output", "reward"}` as in ALLO's files. Prompts and
answers are texts or lists of messages. Plain text is cut where two lines in a row are empty. Dialogues take the form of
the model's own chat template; without one, turns are parted by line ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.backend.data.hub_data import hub_digest, hub_rows, is_hub_data
from surgeon.backend.data.text_sources import (
    chat_text,
    decoded,
    digest_of_bytes,
    json_lines,
    parsed_json,
    python_docs,
    python_docs_digest,
    read_bytes,
)
from surgeon.core.recipe.data_paths import named_data
from surgeon.core.recipe.recipe import Recipe
from surgeon.core.scoring.score import PYTHON_DOCS
from surgeon.errors import DataError

Turn = tuple[str, bool]
"""A piece of text as the model reads it, and whether it is an answer, which is learned."""


Messages = Sequence[Mapping[str, Any]]
FORMS = '{"text"}, {"messages"}, {"prompt", "response"} or {"prompt", "chosen", "rejected"}'


@dataclass(frozen=True)
class Row:
    """One row. `turns` end in the right answer, if there is one, or else in the wrong one.

    rejected: the wrong answer, as a turn.   rewards: weigh the tokens of the wrong answer.
    asked, right, wrong: the messages before the answer, and the answers, as they were written.
    choices: all answers that a question offers.
    """

    where: str
    turns: tuple[Turn, ...]
    rejected: Turn | None = None
    rewards: tuple[float, ...] | None = None
    asked: Messages = ()
    right: str | None = None
    wrong: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def whole(self) -> str:
        """All of its text."""
        return "".join(text for text, _ in self.turns)


def require_data(recipe: Recipe, root: Path) -> None:
    """Refuse a recipe that will read what is not there, before hours are spent on what comes before it.

    Raises:
        DataError: data is no file, no data set's hub id, not the built-in text, no share of other data.
    """
    for where, data in named_data(recipe):
        path = root / Path(data).expanduser()
        if data != PYTHON_DOCS and not data.endswith("%") and not is_hub_data(data, root) and not path.is_file():
            raise DataError(
                f"names {data}, and there is no file {path}", where=where,
                allowed=f"a name from the recipe's data, a file, OWNER/NAME on the hub, or {PYTHON_DOCS}",
            )  # fmt: skip


def read_rows(data: str | None, root: Path, tokenizer: Any) -> tuple[list[Row], str]:
    """Read a source; return its rows and the digest of its text.

    It is a file relative to `root`, a data set's hub id, perhaps with a split behind a colon, or the built-in text.

    Raises:
        DataError: it cannot be read, or a row is of no known form.
    """
    if data in (None, PYTHON_DOCS):
        return [Row(PYTHON_DOCS, ((text, False),)) for text in python_docs()], python_docs_digest()
    if is_hub_data(str(data), root):
        found = hub_rows(str(data))
        rows = [_row(plain, f"{data}, row {number}", tokenizer) for number, plain in enumerate(found)]
        return rows, hub_digest(str(data))
    path, raw = _bytes(str(data), root)
    text = decoded(raw, path)
    if _is_json(path):
        rows = list(_json_rows(text, path, tokenizer))
    else:
        rows = [Row(str(path), ((part, False),)) for part in text.split("\n\n\n") if part.strip()]
    return rows, digest_of_bytes(raw)


def source_digest(data: str | None, root: Path) -> str:
    """Return the digest of a source's bytes, and of whether they are read as JSON.

    Raises:
        DataError: it cannot be read.
    """
    if data in (None, PYTHON_DOCS):
        return python_docs_digest()
    if is_hub_data(str(data), root):
        return hub_digest(str(data))
    path, raw = _bytes(str(data), root)
    return digest_of_bytes(raw) + ("" if _is_json(path) else "-text")


def _is_json(path: Path) -> bool:
    return path.suffix in (".jsonl", ".json")


def _bytes(data: str, root: Path) -> tuple[Path, bytes]:
    path = root / Path(data).expanduser()
    return path, read_bytes(path, f"a .jsonl or .txt file, a data set's hub id OWNER/NAME, or {PYTHON_DOCS}")


def _json_rows(text: str, path: Path, tokenizer: Any) -> Iterator[Row]:
    if text.lstrip().startswith("["):
        for number, plain in enumerate(parsed_json(text, str(path))):
            yield _row(plain, f"{path}, row {number}", tokenizer)
        return
    for plain, where in json_lines(text, path):
        yield _row(plain, where, tokenizer)


def _row(plain: Any, where: str, tokenizer: Any) -> Row:
    if not isinstance(plain, Mapping):
        raise DataError("is no mapping", where=where, allowed=FORMS)
    if isinstance(plain.get("text"), str):
        return Row(where, ((plain["text"], False),))
    if "choices" in plain:
        return _question(plain, where, tokenizer)
    rewards = _rewards(plain.get("reward"), where)
    asked = _asked(plain, rewards is not None)
    right = next((_last(plain[key]) for key in ("response", "chosen") if plain.get(key) is not None), None)
    wrong = _last(plain.get("output" if rewards is not None and "output" in plain else "rejected"))
    if right is None and asked and isinstance(asked[-1], Mapping) and asked[-1].get("role") == "assistant":
        asked, right = asked[:-1], asked[-1].get("content")
    if not asked:
        raise DataError("has no text", where=where, allowed=FORMS)
    if wrong is None and rewards is not None:  # an answer whose tokens are judged is there to be forgotten
        right, wrong = None, right
    turns = rendered(_answered(asked, wrong if right is None else right), where, tokenizer)
    rejected = rendered(_answered(asked, wrong), where, tokenizer)[-1] if wrong is not None else None
    return Row(where, turns, rejected, rewards, asked, right, wrong)


def _question(plain: Mapping[str, Any], where: str, tokenizer: Any) -> Row:
    choices, answer = plain["choices"], plain.get("answer")
    asked = _asked({"prompt": plain.get("prompt", plain.get("question"))}, rewarded=False)
    offered = isinstance(choices, list) and len(choices) > 1 and _are_texts(*choices)
    if not asked or not offered or type(answer) is not int or not 0 <= answer < len(choices):
        raise DataError(
            "is no question with choices", where=where,
            allowed='{"question", "choices": [texts], "answer": the number of the right one, from 0}',
        )  # fmt: skip
    turns = rendered(_answered(asked, choices[answer]), where, tokenizer)
    return Row(where, turns, asked=asked, right=choices[answer], choices=tuple(choices))


def _asked(plain: Mapping[str, Any], rewarded: bool) -> Messages:
    """Return the messages before the answer; with the answer, where it stands among them."""
    prompt = plain.get("prompt", plain.get("input") if rewarded else None)
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    for messages in (prompt, plain.get("messages")):
        if isinstance(messages, list):
            return messages
    chosen = plain.get("chosen", plain.get("rejected"))
    return chosen[:-1] if isinstance(chosen, list) else []


def _last(answer: Any) -> Any:
    """Return an answer's text: of messages, the last one's."""
    if isinstance(answer, list) and answer and isinstance(answer[-1], Mapping):
        return answer[-1].get("content")
    return answer


def _answered(asked: Messages, answer: str | None) -> Messages:
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def _rewards(found: Any, where: str) -> tuple[float, ...] | None:
    """Return token rewards; one number for a whole answer is something else, and is left alone."""
    if not isinstance(found, list):
        return None
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in found):
        raise DataError('has a "reward" that is no list of numbers', where=where, allowed="one number for each token")
    return tuple(map(float, found))


def rendered(messages: Sequence[Any], where: str, tokenizer: Any) -> tuple[Turn, ...]:
    """Return a dialogue as the model reads it, piece by piece: what it is told, and what it answers.

    Answers that a template writes otherwise once another follows, as Qwen3's does, are part of what it is told.

    Raises:
        DataError: a message has no role or content, or the chat template refuses it.
    """
    if not all(isinstance(one, Mapping) and _are_texts(one.get("role"), one.get("content")) for one in messages):
        raise DataError("has messages whose role or content is no text", where=where, allowed='{"role", "content"}')
    roles = [(message["role"], message["content"]) for message in messages]
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
        if not answered.startswith(asked):
            raise DataError(
                "does not fit the model's chat template: it asks for an answer with more than it writes before one",
                where=where, hint="give the model's directory a chat template that keeps what it asks with",
            )  # fmt: skip
        if not asked.startswith(read):
            turns, read = [], ""
        turns += [(asked.removeprefix(read), False), (answered.removeprefix(asked), True)]
        read = answered
    if roles[-1][0] != "assistant":
        whole = _template(tokenizer, messages, where, prompt=False)
        if not whole.startswith(read):
            turns, read = [], ""
        turns.append((whole.removeprefix(read), False))
    return tuple(turns)


def _are_texts(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _template(tokenizer: Any, messages: Sequence[Any], where: str, *, prompt: bool) -> str:
    try:
        return chat_text(tokenizer, messages, prompt=prompt)
    except Exception as error:  # a template may raise anything, from jinja2 or its own checks
        raise DataError(f"does not fit the model's chat template: {error}", where=where) from error
