from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.core.recipe.overrides import load_changed_recipe
from surgeon.core.recipe.recipe import (
    Base,
    Recipe,
    ResolvedFor,
    Step,
    dump_recipe,
    load_recipe,
    recipe_from_builtins,
    recipe_to_builtins,
    step_of,
    step_to_builtins,
)
from surgeon.core.recipe.yaml_document import parse_value
from surgeon.errors import RecipeError

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
scores = st.one_of(
    st.sampled_from(["removal", "block_removal(longest=4)", "weight_norm"]),
    st.sampled_from([{"semantic_gain": {"train_at_most": 2, "gain": "log"}}, {"lamp": {"kept": 0.25}}, {"fisher": {}}]),
)
names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
positions = st.integers(0, 60)
selections = st.one_of(
    positions,
    st.lists(positions, min_size=1, max_size=4),
    st.sampled_from(["all", "0-3,7", "first 2", "last", "inserted", "original 1-2", "except 0-3"]),
    st.fixed_dictionaries(
        {"lowest": st.one_of(st.integers(1, 9), st.just("25%")), "by": scores},
        optional={"data": names, "protect": st.lists(st.sampled_from(["first", "last", 3]), max_size=2)},
    ),
)
roles = st.lists(st.sampled_from(["attention", "mlp.down", "all"]), min_size=1, max_size=2)
operations = st.one_of(
    st.tuples(st.just("prune"), st.fixed_dictionaries({"layers": selections}, optional={"stack": names})),
    st.tuples(
        st.just("expand"),
        st.fixed_dictionaries({"after": selections}, optional={"init": st.sampled_from(["mean", "copy", "duplicate"])}),
    ),
    st.tuples(
        st.just("freeze"),
        st.fixed_dictionaries({}, optional={"layers": selections, "except": selections, "roles": roles}),
    ),
    st.tuples(
        st.just("masked_lora"),
        st.fixed_dictionaries(
            {"layers": selections},
            optional={
                "rank": st.integers(1, 64),
                "alpha": st.floats(1e-6, 1e6),
                "gate": st.floats(-9, 9),
                "roles": roles,
            },
        ),
    ),
)
digests = st.text("0123456789abcdef", min_size=16, max_size=16)  # some of which YAML would take for numbers
resolved_for = st.builds(
    ResolvedFor, recipe=digests, base=st.none() | digests, data=st.lists(st.none() | digests, max_size=2).map(tuple)
)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    name, fields = draw(operations)
    step = step_of(name, fields, "test")
    chosen = sorted(step.operation.selections())
    resolved = draw(st.none() | st.lists(positions, max_size=3))
    made_for = draw(st.none() | resolved_for)
    return step if resolved is None or not chosen else Step(step.operation, {chosen[0]: tuple(resolved)}, made_for)


recipes = st.builds(
    Recipe,
    base=st.builds(Base, model=words, fingerprint=st.none() | names),
    seed=st.integers(-(2**63), 2**63 - 1),
    data=st.dictionaries(words, words, max_size=3),
    steps=st.lists(steps(), max_size=4).map(tuple),
)


_KEPT = tempfile.TemporaryDirectory()
_SCRATCH = Path(_KEPT.name)


def written(text: str, name: str = "recipe.yaml") -> Path:
    path = _SCRATCH / name
    path.write_text(text, encoding="utf-8")
    return path


def fault_of(text: str, overrides: dict[str, Any] | None = None) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_changed_recipe(written(text), overrides or {})
    return caught.value


@settings(deadline=None)
@given(recipes)
def test_a_recipe_reads_back_as_it_was_written(recipe: Recipe) -> None:
    assert load_recipe(written(dump_recipe(recipe))) == recipe


@settings(deadline=None)
@given(recipes)
def test_plain_data_is_a_recipe_too(recipe: Recipe) -> None:
    assert recipe_from_builtins(recipe_to_builtins(recipe)) == recipe


@settings(deadline=None)
@given(recipes, recipes)
def test_saving_over_another_recipe_leaves_nothing_of_it(old: Recipe, new: Recipe) -> None:
    path = written(dump_recipe(old))
    path.write_text(dump_recipe(new, like=path), encoding="utf-8")
    assert load_recipe(path) == new


@pytest.mark.parametrize("number", ["1e-3", "0.0010", "5.244144633136449e-103", "2.", "+4.5E+2"])
def test_numbers_are_saved_as_they_stood_unless_a_digit_would_be_lost(number: str) -> None:
    text = f"version: 1\nbase: {{model: x}}\nseed: 0\nsteps:\n  - masked_lora: {{layers: 0, gate: {number}}}\n"
    path = written(text)
    saved = dump_recipe(load_recipe(path), like=path)
    assert f"gate: {number}}}" in saved
    assert load_recipe(written(saved)) == load_recipe(path)


@settings(deadline=None)
@given(steps())
def test_a_step_is_its_plain_data(step: Step) -> None:
    plain = step_to_builtins(step)
    assert step_of(step.operation.name, plain[step.operation.name], "test").operation == step.operation


COMMENTED = """\
# slimmer by four layers
version: 1
base: {model: demo}   # the small one
seed: 3
data:
  prose: data/prose.jsonl   # held out
steps:
  # the deep half does little
  - prune: {layers: '21-24'}   # found by hand
  # protect what is new
  - freeze: {except: inserted}
"""


