"""The `:` line: the commands of `surgeon` on a shell, applied to the open model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

import msgspec

from surgeon.core.recipe.operation import Operation, operations, selection_fields
from surgeon.core.scoring.requests import request_of, requested_scores, split_requests
from surgeon.core.scoring.score_kinds import score_kinds
from surgeon.errors import UsageError
from surgeon.ui.commands import commands
from surgeon.ui.state.operation_options import (
    OptionParser,
    option_parsers,
    parse_switch,
    parse_yaml_value,
    unwrap_type,
)

_COMMAND_OPTIONS: dict[str, dict[str, OptionParser]] = {
    "score": {
        "by": lambda text: tuple(split_requests(text)),
        "data": str,
        "sequences": parse_yaml_value,
        "length": parse_yaml_value,
        "device": str,
        "dtype": str,
        "weights-only": parse_switch,
    },
    "mark": {},
    "filter": {},
    "write": {},
    "export": {"out": str, "no-verify": parse_switch},
}
"""The commands beside the operations that take arguments, with their options."""

_POSITIONAL = {"mark": "selection", "filter": "selection", "write": "path", "export": "out"}
"""The option that a command's positional arguments are stored in."""


@dataclass(frozen=True)
class ParsedLine:
    """One parsed line. `operation` is set for a step; `options` are its fields or the command's options."""

    command: str
    operation: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_line(text: str, model: str) -> ParsedLine:
    """Parse a line. A leading `surgeon` and the model's own name are skipped, so a shell command can be pasted.

    Raises:
        UsageError: there is no such command, or an option is unknown or lacks its value.
    """
    try:
        tokens = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{error}".lower(), allowed='quotes in pairs, such as --layers "first 2"') from error
    if tokens and tokens[0] == "surgeon":
        tokens = tokens[1:]
    if not tokens:
        raise UsageError("nothing is typed", allowed=", ".join(command_names()))
    command, rest = tokens[0], tokens[1:]
    if rest and rest[0] == model and command not in ("mark", "filter"):
        rest = rest[1:]
    operation = command.replace("-", "_")
    if operation in operations():
        return ParsedLine(command, operation, _parse_operation(command, rest, operations()[operation]))
    if command in _COMMAND_OPTIONS:
        return ParsedLine(command, None, _parse_arguments(command, rest))
    if command in _commands_without_arguments():
        if rest:
            raise UsageError(f"{command} takes no words, not {rest[0]!r}")
        return ParsedLine(command)
    near = get_close_matches(command, command_names(), n=1)
    raise UsageError(
        f"no command {command!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
        allowed=", ".join(command_names()),
    )


def _parse_operation(command: str, tokens: Sequence[str], kind: type[Operation]) -> dict[str, Any]:
    """Parse the options of an operation; words before the first are its selection: `prune lowest 4 by removal`."""
    parsers, selectors, count = option_parsers(kind), [*selection_fields(kind)], _option_start(tokens, 0)
    if not selectors or not count:
        return _parse_options(command, tokens, parsers)
    return {selectors[0]: " ".join(tokens[:count]), **_parse_options(command, tokens[count:], parsers)}


def _parse_arguments(command: str, tokens: Sequence[str]) -> dict[str, Any]:
    """Parse the positional arguments up to the first option, then the options."""
    parsers = _COMMAND_OPTIONS[command]
    count = _option_start(tokens, 0)
    if command not in _POSITIONAL or not count:
        return _parse_options(command, tokens, parsers)
    return {_POSITIONAL[command]: " ".join(tokens[:count]), **_parse_options(command, tokens[count:], parsers)}


def _option_start(tokens: Sequence[str], start: int) -> int:
    """Return the index of the next option, or the end."""
    return next((index for index in range(start, len(tokens)) if tokens[index].startswith("--")), len(tokens))


def _commands_without_arguments() -> list[str]:
    return [command.id for command in commands() if command.group not in ("Move", "Mark") and "." not in command.id]


def command_names() -> list[str]:
    """Return every word that a line can start with."""
    names = [*(name.replace("_", "-") for name in operations()), *_COMMAND_OPTIONS, *_commands_without_arguments()]
    return list(dict.fromkeys(names))


def _parse_options(command: str, tokens: Sequence[str], parsers: Mapping[str, OptionParser]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    index = 0
    while index < len(tokens):
        name, equals, value = tokens[index].removeprefix("--").partition("=")
        if not tokens[index].startswith("--"):
            raise UsageError(f"{tokens[index]!r} belongs to no option", where=command, allowed=_option_list(parsers))
        if name.startswith("no-") and parsers.get(name[3:]) is parse_switch and not equals:
            name, equals, value = name[3:], "=", "false"
        if name not in parsers:
            near = get_close_matches(name, parsers, n=1)
            raise UsageError(
                f"no option --{name}" + (f"; did you mean --{near[0]}?" if near else ""),
                where=command,
                allowed=_option_list(parsers),
            )
        index += 1
        if not equals:
            # All tokens up to the next option form the value, so that a selection needs no quotes.
            end = _option_start(tokens, index)
            value, index = " ".join(tokens[index:end]), end
            if not value and parsers[name] is not parse_switch:
                raise UsageError(f"--{name} needs a value", where=command)
        options[name.replace("-", "_")] = parsers[name](value)
    return options


def _option_list(parsers: Mapping[str, OptionParser]) -> str:
    return ", ".join(f"--{name}" for name in parsers) or "no options"


def completion(text: str) -> str | None:
    """Return the line completed by one token, or None."""
    if not text.strip():
        return None
    *before, last = text.split(" ")
    if not before:
        choices = command_names()
    elif last.startswith("--"):
        choices = [f"--{name}" for name in _option_names(before[0])]
    elif before[-1] in ("by", "--by"):
        choices = list(score_kinds())
    else:
        choices = _literal_values(before[0], before[-1])
    matches = sorted(choice for choice in choices if choice.startswith(last) and choice != last)
    return " ".join([*before, matches[0]]) if matches and last else None


def _option_names(command: str) -> list[str]:
    kind = operations().get(command.replace("-", "_"))
    return list(option_parsers(kind) if kind else _COMMAND_OPTIONS.get(command, {}))


def _literal_values(command: str, option: str) -> list[str]:
    kind = operations().get(command.replace("-", "_"))
    for info in msgspec.structs.fields(kind) if kind else ():
        annotation = unwrap_type(info.type)
        if f"--{info.encode_name.replace('_', '-')}" == option and get_origin(annotation) is Literal:
            return list(get_args(annotation))
    return []


def score_requests(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return score requests in their normal form, with `all` expanded.

    Raises:
        UsageError: there is no such score or setting.
    """
    return tuple(map(request_of, requested_scores(names)))
