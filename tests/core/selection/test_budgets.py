"""Budgets: their words, and that as few layers go as it takes, counted without the code under test."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import apply_step, margins, resolve_step
from surgeon.core.recipe.command_text import command_line
from surgeon.core.recipe.recipe import Step, step_from_builtins, step_of, step_to_builtins
from surgeon.core.scoring.score import Provenance, Score
from surgeon.core.selection.budget import budget_text, parse_budget
from surgeon.core.selection.budget_layers import fewest
from surgeon.core.selection.selection import parse_selection
from surgeon.errors import RecipeError, SelectionError
from tests.cli.tiny_checkpoints import tiny_llama

WORST = {"prune": {"until": {"parameters": "0.6x"}, "by": "removal"}}


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Draft:
    return draft_of(read_structure(open_checkpoint(tiny_llama(tmp_path_factory.mktemp("budgets") / "llama"))))


def ranked(draft: Draft, **fields: Any) -> Step:
    """Return a prune step resolved by a score by which later layers matter less."""
    step = step_of("prune", fields, "here")
    values = {layer.key: -float(at) for at, layer in enumerate(draft.layers())}
    (term,) = step.operation.ranked()
    score = Score(name="removal", values=values, provenance=Provenance(fingerprint=""))
    return resolve_step(draft, step, 0, {term: score})


def gone(step: Step) -> list[int]:
    assert step.resolved is not None
    return [int(at) for at in step.resolved["layers"]]


@pytest.mark.parametrize(
    ("raw", "amount", "relative", "tokens"),
    [
        ("parameters 6e9", 6e9, False, 0), ({"parameters": 6e9}, 6e9, False, 0), ("parameters 6B", 6e9, False, 0),
        ("parameters 0.75x", 0.75, True, 0), ("bytes 14GB", 14e9, False, 0), ("bytes 2 GiB", 2.0**31, False, 0),
        ({"memory": "24GB at 8192 tokens"}, 24e9, False, 8192), ("tokens_per_second 1.3x", 1.3, True, 0),
        ({"tokens_per_second": 40}, 40.0, False, 0),
    ],
)  # fmt: skip
def test_a_budget_is_read_in_its_units(raw: Any, amount: float, relative: bool, tokens: int) -> None:
    found = parse_budget(budget_text(raw))
    assert (found.amount, found.relative, found.tokens) == (amount, relative, tokens)
    assert budget_text(budget_text(raw)) == budget_text(raw)


@pytest.mark.parametrize(
    "raw",
    ["parameters", "parameters -1", "parameters 6GB", "bytes 6Q", "memory 24GB", "bytes 1GB at 5 tokens", "size 3",
     "parameters 1.2x", "tokens_per_second 0.9x", {"parameters": 1, "bytes": 2}, {}, "parameters 0", "bytes inf"],
)  # fmt: skip
def test_what_is_no_budget_is_refused_with_what_is_allowed(raw: Any) -> None:
    with pytest.raises(SelectionError) as told:
        budget_text(raw)
    assert told.value.allowed


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.integers(1, 60), st.randoms())
def test_as_few_go_as_it_takes_and_none_of_them_could_stay(sizes: list[int], most: int, rng: Any) -> None:
    order = list(range(len(sizes)))
    rng.shuffle(order)

    def met(out: Any) -> bool:
        return sum(size for at, size in enumerate(sizes) if at not in set(out)) <= most

    if met(()) or not met(order[: len(sizes) - 1]):
        with pytest.raises(SelectionError):
            fewest(order, met, str, len(sizes))
        return
    found = fewest(order, met, str, len(sizes))
    assert met(found)
    assert not any(met([one for one in found if one != back]) for back in found)
    prefix = next(count for count in range(len(order)) if met(order[:count]))
    assert set(found) <= set(order[:prefix])  # the least important ones go, and no others
    assert order[prefix - 1] in found


@pytest.mark.parametrize(
    "until", [{"parameters": "0.6x"}, {"bytes": "0.6x"}, {"memory": "0.6x at 100 tokens"}, "parameters 0.6x"]
)
def test_a_budget_is_met_within_one_layer(draft: Draft, until: Any) -> None:
    step = ranked(draft, until=until, by="removal")
    layers = len(draft.layers())
    assert gone(step) == list(range(layers - len(gone(step)), layers))  # the last ones are worth least here

    def size(count: int) -> float:
        plan = compile_plan(draft.with_layers(draft.layers()[:count]))
        if "parameters" in str(until):
            return plan.parameters
        config = draft.structure.checkpoint.config
        width = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
        element = {"bfloat16": 2, "float32": 4}[config.get("dtype", config.get("torch_dtype"))]
        return plan.nbytes + (100 * count * 2 * width * element if "memory" in until else 0)

    kept = layers - len(gone(step))
    assert size(kept) <= 0.6 * size(layers) < size(kept + 1)
    after = apply_step(draft, step, 0)
    assert len(after.layers()) == kept
    (told,) = margins(draft, step)
    assert f"{size(kept):,.0f} of at most {0.6 * size(layers):,.0f}" in told


def test_what_it_came_to_is_replayed_without_the_score_and_nothing_else_is_taken_for_it(draft: Draft) -> None:
    step = ranked(draft, until={"parameters": "0.6x"}, by="removal")
    again = step_from_builtins(json.loads(json.dumps(step_to_builtins(step))), "here")
    assert again == step
    assert len(apply_step(draft, again, 0).layers()) == len(draft.layers()) - len(gone(step))
    plain = step_to_builtins(step)
    plain["resolved"] = {"layers": gone(step)[:-1]}
    with pytest.raises(SelectionError, match="is not met"):
        apply_step(draft, step_from_builtins(plain, "here"), 0)


def test_the_short_form_is_the_long_one_and_the_command_says_it_too(draft: Draft) -> None:
    short = step_of("prune", {**WORST["prune"], "protect": ["last"], "data": "docs"}, "here")
    selection = {"until": "parameters 0.6x", "by": "removal", "protect": ["last"], "data": "docs"}
    assert short.operation == step_of("prune", {"layers": selection}, "here").operation
    words = command_line(short, "demo")
    assert words == "surgeon prune demo --layers 'until parameters 0.6x by removal' --data docs --protect last"
    assert parse_selection("until parameters 0.6x by removal").terms == parse_selection(WORST["prune"]).terms
    step = ranked(draft, until={"parameters": "0.6x"}, by="removal", protect=["last"])
    assert len(draft.layers()) - 1 not in gone(step)


def test_what_a_budget_cannot_be_is_refused(draft: Draft) -> None:
    with pytest.raises(SelectionError, match="meets it as it is"):
        ranked(draft, until={"parameters": 1e12}, by="removal")
    with pytest.raises(SelectionError, match="cannot be met: without"):
        ranked(draft, until={"parameters": 10}, by="removal")
    with pytest.raises(SelectionError, match="has to be measured"):
        ranked(draft, until={"tokens_per_second": "1.3x"}, by="removal")
    with pytest.raises(RecipeError, match="freeze removes none"):
        step = step_of("freeze", {"layers": "until parameters 0.6x by removal"}, "here")
        apply_step(draft, step, 0, {next(iter(step.operation.ranked())): None})  # type: ignore[dict-item]
    with pytest.raises(RecipeError, match="stands alone"):
        step = step_of("prune", {"layers": ["until parameters 0.6x by removal", 1]}, "here")
        apply_step(draft, step, 0, {next(iter(step.operation.ranked())): None})  # type: ignore[dict-item]
    with pytest.raises(RecipeError, match="needs `by"):
        step_of("prune", {"until": {"parameters": 5}}, "here")
