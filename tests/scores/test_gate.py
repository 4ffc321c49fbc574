"""The gate score: which of a draft's own adapters `learn_masks` found to matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from surgeon.core.plan.learned_results import TENSORS, result_directory
from surgeon.errors import ScoreError
from tests.export.replaying import run
from tests.scores.sample_models import patient

QUICK = {"steps": 3, "batch_size": 3, "max_length": 48, "learning_rate": 0.01}
ROLES = {"q_proj": "attention.query", "o_proj": "attention.output", "up_proj": "mlp.up"}
LORA = {"masked_lora": {"layers": "0-2", "roles": list(ROLES.values()), "rank": 2}}
LEAST = {"drop_adapters": {"matrices": {"lowest": "50%", "by": "gate"}}}


@pytest.fixture
def learning(tmp_path: Path) -> list[dict[str, Any]]:
    """Return the steps of ILA's first two stages on nine matrices."""
    rows = [{"prompt": f"what is {a}+{b}?", "response": f"it is {a + b}"} for a in range(4) for b in range(5)]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    same = {"objective": "sft", "data": str(path), **QUICK}
    return [LORA, {"train": same}, {"learn_masks": {**same, "init": 4.0}}]


def test_adapters_are_dropped_by_the_gates_that_were_learned(tmp_path: Path, learning: list[dict[str, Any]]) -> None:
    """Those with the lowest gates in the result's own file go; the rest are exported."""
    done = run(patient("llama", tmp_path / "base"), tmp_path / "out", *learning, LEAST)
    masked, dropped = done["recipe"]["steps"][2:]
    with safe_open(result_directory(masked["resolved"]["learned"][0]) / TENSORS, "pt") as file:
        gates = {name: file.get_tensor(name).item() for name in file.keys() if name.endswith("/gate")}  # noqa: SIM118
    ranked = sorted(gates, key=gates.__getitem__)
    assert len(set(gates.values())) == len(gates) == 9
    parts = (name.split("/") for name in ranked[:4])
    assert set(dropped["resolved"]["matrices"]) == {
        f"{key}.{ROLES[suffix.rpartition('.')[2]]}" for _, key, suffix, _ in parts
    }
    targets = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) == 5


def test_what_was_dropped_already_is_ranked_no_more(tmp_path: Path, learning: list[dict[str, Any]]) -> None:
    """Half of nine, then half of the five that are left."""
    done = run(patient("llama", tmp_path / "base"), tmp_path / "out", *learning, LEAST, LEAST)
    first, second = (set(step["resolved"]["matrices"]) for step in done["recipe"]["steps"][3:])
    assert (len(first), len(second)) == (4, 2)
    assert not first & second


@pytest.mark.parametrize(
    ("stages", "problem"),
    [(0, "there are no trained adapters"), (1, "there are no trained adapters"), (2, "gates of trained adapters")],
)
def test_without_learned_gates_it_is_refused(
    stages: int, problem: str, tmp_path: Path, learning: list[dict[str, Any]]
) -> None:
    """Nothing attached, nothing trained, no gates trained: all of them said, with what comes before."""
    freeze = {"freeze": {"matrices": {"lowest": "50%", "by": "gate"}}}
    with pytest.raises(ScoreError, match=problem) as caught:
        run(patient("llama", tmp_path / "base"), tmp_path / "out", *learning[:stages], freeze)
    assert "learn_masks" in str(caught.value)
    assert not (tmp_path / "out").exists()
