"""What the tables say of the runs: means, intervals, and differences seed by seed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from surgeon.core.recipe.recipe import recipe_from_builtins
from tests.reproduce import rankings
from tests.reproduce.arms import Arm, plain_recipe, steps_named
from tests.reproduce.experiments import EXPERIMENTS, FREEZING, HEALING, SLAYER
from tests.reproduce.tables import tables

_T2 = 4.303
"""Student's t, two-sided 95 %, two degrees of freedom."""


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No arm needs the demo model to be written down."""
    monkeypatch.setattr(rankings, "frozen_by_gain", lambda *_: 21)


def _run(before: float, pruned: float, healed: float) -> dict[str, Any]:
    evaluations = [{"figures": {"nll": {"value": value}}} for value in (before, pruned, healed)]
    return {"evaluations": evaluations, "losses": [1.0, 0.5], "seconds": 3.0}


def _rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_a_difference_is_paired_by_seed_and_has_an_interval_of_its_own() -> None:
    """Arms that go up and down together differ by little more than nothing, however far the seeds are apart."""
    one, other = HEALING.arms[0].name, HEALING.arms[1].name
    healed = np.array([[3.0, 4.0, 5.0], [3.1, 4.1, 5.2]])
    arms = {name: {str(seed): _run(2.5, 9.0, value) for seed, value in enumerate(values)}
            for name, values in zip((one, other), healed, strict=True)}  # fmt: skip
    arms[other]["7"] = _run(2.5, 9.0, 40.0)
    rows = _rows(tables({"versions": {}, "experiments": {HEALING.name: arms}}))

    assert rows["arm"][-2:] == ["NLL healed", "difference"]
    assert rows[one][:3] == ["3", "2.500", "–"]
    assert rows[one][-2:] == [f"4.000 ± {_T2 * 1 / np.sqrt(3):.3f}", "–"]
    apart = healed[1] - healed[0]
    assert rows[other][-1] == f"{apart.mean():+.3f} ± {_T2 * apart.std(ddof=1) / np.sqrt(3):.3f}"
    assert rows[other][1:3] == ["2.500", "+0.000"]
    assert rows[other][0] == "4"


def test_one_seed_has_no_interval_and_an_arm_that_was_not_run_no_row() -> None:
    """Nor is there anything to differ from without the first arm."""
    second = FREEZING.arms[1].name
    rows = _rows(tables({"versions": {}, "experiments": {FREEZING.name: {second: {"0": _run(1.5, 0.0, 0.0)}}}}))
    assert set(rows) == {"arm", "---", second}
    assert rows[second] == ["1", "1.500", "–", "1.50", "–"]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.name)
def test_every_arm_is_a_recipe_that_takes_the_figures_of_its_table(experiment: Any) -> None:
    """And no two arms of an experiment are the same."""
    recipes = {arm.name: plain_recipe(arm, 1) for arm in experiment.arms}
    for name, plain in recipes.items():
        recipe_from_builtins(plain, name)
        assert len(steps_named(plain, "evaluate")) > max(figure.index for figure in experiment.figures)
        assert plain["seed"] == 1
    assert len({json.dumps(plain["steps"]) for plain in recipes.values()}) == len(recipes)


def test_lora_of_equal_size_has_as_many_weights_as_seven_layers() -> None:
    """Within one per cent; the sizes are those of the demo model."""
    (lora,) = (plain_recipe(arm, 0) for arm in SLAYER.arms if arm.name == "LoRA of equal size")
    (fields,) = steps_named(lora, "masked_lora")
    wide, mlp, narrow, layers = 576, 1536, 192, 30
    shapes = [(wide, wide)] * 2 + [(wide, narrow)] * 2 + [(wide, mlp)] * 3
    in_lora = layers * fields["rank"] * sum(rows + columns for rows, columns in shapes)
    in_layers = 7 * (sum(rows * columns for rows, columns in shapes) + 2 * wide)
    assert in_lora == pytest.approx(in_layers, rel=0.01)
    for name in ("S placement, nothing pruned", "even placement"):
        (plain,) = (plain_recipe(arm, 0) for arm in SLAYER.arms if arm.name == name)
        assert len(steps_named(plain, "expand")[0]["after"]) == 7
        assert steps_named(plain, "freeze") == [{"except": "inserted"}]


@pytest.mark.parametrize("count", [21, 25])
def test_as_many_layers_are_frozen_at_random_as_by_the_gain_with_that_seed(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds read other rows, so that the gain's peak, and the number of trained layers with it, may differ."""
    asked: list[tuple[Any, ...]] = []

    def frozen_by_gain(*args: Any) -> int:
        asked.append(args)
        return count

    monkeypatch.setattr(rankings, "frozen_by_gain", frozen_by_gain)
    (arm,) = (arm for arm in FREEZING.arms if "random" in arm.name)
    (fields,) = steps_named(plain_recipe(arm, 2), "freeze")
    assert len(set(fields["layers"].split(","))) == count
    assert fields["outside"] == ["embedding"]
    ((selection, data, seed),) = asked
    assert (selection["by"], data[selection["data"]], seed) == ("semantic_gain", "data/instructions.jsonl", 2)


def test_the_head_is_healed_with_the_last_three_layers_once_it_is_untied() -> None:
    """The same rows and steps as LoRA's healing, and the loss before, after pruning and after healing."""
    (arm,) = (arm for arm in HEALING.arms if "head and last three" in arm.name)
    lora, head = (plain_recipe(one, 0)["steps"] for one in (Arm("as shipped", "prune_and_heal.yaml"), arm))
    assert [next(iter(step)) for step in head] == [
        "evaluate", "prune", "evaluate", "untie", "freeze", "train", "evaluate",
    ]  # fmt: skip
    assert head[4]["freeze"] == {"layers": "except last 3", "outside": ["embedding"]}
    trained = [next(step["train"] for step in steps if "train" in step) for steps in (lora, head)]
    assert {**trained[0], "learning_rate": 1e-4} == trained[1]
