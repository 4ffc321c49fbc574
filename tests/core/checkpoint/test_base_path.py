"""A base that lies beside its recipe is found from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon.core.checkpoint.base_path import (
    locate_base,
    model_name,
    name_elsewhere,
    relative_model_name,
    resolved_model_name,
)
from surgeon.errors import CheckpointError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a model, one that is called as on the hub, one called demo, and recipes elsewhere."""
    for name in ("base", "org/model", "demo", "recipes/base", "out"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_only_a_name_with_a_dot_in_front_is_beside_the_recipe(place: Path) -> None:
    root = place / "recipes"
    assert locate_base("./base", root) == root / "base"
    assert locate_base("../base", root).samefile(place / "base")
    assert locate_base("base", root) == Path("base")
    assert locate_base(".", place / "base") == place / "base"
    assert model_name("org/model", root) == "org/model"
    assert model_name("~/base", root) == "~/base"
    with pytest.raises(CheckpointError, match=rf"{place}/nix: no such directory"):
        locate_base("../nix", root)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base", "../base"),
        ("org/model", "../org/model"),
        ("demo", "../demo"),
        ("./base", "../recipes/base"),
        ("../base", "../base"),
        ("..", "../"),
        ("nobody/nothing", "nobody/nothing"),
        ("/abs/olute", "/abs/olute"),
        ("~/base", "~/base"),
        ("./far", "../recipes/far"),
    ],
)
def test_a_directory_is_named_beside_the_recipe_that_is_written_elsewhere(
    place: Path, name: str, expected: str
) -> None:
    """One that is meant by its place is renamed wherever it is: a worker may be the one who has it."""
    found = relative_model_name(name, place / "recipes", place / "out")
    assert found.rstrip("/") == expected.rstrip("/")


def test_a_base_inside_the_recipes_directory_says_so(place: Path) -> None:
    assert relative_model_name("recipes/base", place, place / "recipes") == "./base"


def test_what_is_typed_with_a_dot_is_meant_from_here(place: Path) -> None:
    assert resolved_model_name("./base", place / "recipes") == "../base"
    assert resolved_model_name("base", place / "recipes") == "base"


def test_a_link_keeps_its_name_and_links_on_the_way_lead_nowhere_else(place: Path) -> None:
    (place / "current").symlink_to(place / "base")
    assert relative_model_name("current", place, place / "out") == "../current"
    deep = place / "real" / "deep"
    deep.mkdir(parents=True)
    (place / "link").symlink_to(deep)
    seen = relative_model_name("base", place, place / "link")
    assert (place / "link" / seen).samefile(place / "base")


def test_other_programs_find_it_from_the_current_directory(place: Path) -> None:
    """As they found what was typed here."""
    assert name_elsewhere("../base", place / "recipes") == "base"
    assert name_elsewhere("./base", place) == "base"
    assert name_elsewhere("base", place / "recipes") == "base"
    assert name_elsewhere("org/model", place) == "org/model"
