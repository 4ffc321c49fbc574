"""Search steps: against greedy removal by whole forwards; the table in the export; a replay that searches nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.backend.scoring import search as searching
from surgeon.core.recipe.recipe import recipe_from_builtins, step_of
from surgeon.errors import RecipeError, SelectionError
from surgeon.session import Session
from tests.backend.tiny_models import LAYERS
from tests.export.replaying import run
from tests.scores.sample_models import patient
from tests.scores.test_losses import Naive

SETTINGS = {"sequences": 6, "length": 24}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patient("llama", tmp_path_factory.mktemp("search") / "base")


def searched(base: Path, out: Path, **fields: Any) -> dict[str, Any]:
    step = {"search": {**SETTINGS, **fields}}
    return run(base, out, step, device="cpu", root=str(base.parent))


def kept(found: dict[str, Any]) -> list[int]:
    layers: list[int] = found["recipe"]["steps"][0]["resolved"]["layers"]
    return layers


def test_greedy_is_greedy_by_whole_forwards_of_the_edited_model(base: Path, tmp_path: Path) -> None:
    found = searched(base, tmp_path / "out", remove=3, by=["weight_norm"])
    (table,) = found["searches"]
    naive = Naive(base, "llama")
    loss = {len(one["layers"]): one for one in table["candidates"] if one["found_by"] == "search"}
    gone: tuple[int, ...] = ()
    for size in (1, 2, 3):
        rises = {
            layer: naive.rise([one for one in range(LAYERS) if one not in (*gone, layer)]).mean()
            for layer in range(LAYERS)
            if layer not in gone
        }
        gone = tuple(sorted((*gone, min(rises, key=lambda layer: rises[layer]))))
        if table["base_loss"] == pytest.approx(naive.base.mean(), rel=1e-4):  # the same pieces of text
            assert loss[size]["layers"] == gone
            assert loss[size]["rise"]["value"] == pytest.approx(min(rises.values()), abs=1e-4)
    shot = next(one for one in table["candidates"] if one["found_by"] == "weight_norm")
    best = min([shot, loss[3]], key=lambda one: one["rise"]["value"])
    assert best["kept"]
    assert kept(found) == list(best["layers"])
    assert table["measured"] <= 6 + 5 + 4 + 1
    written = json.loads((tmp_path / "out" / "surgeon_search.json").read_text())
    assert written["searches"] == json.loads(json.dumps([table]))


def test_a_replay_removes_the_same_layers_and_searches_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = searched(base, tmp_path / "out", remove=2, layers="1-5", width=2)
    assert 0 not in kept(found)
    again = searched(base, tmp_path / "again", remove=2, layers="1-5", width=2)  # from the cache
    assert again["searches"] == found["searches"]
    monkeypatch.setattr(searching, "search", None)
    plain = {**found["recipe"], "base": {"model": str(base)}}
    (step,) = plain["steps"]
    replayed = run(base, tmp_path / "replayed", step, device="cpu", root=str(base.parent))
    assert kept(replayed) == kept(found)
    assert replayed["searches"] == []
    same = ("model.safetensors", "README.md", "config.json")
    for name in same:
        assert (tmp_path / "replayed" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_layer_that_may_not_go_is_no_result_and_nothing_is_taken_for_one(base: Path) -> None:
    wrong: Any = {"search": {"remove": 1, "layers": "1-5"}, "resolved": {"layers": [0]}}
    with pytest.raises(SelectionError, match="leaves out 0"):
        run(base, base.parent / "wrong", wrong, device="cpu")
    with pytest.raises(RecipeError, match="ranks"):
        step_of("search", {"remove": 1, "layers": "lowest 3 by removal"}, "here").operation.selections()
    with pytest.raises(RecipeError, match="tries nothing"):
        searched(base, base.parent / "nothing", remove=1, width=0)
    session = Session.open(str(base))
    with pytest.raises(RecipeError, match="has not been measured"):
        session.step("search", {"remove": 1})


def test_rounds_are_the_steps_that_they_come_to() -> None:
    body = [{"prune": {"layers": 1}}, {"search": {"remove": 1}}]
    plain = {"version": 1, "base": {"model": "m"}, "steps": [{"repeat": {"times": 2, "steps": body}}, {"untie": {}}]}
    recipe = recipe_from_builtins(plain)
    assert [step.operation.name for step in recipe.steps] == ["prune", "search", "prune", "search", "untie"]
    for wrong, said in [
        ({"times": 0, "steps": body}, "times: is 0"), ({"times": 2}, "is no repetition"), (3, "is no repetition"),
        ({"times": 2, "steps": [{"repeat": {"times": 1, "steps": body}}]}, "holds `repeat`"),
        ({"times": 1, "steps": [{"prune": {"layer": 1}}]}, r"steps\[0\].repeat.steps\[0\].prune.layer"),
    ]:  # fmt: skip
        with pytest.raises(RecipeError, match=said):
            recipe_from_builtins({**plain, "steps": [{"repeat": wrong}]})
