"""Whether the data that a recipe will read are there: no file is opened, and torch is not loaded."""

from __future__ import annotations

from pathlib import Path

from surgeon.backend.data.hub_data import HUB_FORMS, is_hub_data
from surgeon.core.recipe.data_paths import named_data
from surgeon.core.recipe.recipe import Recipe
from surgeon.core.scoring.score import PYTHON_DOCS
from surgeon.errors import DataError


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
                allowed=f"a name from the recipe's data, a file, {HUB_FORMS}, or {PYTHON_DOCS}",
            )  # fmt: skip
