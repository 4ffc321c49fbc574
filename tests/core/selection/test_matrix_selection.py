from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgeon.architectures.structure_reader import read_structure
from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.plan import compile_plan
from surgeon.core.recipe.apply_steps import apply_step, fold, resolve_step
from surgeon.core.recipe.recipe import Base, Recipe, dump_recipe, load_recipe, step_of
from surgeon.core.scoring.score import Provenance, Score
from surgeon.core.selection.matrix_selection import matrix_roles, parse_matrix_selection, roles_by_position
from surgeon.errors import RecipeError, SelectionError
from tests.cli.tiny_checkpoints import tiny_llama

LAYERS = 4
ROLES = ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.gate", "mlp.up", "mlp.down")
NAMES = {
    "attention.query": "self_attn.q_proj.weight",
    "attention.key": "self_attn.k_proj.weight",
    "attention.value": "self_attn.v_proj.weight",
    "attention.output": "self_attn.o_proj.weight",
    "mlp.gate": "mlp.gate_proj.weight",
    "mlp.up": "mlp.up_proj.weight",
    "mlp.down": "mlp.down_proj.weight",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Draft:
    return draft_of(read_structure(open_checkpoint(tiny_llama(tmp_path_factory.mktemp("models") / "llama", LAYERS))))


def score(values: dict[tuple[int, str], float]) -> Score:
    matrices: dict[str, dict[str, float]] = {}
    for (layer, role), value in values.items():
        matrices.setdefault(str(layer), {})[NAMES[role]] = value
    return Score(
        name="taylor", values=dict.fromkeys(matrices, 0.0), matrices=matrices, provenance=Provenance(fingerprint="")
    )


def spots_of(base: Draft, raw: Any, found: Score | None = None) -> tuple[str, ...]:
    selection = parse_matrix_selection(raw)
    return selection.spots(base, None, {ranked: found for ranked in selection.ranked()} if found else {})


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("3.mlp.up", {"3.mlp.up"}),
        ("0-1.attention.key", {"0.attention.key", "1.attention.key"}),
        ("2.mlp", {"2.mlp.gate", "2.mlp.up", "2.mlp.down"}),
        ("last 1.attention.query, 0.mlp.up", {"3.attention.query", "0.mlp.up"}),
        (["1.mlp.up", "1.mlp.down"], {"1.mlp.up", "1.mlp.down"}),
    ],
)
def test_matrices_are_named_by_layer_and_role(base: Draft, raw: Any, wanted: set[str]) -> None:
    assert set(spots_of(base, raw)) == wanted


def test_all_of_a_layer_are_its_matrices_and_no_norms(base: Draft) -> None:
    assert set(matrix_roles(base, base.layers()[0], None)) == set(ROLES)
    assert len(spots_of(base, "all.all")) == LAYERS * len(ROLES)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=LAYERS * len(ROLES), max_size=LAYERS * len(ROLES), unique=True),
    st.integers(1, LAYERS * len(ROLES)),
)
def test_the_lowest_are_those_with_the_lowest_values_and_the_highest_are_the_rest(
    base: Draft, values: list[float], count: int
) -> None:
    keys = [(layer, role) for layer in range(LAYERS) for role in ROLES]
    by_key = dict(zip(keys, values, strict=True))
    chosen = set(spots_of(base, f"lowest {count} by taylor", score(by_key)))
    assert chosen == {f"{layer}.{role}" for layer, role in sorted(keys, key=lambda key: by_key[key])[:count]}
    if count < len(keys):
        others = set(spots_of(base, f"highest {len(keys) - count} by taylor", score(by_key)))
        assert not chosen & others
        assert len(chosen | others) == len(keys)


