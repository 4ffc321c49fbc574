"""The `:` line: the words of `surgeon` on a shell, about the model on the table."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

import msgspec

from surgeon.core.recipe.objective import ObjectiveChoice
from surgeon.core.recipe.operation import Operation, operations
from surgeon.core.scoring.requests import request_of, requested_scores, split_requests
from surgeon.core.scoring.score_kinds import score_kinds
from surgeon.errors import UsageError
from surgeon.ui.commands import commands

Reader = Callable[[str], Any]


def _value(text: str) -> Any:
    from surgeon.core.recipe.yaml_document import parse_value  # only when a line is typed

    return parse_value(text)


def _switch(text: str) -> Any:
    return _value(text or "true")


_WORDS: dict[str, dict[str, Reader]] = {
    "score": {
        "by": lambda text: tuple(split_requests(text)),
        "data": str,
        "sequences": _value,
        "length": _value,
        "device": str,
        "dtype": str,
    },
    "mark": {},
    "filter": {},
    "write": {},
    "export": {"out": str, "no-verify": _switch},
}
"""What can be typed beside the operations, with its options. Every other command takes no words."""

_REST = {"mark": "selection", "filter": "selection", "write": "path", "export": "out"}


@dataclass(frozen=True)
class Line:
    """One parsed line. `operation` is set where it is a step; `options` are its fields or the command's options."""

    word: str
    operation: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_line(text: str, model: str) -> Line:
    """Parse what was typed. A leading `surgeon` and the model's own name are passed over, so a command can be pasted.

    Raises:
        UsageError: it is no command, or an option is unknown or lacks its value.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{error}".lower(), allowed='quotes in pairs, such as --layers "first 2"') from error
    if words and words[0] == "surgeon":
        words = words[1:]
    if not words:
        raise UsageError("nothing is typed", allowed=", ".join(line_words()))
    word, rest = words[0], words[1:]
    if rest and rest[0] == model and word not in ("mark", "filter"):
        rest = rest[1:]
    name = word.replace("-", "_")
    if name in operations():
        return Line(word, name, _options(word, rest, operation_readers(operations()[name])))
    if word in _REST and rest and not rest[0].startswith("--"):
        at = next((number for number, part in enumerate(rest) if part.startswith("--")), len(rest))
        return Line(word, None, {_REST[word]: " ".join(rest[:at]), **_options(word, rest[at:], _WORDS[word])})
    if word in _WORDS:
        return Line(word, None, _options(word, rest, _WORDS[word]))
    if word in _plain_words():
        if rest:
            raise UsageError(f"{word} takes no words, not {rest[0]!r}")
        return Line(word)
    near = get_close_matches(word, line_words(), n=1)
    raise UsageError(
        f"no command {word!r}" + (f"; did you mean {near[0]!r}?" if near else ""), allowed=", ".join(line_words())
    )


def _plain_words() -> list[str]:
    return [command.id for command in commands() if command.group not in ("Move", "Mark") and "." not in command.id]


def line_words() -> list[str]:
    """Return every first word of a line."""
    return list(dict.fromkeys([*(name.replace("_", "-") for name in operations()), *_WORDS, *_plain_words()]))


def operation_readers(kind: type[Operation]) -> dict[str, Reader]:
    """Return how each option of an operation is read, by the option's name."""
    return {field.encode_name.replace("_", "-"): _reader(field.type) for field in msgspec.structs.fields(kind)}


def _reader(kind: Any) -> Reader:
    plain = bare(kind)
    if plain is bool:
        return _switch
    if plain in (int, float, ObjectiveChoice):
        return _value
    if get_origin(plain) is tuple:
        read = _reader(get_args(plain)[0])
        return lambda text: [read(part.strip()) for part in text.split(",") if part.strip()]
    return str


def bare(kind: Any) -> Any:
    """Return a type without its annotations and without None."""
    if hasattr(kind, "__metadata__"):
        return bare(get_args(kind)[0])
    parts = [part for part in get_args(kind) if part is not type(None)]
    if type(None) in get_args(kind) and len(parts) == 1:
        return bare(parts[0])
    return kind


def _options(word: str, words: Sequence[str], readers: Mapping[str, Reader]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at = 0
    while at < len(words):
        name, equals, value = words[at].removeprefix("--").partition("=")
        if not words[at].startswith("--"):
            raise UsageError(f"{words[at]!r} belongs to no option", where=word, allowed=_known(readers))
        if name.startswith("no-") and readers.get(name[3:]) is _switch and not equals:
            name, equals, value = name[3:], "=", "false"
        if name not in readers:
            near = get_close_matches(name, readers, n=1)
            raise UsageError(
                f"no option --{name}" + (f"; did you mean --{near[0]}?" if near else ""),
                where=word,
                allowed=_known(readers),
            )
        at += 1
        if not equals:
            # Words up to the next option belong together, so that a selection needs no quotes.
            end = next((number for number in range(at, len(words)) if words[number].startswith("--")), len(words))
            value, at = " ".join(words[at:end]), end
            if not value and readers[name] is not _switch:
                raise UsageError(f"--{name} needs a value", where=word)
        found[name.replace("-", "_")] = readers[name](value)
    return found


def _known(readers: Mapping[str, Reader]) -> str:
    return ", ".join(f"--{name}" for name in readers) or "no options"


def completion(text: str) -> str | None:
    """Return the line that the person seems to be typing, or None."""
    if not text.strip():
        return None
    *before, last = text.split(" ")
    if not before:
        choices = line_words()
    elif last.startswith("--"):
        choices = [f"--{name}" for name in _option_names(before[0])]
    elif before[-1] in ("by", "--by"):
        choices = list(score_kinds())
    else:
        choices = _values(before[0], before[-1])
    fits = sorted(choice for choice in choices if choice.startswith(last) and choice != last)
    return " ".join([*before, fits[0]]) if fits and last else None


def _option_names(word: str) -> list[str]:
    kind = operations().get(word.replace("-", "_"))
    return list(operation_readers(kind) if kind else _WORDS.get(word, {}))


def _values(word: str, option: str) -> list[str]:
    kind = operations().get(word.replace("-", "_"))
    for known in msgspec.structs.fields(kind) if kind else ():
        if f"--{known.encode_name.replace('_', '-')}" == option and get_origin(bare(known.type)) is Literal:
            return list(get_args(bare(known.type)))
    return []


def known_scores(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return scores as they are asked for, `all` spelled out.

    Raises:
        UsageError: there is no such score or setting.
    """
    asked = requested_scores(names)
    return tuple(map(request_of, asked))
