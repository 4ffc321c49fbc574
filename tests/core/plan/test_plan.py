"""A plan by layers: what no edit changed is told in one word, and sums need no list of tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surgeon.architectures.structure_reader import read_structure
from surgeon.cli.dry_run import fold_recipe
from surgeon.core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from surgeon.core.plan.draft import Draft, draft_of
from surgeon.core.plan.expressions import Copy, Fill, LearnedOf, express
from surgeon.core.plan.plan import Plan, compile_plan
from surgeon.core.recipe.apply_steps import fold
from surgeon.core.recipe.recipe import recipe_from_builtins
from surgeon.errors import ArchitectureError
from tests.architectures.families import FAMILIES, HandMade
from tests.export.handmade_shards import write_llama

STEPS: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "prune": [{"prune": {"layers": "1"}}],
    "duplicate": [{"expand": {"after": "0", "init": "duplicate"}}],
    "identity": [{"expand": {"after": "0", "init": "copy"}}],
    "freeze": [{"freeze": {"layers": "0-1", "outside": ["embedding"]}}],
    "train": [{"freeze": {"layers": "0"}}, {"train": {"objective": "lm", "data": "x.jsonl", "steps": 1}}],
}


def edited(directory: Path, *steps: dict[str, Any]) -> Draft:
    recipe = recipe_from_builtins({"version": 1, "base": {"model": str(directory)}, "steps": list(steps)})
    return fold(draft_of(read_structure(open_checkpoint(directory))), recipe.steps)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_sums_are_those_of_the_tensors(family: HandMade, steps: str, tmp_path: Path) -> None:
    """Whatever was done, of whatever model, unless it is refused."""
    try:
        plan = compile_plan(edited(family.write(tmp_path / "base"), *STEPS[steps]))
    except ArchitectureError:
        return
    assert plan.tensor_count == len(plan.tensors) == len({tensor.name for tensor in plan.tensors})
    assert plan.parameters == sum(tensor.parameters for tensor in plan.tensors)
    assert plan.nbytes == sum(tensor.nbytes for tensor in plan.tensors)
    free = [tensor for tensor in plan.tensors if tensor.name not in plan.frozen]
    assert plan.trainable_parameters == sum(tensor.parameters for tensor in free)
    assert plan.trainable == tuple(tensor.name for tensor in free)
    assert plan.pending == (steps == "train")
    assert all(name.startswith(f"{prefix}.") for prefix, layer in plan.layers.items() for name in names(plan, prefix))


def names(plan: Plan, prefix: str) -> list[str]:
    return [tensor.name for tensor in plan.layers[prefix].tensors(prefix)]


def test_a_layer_that_no_edit_changed_is_the_bases_own_wherever_it_stands(tmp_path: Path) -> None:
    """Not a copy of what is known of it, so that a plan of hundreds of gigabytes takes no time."""
    draft = edited(write_llama(tmp_path / "base", layers=5), {"prune": {"layers": "1"}})
    stack, plan = draft.structure.stack(), compile_plan(draft)
    assert [layer.stored for layer in plan.layers.values()] == [stack.layers[at] for at in (0, 2, 3, 4)]
    assert all(plan.layers[f"model.layers.{at}"].stored is stack.layers[at + 1] for at in (1, 2, 3))
    assert not any(layer.made for layer in plan.layers.values())
    moved = next(tensor for tensor in plan.tensors if tensor.name == "model.layers.3.mlp.up_proj.weight")
    assert moved.source == Copy(stack.layers[4]["mlp.up_proj.weight"])


def test_tensors_come_in_the_order_in_which_they_are_stored(tmp_path: Path) -> None:
    """Shards are read from front to back, whatever became of the layers."""
    draft = edited(write_llama(tmp_path / "base", layers=4, shards=2), {"reorder": {"order": [3, 1, 0, 2]}})
    sources = [one.source.tensor.name for one in compile_plan(draft).tensors if isinstance(one.source, Copy)]
    assert sources == list(draft.structure.checkpoint.tensors)


def test_one_tensor_and_all_of_a_layer_are_made_alike(tmp_path: Path) -> None:
    """`express` answers for one name what the plan says of it."""
    base = write_llama(tmp_path / "base", layers=4, dtype="F32")
    train = {"train": {"objective": "lm", "data": "x.jsonl", "steps": 1}}
    draft = edited(base, {"expand": {"after": "0", "init": "mean"}}, {"freeze": {"layers": "0"}}, train)
    stack, plan = draft.structure.stack(), compile_plan(draft)
    kinds = set()
    for position, layer in enumerate(draft.layers()):
        for suffix, made in plan.layers[f"model.layers.{position}"].made.items():
            assert made == express(draft.structure, stack, layer.source, suffix)
            kinds.add(type(made.of if isinstance(made, LearnedOf) else made))
    assert Fill in kinds


def test_a_dry_run_asks_for_no_fingerprint_that_nobody_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads a sample of every tensor."""
    base = write_llama(tmp_path / "base")

    def read(_: Checkpoint) -> str:
        raise AssertionError("weights were read")

    monkeypatch.setattr(Checkpoint, "fingerprint", property(read))
    plain = {"version": 1, "base": {"model": str(base)}, "steps": [{"prune": {"layers": "1"}}]}
    folded = fold_recipe(recipe_from_builtins(plain))
    assert folded.plan.layer_counts == {"layers": 3}
    plain["base"] = {"model": str(base), "fingerprint": "ffff"}
    with pytest.raises(AssertionError):
        fold_recipe(recipe_from_builtins(plain))
