"""What a measured answer is for: any change of it makes the answer stale, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from surgeon.core.recipe.data_paths import file_digests, rebase_data_paths
from surgeon.core.recipe.overrides import load_changed_recipe
from surgeon.core.recipe.recipe import (
    Base,
    Recipe,
    Step,
    dump_recipe,
    load_recipe,
    recipe_from_builtins,
    step_of,
)
from surgeon.core.recipe.resolution import WORDS_CHANGED, Resolution, words_digest
from surgeon.errors import RecipeError
from tests.core.recipe.test_recipe import operations

BASE = "0123456789abcdef"

steps = operations.map(lambda wanted: step_of(wanted[0], wanted[1], "test"))


@st.composite
def resolved_steps(draw: st.DrawFn) -> Step:
    """Return a step whose selections by a score came to something."""
    step = draw(steps)
    ranked = [name for name, selection in step.operation.selections().items() if any(selection.ranked())]
    chosen = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple))
    return Step(step.operation, dict.fromkeys(ranked, chosen)) if ranked else step


def signed(recipe: Recipe, digest: Any = lambda name: None) -> Recipe:
    """Return a recipe as a run of it that measures everything writes it."""
    resolution, done = Resolution(recipe, BASE, digest), list[Step]()
    for step in recipe.steps:
        done.append(resolution.signed(step, done, measured=True))
    return msgspec.structs.replace(recipe, steps=tuple(done))


def stale(recipe: Recipe, base: str | None = BASE, digest: Any = lambda name: None) -> list[int]:
    """Return the numbers of the steps whose answers do not hold."""
    resolution = Resolution(recipe, base, digest)
    return [number for number, step in enumerate(recipe.steps) if resolution.stale(step, recipe.steps[:number])]


recipes = st.builds(
    Recipe, base=st.just(Base(model="m")), seed=st.integers(0, 9), data=st.just({"docs": "docs.txt"}),
    steps=st.lists(resolved_steps(), min_size=1, max_size=4).map(tuple),
).map(signed)  # fmt: skip


def answered(recipe: Recipe) -> list[int]:
    return [number for number, step in enumerate(recipe.steps) if step.resolved is not None]


def with_step(recipe: Recipe, number: int, step: Step) -> Recipe:
    return msgspec.structs.replace(recipe, steps=(*recipe.steps[:number], step, *recipe.steps[number + 1 :]))


@settings(deadline=None)
@given(recipes)
def test_what_nobody_has_changed_holds_and_reads_back(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    assert stale(recipe) == []
    path = tmp_path_factory.getbasetemp() / "r.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert stale(load_recipe(path)) == []


@settings(deadline=None)
@given(recipes, st.integers(10, 99))
def test_another_seed_or_another_base_makes_every_answer_stale(recipe: Recipe, seed: int) -> None:
    assert stale(msgspec.structs.replace(recipe, seed=seed)) == answered(recipe)
    assert stale(recipe, "f" * 16) == answered(recipe)
    assert stale(recipe, None) == []  # a base that is not at hand says nothing


@settings(deadline=None)
@given(recipes, steps, st.data())
def test_other_words_of_a_step_make_its_answer_stale(recipe: Recipe, other: Step, data: st.DataObject) -> None:
    assume(answered(recipe))
    number = data.draw(st.sampled_from(answered(recipe)))
    step = recipe.steps[number]
    assume(other.operation != step.operation)
    changed = with_step(recipe, number, Step(other.operation, step.resolved, step.resolved_for))
    assert number in stale(changed)


@settings(deadline=None)
@given(recipes, resolved_steps(), st.data())
def test_what_a_step_before_came_to_makes_later_answers_stale(recipe: Recipe, other: Step, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(recipe.steps) - 1))
    step = recipe.steps[number]
    assume((other.operation, other.resolved) != (step.operation, step.resolved))
    assume(step.resolved is None or other.resolved != step.resolved)  # the same answer by other words: see below
    later = [at for at in answered(recipe) if at > number]
    assert set(later) <= set(stale(with_step(recipe, number, other)))
    without = msgspec.structs.replace(recipe, steps=recipe.steps[:number] + recipe.steps[number + 1 :])
    assert {at - 1 for at in later} <= set(stale(without))


@settings(deadline=None)
@given(st.integers(0, 9), st.lists(steps, max_size=2), steps, steps)
def test_two_operations_have_one_digest_where_they_mean_the_same(
    seed: int, before: list[Step], one: Step, other: Step
) -> None:
    recipe = Recipe(base=Base(model="m"), seed=seed)
    digests = [words_digest(recipe, before, step.operation) for step in (one, other)]
    assert (digests[0] == digests[1]) == (one.operation == other.operation)


def recipe_of(*steps: Any, **more: Any) -> Recipe:
    return recipe_from_builtins({"version": 1, "base": {"model": "m"}, "steps": list(steps), **more})


LOWEST = {"prune": {"layers": "lowest 1 by weight_norm"}, "resolved": {"layers": [4]}}
SECOND = {"prune": {"layers": "lowest 1 by removal"}, "resolved": {"layers": [1]}}


@pytest.mark.parametrize(
    "spelled",
    [
        {"layers": "lowest  1 by weight_norm"},
        {"layers": {"lowest": 1, "by": "weight_norm"}},
        {"layers": [{"lowest": 1, "by": {"weight_norm": None}}]},
        {"layers": {"lowest": 1, "by": "weight_norm"}, "fold": False},
    ],
)
def test_another_spelling_is_no_other_word(spelled: Any) -> None:
    recipe = signed(recipe_of(LOWEST))
    step = step_of("prune", spelled, "test")
    assert stale(with_step(recipe, 0, msgspec.structs.replace(recipe.steps[0], operation=step.operation))) == []


def test_a_step_before_that_comes_to_the_same_by_other_words_leaves_the_next_as_it_is() -> None:
    recipe = signed(recipe_of(LOWEST, SECOND))
    other = recipe_of({"prune": {"layers": "lowest 1 by stable_rank"}, "resolved": {"layers": [4]}}).steps[0]
    assert stale(with_step(recipe, 0, other)) == []
    other = recipe_of({"prune": {"layers": "lowest 1 by stable_rank"}, "resolved": {"layers": [3]}}).steps[0]
    assert stale(with_step(recipe, 0, other)) == [1]


def test_evaluations_and_gates_before_a_step_make_no_difference() -> None:
    gate = {"require": {"perplexity": {"at_most": 9.0}}}
    recipe = signed(recipe_of(gate, LOWEST))
    assert stale(with_step(recipe, 0, recipe_of({"evaluate": {"rows": 4}}).steps[0])) == []
    assert stale(msgspec.structs.replace(recipe, steps=recipe.steps[1:])) == []


def test_a_training_step_counts_by_its_result_and_not_by_what_changes_no_weight() -> None:
    def recipe(learned: str, **fields: Any) -> Recipe:
        train = {"train": {"objective": "lm", "steps": 3, **fields}, "resolved": {"learned": [learned]}}
        return signed(recipe_of(train, LOWEST))

    made = recipe("0" * 16)
    again = recipe("0" * 16, save_steps=7, eval_steps=2, gradient_checkpointing=True)
    assert [step.resolved_for for step in again.steps] == [step.resolved_for for step in made.steps]
    longer = recipe("0" * 16, learning_rate=1.0)
    assert longer.steps[0].resolved_for != made.steps[0].resolved_for
    assert longer.steps[1].resolved_for == made.steps[1].resolved_for  # never so of a real address
    assert recipe("1" * 16).steps[1].resolved_for != made.steps[1].resolved_for


MEASURED = {"prune": {"layers": {"lowest": 1, "by": "removal", "data": "docs"}}, "resolved": {"layers": [4]}}


def test_other_bytes_of_the_data_make_an_answer_stale_and_data_that_is_gone_does_not(tmp_path: Path) -> None:
    file = tmp_path / "docs.txt"
    file.write_text("one")
    recipe = signed(recipe_of(MEASURED, data={"docs": "docs.txt"}), file_digests(tmp_path))
    assert stale(recipe, digest=file_digests(tmp_path)) == []
    file.write_text("other")
    assert stale(recipe, digest=file_digests(tmp_path)) == [0]
    assert "other bytes of docs.txt" in Resolution(recipe, BASE, file_digests(tmp_path)).stale(recipe.steps[0], ())
    file.unlink()
    assert stale(recipe, digest=file_digests(tmp_path)) == []
    renamed = msgspec.structs.replace(recipe, data={"docs": "others.txt"})
    assert stale(renamed, digest=file_digests(tmp_path)) == [0]


def test_of_two_texts_the_one_at_hand_is_checked(tmp_path: Path) -> None:
    parts = [{"lowest": 1, "by": "removal", "data": name} for name in ("a.txt", "b.txt")]
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    step = {"prune": {"layers": parts}, "resolved": {"layers": [4]}}
    recipe = signed(recipe_of(step), file_digests(tmp_path))
    (tmp_path / "a.txt").unlink()
    assert stale(recipe, digest=file_digests(tmp_path)) == []
    (tmp_path / "b.txt").write_text("changed")
    assert stale(recipe, digest=file_digests(tmp_path)) == [0]


def test_an_answer_for_one_of_two_fields_is_stale() -> None:
    half = step_of("freeze", {"layers": "lowest 1 by removal"}, "test")
    recipe = Recipe(base=Base(model="m"), steps=(Step(half.operation, {}),))
    assert "without layers" in Resolution(recipe, BASE, lambda name: None).stale(recipe.steps[0], ())


def test_an_older_recipe_without_digests_holds() -> None:
    assert stale(recipe_of(LOWEST, SECOND)) == []


@settings(deadline=None)
@given(st.permutations(["docs.txt", "sub/docs.txt", "gone.txt"]), st.sampled_from(["elsewhere", "sub", "."]))
def test_a_recipe_that_is_written_elsewhere_holds_there(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], to: str
) -> None:
    """Its data has other names there; only a change that someone makes is one."""
    place = tmp_path_factory.mktemp("place")
    for folder in ("sub", "elsewhere"):
        (place / folder).mkdir()
    for name in ("docs.txt", "sub/docs.txt"):
        (place / name).write_text(name)
    steps = [
        {"prune": {"layers": {"lowest": 1, "by": "removal", "data": name}}, "resolved": {"layers": [at]}}
        for at, name in enumerate(names[1:])
    ]
    recipe = signed(recipe_of(MEASURED, *steps, data={"docs": names[0]}), file_digests(place))
    moved = rebase_data_paths(recipe, place, place / to)
    assert stale(moved, digest=file_digests(place / to)) == []
    changed = msgspec.structs.replace(recipe, seed=1)
    assert stale(rebase_data_paths(changed, place, place / to), digest=file_digests(place / to)) == [0, 1, 2]


def older(tmp_path: Path, *steps: Any) -> Path:
    """Write a recipe as it was before there were digests."""
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(recipe_of(*steps, seed=3, data={"docs": "docs.txt"})))
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"base.model": "other"}, []),
        ({"steps.0.prune.layers": "0-2"}, [0, 1]),
        ({"steps.0.prune.layers": {"lowest": 1, "by": "stable_rank"}}, [0]),
        ({"steps.1.prune.layers": "lowest 2 by removal"}, [1]),
        ({"steps.0.resolved.layers": [3]}, [1]),
        ({"seed": 4}, [0, 1]),
        ({"data.docs": "others.txt"}, []),
        ({"steps.1.prune.stack": "decoder"}, [1]),
        ({"steps.0": {"prune": {"layers": 0}}}, [1]),
    ],
)
def test_set_makes_answers_of_an_older_recipe_stale_that_are_not_for_it(
    tmp_path: Path, values: dict[str, Any], expected: list[int]
) -> None:
    """They say nothing of what they are for, so what stands in the file is taken for it."""
    assert stale(load_changed_recipe(older(tmp_path, LOWEST, SECOND), values)) == expected


def test_set_of_the_data_makes_an_older_answer_on_it_stale(tmp_path: Path) -> None:
    changed = load_changed_recipe(older(tmp_path, MEASURED), {"data.docs": "others.txt"})
    assert Resolution(changed, BASE, lambda name: None).stale(changed.steps[0], ()) == WORDS_CHANGED


def test_an_older_recipe_that_is_whole_only_with_what_is_set_forgets_its_answers(tmp_path: Path) -> None:
    path = older(tmp_path, LOWEST)
    path.write_text(path.read_text().replace("seed: 3", "seed: later"))
    assert load_changed_recipe(path, {"seed": 1}).steps[0].resolved is None


@pytest.mark.parametrize("value", ["x", {"recipe": "x"}, {"base": BASE}, {"recipe": BASE, "more": 1}])
def test_a_digest_of_another_form_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"steps\[0\]\.resolved_for"):
        recipe_of({**LOWEST, "resolved_for": value})
