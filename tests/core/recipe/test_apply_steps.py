from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import apply_step, changes_of, fold, resolve_step, unfrozen
from surgeon.core.recipe.recipe import Step, step_of
from surgeon.core.scoring.score import Provenance, Score
from surgeon.errors import ArchitectureError, RecipeError, SelectionError
from tests.cli.tiny_checkpoints import tiny_llama

LAYERS = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Draft:
    return draft_of(read_structure(open_checkpoint(tiny_llama(tmp_path_factory.mktemp("models") / "llama", LAYERS))))


positions = st.integers(0, LAYERS + 2)
some = st.lists(positions, min_size=1, max_size=3)
wishes = st.one_of(
    st.tuples(st.just("prune"), st.fixed_dictionaries({"layers": some})),
    st.tuples(
        st.just("expand"),
        st.fixed_dictionaries({"after": some, "init": st.sampled_from(["mean", "copy", "duplicate"])}),
    ),
    st.tuples(st.just("freeze"), st.fixed_dictionaries({"layers": some})),
    st.tuples(st.just("freeze"), st.just({"except": "inserted"})),
    st.tuples(st.just("masked_lora"), st.fixed_dictionaries({"layers": some, "rank": st.integers(1, 4)})),
)


def fitting(base: Draft, wanted: list[tuple[str, dict[str, Any]]]) -> tuple[Step, ...]:
    """Return those of the wanted steps that fit the model as it is when their turn comes."""
    steps: list[Step] = []
    draft = base
    for name, fields in wanted:
        step = step_of(name, fields, "test")
        try:
            draft = apply_step(draft, step, len(steps))
        except (RecipeError, ArchitectureError):
            continue
        steps.append(step)
    return tuple(steps)


def step(name: str, **fields: Any) -> Step:
    return step_of(name, {key.rstrip("_"): value for key, value in fields.items()}, "test")


def score(name: str, values: dict[str, float]) -> Score:
    return Score(name=name, values=values, provenance=Provenance(fingerprint=""))


@settings(deadline=None)
@given(wanted=st.lists(wishes, max_size=6), split=st.integers(0, 6))
def test_folding_in_two_parts_is_folding_in_one(base: Draft, wanted: list[Any], split: int) -> None:
    steps = fitting(base, wanted)
    assert fold(fold(base, steps[:split]), steps[split:]) == fold(base, steps)


@settings(deadline=None)
@given(wanted=st.lists(wishes, max_size=6))
def test_every_draft_has_layers_of_distinct_keys_and_compiles(base: Draft, wanted: list[Any]) -> None:
    draft = fold(base, fitting(base, wanted))
    keys = [layer.key for layer in draft.layers()]
    assert len(keys) == len(set(keys)) >= 1
    plan = compile_plan(draft)
    assert plan.config["num_hidden_layers"] == len(keys)
    assert len({tensor.name for tensor in plan.tensors}) == len(plan.tensors) == 2 + 9 * len(keys)


@settings(deadline=None)
@given(wanted=st.lists(wishes, max_size=6))
def test_freezes_and_adapters_change_no_weights(base: Draft, wanted: list[Any]) -> None:
    quiet = [wish for wish in wanted if wish[0] in ("freeze", "masked_lora")]
    assume(quiet)
    draft = fold(base, fitting(base, quiet))
    assert draft.digest == base.digest
    assert unfrozen(draft) == base
    assert not draft.moved


@settings(deadline=None)
@given(after=st.sets(st.integers(0, LAYERS - 1), min_size=1))
def test_pruning_what_was_inserted_gives_the_base_back(base: Draft, after: set[int]) -> None:
    grown = fold(base, [step("expand", after=sorted(after))])
    assert len(grown.layers()) == LAYERS + len(after)
    shrunk = fold(grown, [step("prune", layers="inserted")])
    assert shrunk == base
    assert shrunk.digest == base.digest


def test_an_error_names_the_step_and_the_field_and_what_is_there(base: Draft) -> None:
    with pytest.raises(SelectionError) as caught:
        fold(base, [step("prune", layers="0-1"), step("prune", layers="5")])
    assert caught.value.where == "steps[1].prune.layers"
    assert "5 is out of range" in caught.value.what
    assert caught.value.allowed == "the model has layers 0-3 at this step"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (step("prune", layers="all"), "steps[0].prune.layers: removes all 6 layers"),
        (step("prune", layers="inserted"), "steps[0].prune.layers: chooses no layer"),
        (step("prune", layers="0", stack="vision"), "no stack 'vision'"),
        (step("freeze"), "steps[0].freeze: needs one of `layers`, `except` and `matrices`"),
        (step("freeze", layers="0", roles=["atention"]), "no tensor in a layer has role 'atention'"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(base: Draft, wanted: Step, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        fold(base, [wanted])
    assert said in str(caught.value)


def test_a_measured_step_resolves_to_the_positions_its_score_says(base: Draft) -> None:
    wanted = step("prune", layers={"lowest": 2, "by": "removal", "protect": "first"})
    (ranked,) = wanted.operation.ranked()
    measured = {ranked: score("any", {str(at): float(value) for at, value in enumerate([0, 5, 1, 4, 2, 3])})}
    resolved = resolve_step(base, wanted, 0, measured)
    assert resolved.resolved == {"layers": (2, 4)}
    assert resolve_step(base, resolved, 0, {}) is resolved
    assert apply_step(base, resolved, 0) == apply_step(base, wanted, 0, measured)


def test_an_unmeasured_step_does_not_fold(base: Draft) -> None:
    with pytest.raises(SelectionError, match="removal has not been measured here"):
        fold(base, [step("prune", layers="lowest 2 by removal")])


def test_resolved_positions_are_checked_too(base: Draft) -> None:
    wanted = Step(step("prune", layers="lowest 2 by removal").operation, {"layers": (2, 9)})
    with pytest.raises(SelectionError, match=r"steps\[0\]\.resolved\.layers: 9 is out of range"):
        fold(base, [wanted])


def test_changes_are_told_in_a_few_words(base: Draft) -> None:
    assert changes_of(base, fold(base, [step("prune", layers="0-1")])) == "removed 2"
    assert changes_of(base, fold(base, [step("expand", after="0")])) == "inserted 1"
    assert changes_of(base, fold(base, [step("freeze", layers="0")])) == ""


def test_a_mean_of_unlike_layers_is_refused_by_the_tensor(base: Draft, tmp_path: Path) -> None:
    from tests.cli.tiny_checkpoints import llama_config, llama_shapes, write_checkpoint

    shapes = llama_shapes(2) | {"model.layers.1.mlp.up_proj.weight": (8, 32)}
    odd = draft_of(read_structure(open_checkpoint(write_checkpoint(tmp_path / "odd", llama_config(2), shapes))))
    with pytest.raises(ArchitectureError, match="built differently"):
        fold(odd, [step("expand", after="0", init="mean")])
    assert len(fold(odd, [step("expand", after="0", init="copy")]).layers()) == 3
