"""mergekit's slices: read into steps that give the same layers, written so that its own reader gives them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.config_formats.mergekit import Mergekit
from surgeon.core.interchange.layer_sequence import Place, sequence_steps
from surgeon.core.plan.draft import Identity, Original
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.yaml_document import parse_value
from surgeon.errors import RecipeError
from tests.cli.tiny_checkpoints import tiny_llama
from tests.config_formats.peers import draft_at, exported, recipe_of

COUNT = 5
SILENT = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0}, {"value": 1.0}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama", layers=COUNT)


def sources(places: list[Place]) -> list[Any]:
    return [Identity(Original(one.layer)) if one.silenced else Original(one.layer) for one in places]


def slice_of(model: Any, first: int, end: int, **more: Any) -> dict[str, Any]:
    return {"sources": [{"model": str(model), "layer_range": [first, end], **more}]}


def merge(*slices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"merge_method": "passthrough", "slices": list(slices), **more}


PLACES = st.lists(st.builds(Place, st.none(), st.integers(0, COUNT - 1), st.booleans()), min_size=1, max_size=9)


@given(places=PLACES)
def test_any_sequence_of_layers_becomes_steps_that_give_it(base: Path, places: list[Place]) -> None:
    steps = sequence_steps(places, COUNT, {})
    draft = fold(draft_at(base), recipe_of(base, steps).steps)
    assert [layer.source for layer in draft.layers()] == sources(places)


@given(places=PLACES)
def test_what_is_written_is_read_again_as_the_same_layers(base: Path, places: list[Place]) -> None:
    text = Mergekit.write(exported(base, sequence_steps(places, COUNT, {}))).text
    again = Mergekit.read(parse_value(text), draft_at(base)).steps
    assert [layer.source for layer in fold(draft_at(base), recipe_of(base, again).steps).layers()] == sources(places)


def test_removing_layers_is_one_prune(base: Path) -> None:
    found = Mergekit.read(merge(slice_of(base, 0, 2), slice_of(base, 4, 5), dtype="float32"), draft_at(base))
    assert found.steps == ({"prune": {"layers": "2-3"}},)


def test_llama_pro_s_blocks_are_expansions(base: Path) -> None:
    plain = merge(slice_of(base, 0, 3), slice_of(base, 2, 3, parameters={"scale": SILENT}), slice_of(base, 3, 5))
    assert Mergekit.read(plain, draft_at(base)).steps == ({"expand": {"after": "2", "init": "copy"}},)


def test_modules_are_read_where_there_is_one(base: Path) -> None:
    plain = {"merge_method": "passthrough", "modules": {"default": {"slices": [slice_of(base, 1, 5)]}}}
    assert Mergekit.read(plain, draft_at(base)).steps == ({"prune": {"layers": "0"}},)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"merge_method": "slerp"}, "merge_method"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"out_dtype": "float16"}, "out_dtype"),
        ({"base_model": "other"}, "base_model"),
        ({"tokenizer_source": "union"}, "tokenizer_source"),
        ({"tokenizer": {"source": "base", "tokens": {"a": {}}}}, "tokens"),
        ({"chat_template": "auto"}, "chat_template"),
        ({"slices": []}, "slices"),
        ({"slices": None, "models": [{"model": "a"}]}, "slices"),
        ({"parameters": {"scale": 0.5}}, "slices[0].parameters.scale"),
        ({"parameters": {"scale": [{"filter": "o_proj", "value": 0}, {"value": 1}]}}, "slices[0].parameters.scale"),
        ({"parameters": {"weight": 1}}, "slices[0].parameters.weight"),
    ],
)
def test_what_no_step_can_say_is_refused_by_its_key(base: Path, change: dict[str, Any], where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Mergekit.read({**merge(slice_of(base, 0, COUNT)), **change}, draft_at(base))
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("part", "where"),
    [
        (
            {"sources": [{"model": "a", "layer_range": [0, 1]}, {"model": "b", "layer_range": [0, 1]}]},
            "slices[0].sources",
        ),
        ({"sources": [{"model": "a+lora", "layer_range": [0, 1]}]}, "slices[0].model"),
        ({"sources": [{"model": "a@main", "layer_range": [0, 1]}]}, "slices[0].model"),
        ({"sources": [{"model": {"model": {"path": "a"}, "lora": {"path": "b"}}, "layer_range": [0, 1]}]}, "lora"),
        ({"sources": [{"model": "a", "layer_range": [0, 9]}]}, "slices[0].layer_range"),
        ({"sources": [{"model": "a", "layer_range": [2, 2]}]}, "slices[0].layer_range"),
        ({"sources": []}, "slices[0]"),
    ],
)
def test_a_slice_that_is_none_of_ours_is_refused(base: Path, part: dict[str, Any], where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Mergekit.read(merge(part), draft_at(base))
    assert caught.value.where == where


def test_trained_weights_are_no_slices(base: Path) -> None:
    with pytest.raises(RecipeError, match="calculated or trained"):
        Mergekit.write(exported(base, [{"expand": {"after": [0]}}]))


def test_mergekit_s_own_reader_takes_what_is_written(base: Path) -> None:
    config = pytest.importorskip("mergekit.config", exc_type=ImportError)
    places = [Place(None, 0), Place(None, 1), Place(None, 1, silenced=True), Place(None, 3)]
    text = Mergekit.write(exported(base, sequence_steps(places, COUNT, {}))).text
    read = config.MergeConfiguration.model_validate(parse_value(text))
    spans = [(part.sources[0].model.model.path, part.sources[0].layer_range) for part in read.slices]
    assert spans == [(str(base), (0, 2)), (str(base), (1, 2)), (str(base), (3, 4))]
