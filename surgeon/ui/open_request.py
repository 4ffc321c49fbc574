"""What an interface that ends wants to have opened next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OpenRequest:
    """A model, and the recipe to go on with."""

    model: str
    recipe: Path | None = None
