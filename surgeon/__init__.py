"""surgeon: an operating room for language models. The public names, resolved when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    "Checkpoint": "surgeon.core.checkpoint.checkpoint",
    "open_checkpoint": "surgeon.core.checkpoint.checkpoint",
    "Structure": "surgeon.core.structure.structure",
    "Draft": "surgeon.core.plan.draft",
    "Plan": "surgeon.core.plan.plan",
    "Recipe": "surgeon.core.recipe.recipe",
    "Step": "surgeon.core.recipe.recipe",
    "Session": "surgeon.session",
    "SurgeonError": "surgeon.errors",
}

if TYPE_CHECKING:
    __version__ = ""

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - resolved by __getattr__


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'surgeon' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    # Late, because importlib.metadata alone takes as long to import as everything else that a command line needs.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("model-surgeon")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0.0.0"