def test_protected_layers_lend_no_matrix(base: Draft) -> None:
    found = score({(layer, role): layer for layer in range(LAYERS) for role in ROLES})
    chosen = spots_of(base, {"lowest": 7, "by": "taylor", "protect": ["first", "last"]}, found)
    assert set(chosen) == {f"1.{role}" for role in ROLES}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("0.mlp.sideways", "no matrix there has role 'mlp.sideways'"),
        ("9.mlp.up", "9 is out of range"),
        ("0-3", "is no selection of matrices"),
        ("block 2 by taylor", "is no selection of matrices"),
        ("through highest by taylor", "is no selection of matrices"),
        ("lowest 99 by taylor", "of 28 matrices"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(base: Draft, raw: str, said: str) -> None:
    found = score({(layer, role): layer for layer in range(LAYERS) for role in ROLES})
    with pytest.raises(SelectionError, match=said):
        spots_of(base, raw, found)


def test_settings_of_a_score_may_hold_dots_and_commas(base: Draft) -> None:
    found = score({(layer, role): layer for layer in range(LAYERS) for role in ROLES})
    for by, text in {"lamp(kept=0.25)": "lamp(kept=0.25)", "ila(steps=8,rank=4)": "ila(rank=4,steps=8)"}.items():
        selection = parse_matrix_selection(f"2.mlp.up, lowest 2 by {by}")
        assert [one.by for one in selection.ranked()] == [text]
        assert "2.mlp.up" in spots_of(base, f"2.mlp.up, lowest 2 by {by}", found)


def test_a_score_without_matrices_cannot_rank_them(base: Draft) -> None:
    bare = Score(name="taylor", values={"0": 1.0}, provenance=Provenance(fingerprint=""))
    with pytest.raises(SelectionError, match="no values for single matrices"):
        spots_of(base, "lowest 1 by taylor", bare)


def test_frozen_matrices_are_frozen_and_no_others(base: Draft) -> None:
    step = step_of("freeze", {"matrices": "1.mlp.up, 2.attention"}, "test")
    frozen = compile_plan(fold(base, [step])).frozen
    wanted = {f"model.layers.2.{NAMES[role]}" for role in ROLES if role.startswith("attention")}
    assert frozen == wanted | {"model.layers.1.mlp.up_proj.weight"}


def test_adapters_go_to_the_chosen_matrices_and_no_others(base: Draft) -> None:
    step = step_of("masked_lora", {"matrices": ["0.mlp.up", "3.attention.key"], "rank": 2}, "test")
    modules = {adapter.module for adapter in compile_plan(fold(base, [step])).adapters}
    assert modules == {"model.layers.0.mlp.up_proj", "model.layers.3.self_attn.k_proj"}


def test_a_measured_choice_is_written_down_and_replayed_without_the_score(base: Draft, tmp_path: Path) -> None:
    step = step_of("freeze", {"matrices": {"lowest": "25%", "by": "taylor"}}, "test")
    found = score({(layer, role): ROLES.index(role) for layer in range(LAYERS) for role in ROLES})
    done = resolve_step(base, step, 0, {step.operation.ranked()[0]: found})
    # 25 % of 28 are 7: the four queries come first, then three of the four keys.
    lowest = {f"{layer}.attention.query" for layer in range(LAYERS)} | {f"{layer}.attention.key" for layer in range(3)}
    assert done.resolved is not None
    assert set(done.resolved["matrices"]) == lowest
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(Recipe(base=Base(model="x"), steps=(done,))))
    (again,) = load_recipe(path).steps
    assert again == done
    assert compile_plan(apply_step(base, again, 0)).frozen == compile_plan(apply_step(base, done, 0)).frozen


def test_a_resolved_matrix_outside_the_model_is_refused(base: Draft) -> None:
    step = step_of("freeze", {"matrices": "0.mlp.up"}, "test")
    with pytest.raises(RecipeError, match="out of range"):
        apply_step(base, type(step)(step.operation, {"matrices": ("9.mlp.up",)}), 0)


def test_positions_and_roles_are_read_back_from_their_text() -> None:
    assert roles_by_position(["3.mlp.up", "3.mlp.down", "11.attention.key"]) == {
        3: frozenset({"mlp.up", "mlp.down"}),
        11: frozenset({"attention.key"}),
    }
    with pytest.raises(SelectionError, match="is no matrix"):
        roles_by_position(["mlp.up"])