def test_comments_survive_an_edit_by_save() -> None:
    path = written(COMMENTED)
    recipe = load_recipe(path)
    longer = Recipe(
        base=Base(model="demo", fingerprint="abc"), seed=4, data=recipe.data,
        steps=(*recipe.steps, step_of("expand", {"after": "1"}, "test")),
    )  # fmt: skip
    text = dump_recipe(longer, like=path)
    for comment in ("slimmer by four", "the small one", "held out", "deep half", "found by hand", "protect what"):
        assert comment in text
    assert load_recipe(written(text)) == longer
    assert "seed: 4" in text


def test_an_unchanged_recipe_is_saved_as_it_was_read() -> None:
    path = written(COMMENTED)
    assert dump_recipe(load_recipe(path), like=path) == COMMENTED


def test_a_byte_order_mark_is_no_part_of_a_recipe() -> None:
    assert load_recipe(written("\ufeff" + COMMENTED)) == load_recipe(written(COMMENTED))


def test_saving_over_a_file_that_is_no_recipe_is_refused() -> None:
    recipe = Recipe(base=Base(model="demo"))
    with pytest.raises(RecipeError, match="is no recipe"):
        dump_recipe(recipe, like=written("- a\n- b\n"))
    assert load_recipe(written(dump_recipe(recipe, like=written("")))) == recipe


FAULTY = """\
version: 2
base: {modle: demo}
sede: 1
data: [1]
steps:
  - prun: {layers: 3}
  - prune: {layers: [1, x]}
  - prune: {layer: 3}
  - masked_lora:
      layers: 1
      rank: 0
      alpha: .inf
  - expand: {after: 1, init: zero}
    resolved: {aftr: [1]}
  - prune: 3
  - [prune]
"""


def test_every_fault_is_told_at_once_with_its_line_and_the_nearest_spelling() -> None:
    what = fault_of(FAULTY).what
    expected = [
        "line 1, version: is 2 (allowed: 1)",
        "line 2, base.modle: unknown key 'modle'; did you mean 'model'?",
        "line 3, sede: unknown key 'sede'; did you mean 'seed'?",
        "line 4, data: is",
        "line 6, steps[0].prun: unknown key 'prun'; did you mean 'prune'?",
        "line 7, steps[1].prune.layers: 'x' is no selection",
        "line 8, steps[2].prune.layer: unknown key 'layer'; did you mean 'layers'?",
        "line 8, steps[2].prune.layers: is missing",
        "line 11, steps[3].masked_lora.rank: has to be a whole number >= 1",
        "line 12, steps[3].masked_lora.alpha: is inf",
        "line 13, steps[4].expand.init: Invalid enum value 'zero'",
        "line 14, steps[4].resolved.aftr: unknown key 'aftr'; did you mean 'after'?",
        "line 15, steps[5].prune: is int",
        "line 16, steps[6]: a step is one operation",
    ]
    for fault in expected:
        assert fault in what, fault
    assert f"{len(what.splitlines()) - 1} problems" in what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\nbase: {model: a}\nbase: {model: b}\n", "found duplicate key"),
        ("version: 1\nbase: {model: a\n", "is not valid YAML"),
        ("version: 1\nbase: {model: \x01}\n", "is not valid YAML"),
        ("- 1\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("version: true\nbase: {model: a}\n", "version: is True"),
        ("version: 1\n", "base: is missing"),
        ("version: 1\nbase: &a {model: a}\nsteps: [*a]\n", "line 3: *a is an alias"),
        ("version: 1\nbase: {model: a}\nsteps: {prune: 1}\n", "is no list"),
        ("version: 1\nbase: {model: a}\nseed: 1.5\n", "seed: is a number, and has to be a whole number"),
    ],
)
def test_a_broken_document_is_refused_in_words(text: str, said: str) -> None:
    assert said in str(fault_of(text))


def test_a_duplicate_key_inside_a_step_is_refused_with_its_line() -> None:
    error = fault_of("version: 1\nbase: {model: a}\nsteps:\n  - prune:\n      layers: 1\n      layers: 2\n")
    assert "line 6" in error.where
    assert "duplicate key" in error.what


def test_yaml_1_2_reads_numbers_and_words_as_a_person_does() -> None:
    assert parse_value("1e-4") == 1e-4
    assert parse_value("no") == "no"
    assert parse_value("3-5") == "3-5"
    assert parse_value("[1, 2]") == [1, 2]
    with pytest.raises(RecipeError, match="no YAML value"):
        parse_value("{")


def test_set_changes_one_value() -> None:
    changed = load_changed_recipe(
        written(COMMENTED), {"steps.0.prune.layers": "1-2", "seed": 9, "base.fingerprint": "ff"}
    )
    assert changed.seed == 9
    assert changed.base.fingerprint == "ff"
    assert str(changed.steps[0].operation.selections()["layers"]) == "1-2"


@pytest.mark.parametrize("path", ["steps.9.prune.layers", "steps.x.prune", "base.model.deeper", "nothing.here"])
def test_set_refuses_a_path_that_leads_nowhere(path: str) -> None:
    error = fault_of(COMMENTED, {path: 1})
    assert error.where == f"--set {path}"


def test_set_is_checked_like_the_file() -> None:
    assert "steps[0].prune.layers: 'x' is no selection" in fault_of(COMMENTED, {"steps.0.prune.layers": "x"}).what


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nix\.yaml: cannot be read"):
        load_recipe(tmp_path / "nix.yaml")


def test_a_recipe_for_other_weights_is_refused() -> None:
    with pytest.raises(RecipeError, match="was written for a model with fingerprint aa"):
        Base(model="a", fingerprint="aa").check("bb", "/models/b", "r.yaml")
    Base(model="a", fingerprint="aa").check("aa", "/models/a", "r.yaml")
