"""The YAML of a recipe: reading it with line numbers kept, faults named by line, writing it with comments kept.

Knows nothing of operations; what the parts mean is `recipe.py`'s business.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from surgeon.errors import RecipeError

_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")  # read as line breaks, or dropped, unless they are escaped


def read_document(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        RecipeError: it cannot be read, is not YAML, repeats a key, or uses aliases.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", where=str(path), hint="check the path") from error
    try:
        # Editing what is written once and meant twice would change both.
        aliases = [event for event in _yaml().parse(text) if isinstance(event, AliasEvent)]
        if aliases:
            line = aliases[0].start_mark.line + 1
            raise RecipeError(f"*{aliases[0].anchor} is an alias", where=f"{path}, line {line}", allowed="written out")
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"is not valid YAML: {_first_line(error.problem)}", where=f"{path}{line}") from error
    except (YAMLError, ValueError, RecursionError) as error:  # odd characters, impossible dates, bottomless nesting
        raise RecipeError(f"is not valid YAML: {_first_line(error)}", where=str(path)) from error


def write_document(plain: Mapping[str, Any], like: Path | None = None) -> str:
    """Return plain data as YAML; comments of the file `like` survive where the parts they stand at are unchanged.

    Raises:
        RecipeError: `like` is there and is no mapping, so it is no earlier version of this.
    """
    document = read_document(like) if like is not None and like.is_file() else None
    if document is None:
        document = CommentedMap()
    if not isinstance(document, CommentedMap):
        raise RecipeError("is there already and is no recipe", where=str(like), hint="choose another file name")
    _merge(document, plain)
    stream = io.StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()


def parse_value(text: str) -> Any:
    """Read a value as YAML does, for `--set` and for options.

    Raises:
        RecipeError: it is no YAML value.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{text!r} is no YAML value") from error


class _Exact(RoundTripRepresenter):
    """Keeps the form of a number that stood in a file, such as 1e-3, but cuts no digit off it."""

    def represent_scalar_float(self, data: Any) -> Any:
        """Write a number as it stood, or in full where that would be another."""
        node = super().represent_scalar_float(data)
        if not math.isfinite(data) or float(node.value) == float(data):
            return node
        return self.represent_float(float(data))


_Exact.add_representer(ScalarFloat, _Exact.represent_scalar_float)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Representer = _Exact
    yaml.width = 120
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _first_line(text: object) -> str:
    return (str(text).strip().splitlines() or ["unreadable"])[0]


def _merge(old: CommentedMap, new: Mapping[str, Any]) -> None:
    for key in [key for key in old if key not in new]:
        del old[key]
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, CommentedMap) and isinstance(value, dict):
            _merge(before, value)
        elif isinstance(before, CommentedSeq) and isinstance(value, list) and value:
            _merge_list(before, value)
        elif before != value or key not in old:
            old[_flow(key)] = _flow(value)


def _merge_list(old: CommentedSeq, new: list[Any]) -> None:
    del old[len(new) :]
    for at, value in enumerate(new):
        if at >= len(old):
            old.append(_flow(value))
        elif isinstance(old[at], CommentedMap) and isinstance(value, dict) and old[at].keys() == value.keys():
            _merge(old[at], value)
        elif old[at] != value:
            old[at] = _flow(value)


def _flow(value: Any, depth: int = 0) -> Any:
    """Write the inside of a step on one line, and lists of numbers too."""
    if isinstance(value, dict):
        node = CommentedMap({_flow(key): _flow(item, depth + 1) for key, item in value.items()})
        if depth:
            node.fa.set_flow_style()
        return node
    if isinstance(value, (list, tuple)):
        sequence = CommentedSeq([_flow(item, depth) for item in value])
        if not any(isinstance(item, dict) for item in value):
            sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, str) and _BREAKS.search(value):
        return DoubleQuotedScalarString(value)
    return value
