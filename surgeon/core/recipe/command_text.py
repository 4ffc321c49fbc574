"""A step in the words of the command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import msgspec

from surgeon.core.recipe.recipe import Step, step_to_builtins
from surgeon.core.scoring.requests import request_text
from surgeon.core.selection.selection import HEADS


def command_line(step: Step, model: str, *, trust_remote_code: bool = False) -> str:
    """Return the command that does the same as a step."""
    plain = step_to_builtins(msgspec.structs.replace(step, resolved=None))[step.operation.name]
    words = ["surgeon", step.operation.name.replace("_", "-"), model]
    for name, value in plain.items():
        option = name.replace("_", "-")
        switch = f"--{option}" if value else f"--no-{option}"
        words += [switch] if isinstance(value, bool) else [f"--{option}", option_text(value)]
    ranked = next((one for one in step.operation.ranked() if one.data or one.protect), None)
    if ranked is not None and ranked.data:
        words += ["--data", ranked.data]
    if ranked is not None and ranked.protect:
        words += ["--protect", ",".join(map(str, ranked.protect))]
    words += ["--trust-remote-code"] if trust_remote_code else []
    return " ".join(map(shlex.quote, words))


def option_text(value: Any) -> str:
    """Write a field's value as its command-line option takes it."""
    if isinstance(value, Mapping) and not any(head in value for head in HEADS):
        return msgspec.json.encode(value).decode()  # an objective with its settings, a bound: JSON is YAML
    if isinstance(value, Mapping):
        head, count = next((key, value[key]) for key in value if key not in ("by", "data", "protect"))
        return f"{head} {option_text(count)}" + (f" by {request_text(value['by'])}" if "by" in value else "")
    if isinstance(value, (list, tuple)):
        return ",".join(map(option_text, value))
    return str(value)
