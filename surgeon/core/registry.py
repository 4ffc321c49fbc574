"""Finds the extensions of one kind by listing their package. A broken file is an error, never skipped."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeVar

from surgeon.errors import SurgeonError

Kind = TypeVar("Kind")


def modules_of(package: str) -> list[ModuleType]:
    """Import every module of a package, in the order of their names."""
    found = import_module(package)
    return [import_module(f"{package}.{module.name}") for module in iter_modules(found.__path__)]


@cache
def classes_of(package: str, base: type[Kind]) -> dict[str, type[Kind]]:
    """Return the concrete subclasses of `base` that the package's modules define, by their `name`.

    Raises:
        SurgeonError: two of them have the same name, or one has none.
    """
    found: dict[str, type[Kind]] = {}
    for module in modules_of(package):
        for thing in vars(module).values():
            if not inspect.isclass(thing) or thing.__module__ != module.__name__ or not issubclass(thing, base):
                continue
            name = getattr(thing, "name", None)
            if not isinstance(name, str):
                raise SurgeonError(f"{thing.__qualname__} has no name", where=module.__name__)
            if name in found:
                raise SurgeonError(
                    f"the name {name!r} is used twice", where=f"{module.__name__}, {found[name].__module__}"
                )
            found[name] = thing
    return found
