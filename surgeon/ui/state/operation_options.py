"""The fields of an operation as options: their types, and the parser of each option's text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import msgspec

from surgeon.core.recipe.operation import Operation
from surgeon.core.selection.matrix_selection import MatrixSelection
from surgeon.core.selection.selection import Selection

OptionParser = Callable[[str], Any]


def parse_yaml_value(text: str) -> Any:
    """Parse a value as the recipe's YAML does."""
    from surgeon.core.recipe.yaml_document import parse_value  # ruamel is loaded only when a value is parsed

    return parse_value(text)


def parse_switch(text: str) -> Any:
    """Parse a boolean option; without a value it is true."""
    return parse_yaml_value(text or "true")


def option_parsers(kind: type[Operation]) -> dict[str, OptionParser]:
    """Return the parser of each option of an operation, by the option's name."""
    return {field.encode_name.replace("_", "-"): _parser(field.type) for field in msgspec.structs.fields(kind)}


def _parser(annotation: Any) -> OptionParser:
    plain = unwrap_type(annotation)
    if plain is bool:
        return parse_switch
    if get_origin(plain) is tuple:
        parse_item = _parser(get_args(plain)[0])
        return lambda text: [parse_item(part.strip()) for part in text.split(",") if part.strip()]
    if plain is str or plain in (Selection, MatrixSelection) or get_origin(plain) is Literal:
        return str
    return parse_yaml_value


def unwrap_type(annotation: Any) -> Any:
    """Return a type without its `Annotated` metadata and without None."""
    if hasattr(annotation, "__metadata__"):
        return unwrap_type(get_args(annotation)[0])
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if type(None) in get_args(annotation) and len(parts) == 1:
        return unwrap_type(parts[0])
    return annotation


def contains_type(annotation: Any, target: type) -> bool:
    """Whether a field's type is or contains another type, perhaps annotated or optional."""
    plain = isinstance(annotation, type) and issubclass(annotation, target)
    return plain or any(contains_type(part, target) for part in getattr(annotation, "__args__", ()))
