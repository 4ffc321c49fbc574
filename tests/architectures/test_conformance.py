"""A sample of the conformance run: structurally different families, operated on and compared with transformers alone.

All types: `make architectures`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.architectures.conformance import RESULTS, examine
from tests.architectures.table import EXPAND, PRUNE, built, cases_of, counts, table, verdict

# Each for something of its own: sandwich norms, slices outside the layers, transposed and fused matrices, experts one
# by one and stacked, periods, index lists, patterns, state-space layers, what only the first layer holds, encoders,
# layers bound to their number.
_SAMPLE = (
    "gpt2",
    "gemma3_text",
    "gemma4_text",
    "mixtral",
    "qwen3_next",
    "deepseek_v3",
    "glm_moe_dsa",
    "llama4_text",
    "jamba",
    "nemotron_h",
    "recurrent_gemma",
    "gpt_neo",
    "rwkv",
    "mamba2",
    "bert",
    "bart",
    "minicpm3",
    "diffllama",
)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", _SAMPLE)
def test_operations_are_exact_or_refused(
    model_type: str, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the table in the README says of a type is what happens."""
    monkeypatch.setattr("tests.architectures.conformance.OLDER_TOO", False)
    record = examine(model_type)
    stored = results["types"][model_type]

    for case, outcomes in record["cases"].items():
        kinds = {name: outcome[0] for name, outcome in outcomes.items()}
        assert kinds == {name: outcome[0] for name, outcome in stored["cases"][case].items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_type_is_exact_or_refused() -> None:
    """`make architectures` finds nothing wrong."""
    ran = subprocess.run([sys.executable, "-m", "tests.architectures.conformance", "--out", "/dev/null"], check=False)
    assert ran.returncode == 0


def test_the_stored_results_hold_nothing_wrong(results: dict[str, Any]) -> None:
    """Of at least 150 types, nothing loads with a difference that nobody was told of."""
    assert len(built(results)) >= 150
    for name, record in built(results).items():
        for case, outcomes in record["cases"].items():
            bad = {operation: outcome for operation, outcome in outcomes.items() if outcome[0] in ("wrong", "error")}
            assert not bad, f"{name}, {case}"


def test_nearly_all_types_can_be_pruned_exactly(results: dict[str, Any]) -> None:
    """At least 95 % of them: all ways to prune, or all but those that the config cannot say."""
    tally = counts(results)["prune"]
    assert (tally["exact"] + tally["partly"]) / sum(tally.values()) >= 0.95


def test_every_refusal_says_why(results: dict[str, Any]) -> None:
    """And names a config field, a tensor or a layer."""
    for record in built(results).values():
        for outcomes in record["cases"].values():
            assert all(
                len(outcome[1]) > 20 and ":" in outcome[1] for outcome in outcomes.values() if outcome[0] == "refused"
            )


def test_the_table_counts_every_type_once(results: dict[str, Any]) -> None:
    """The figures of the README come from the stored results."""
    assert "| wrong |" in table(results)
    for names in (PRUNE, EXPAND):
        verdicts = [verdict(cases_of(record), names) for record in built(results).values()]
        assert len(verdicts) == len(built(results))
        assert "wrong" not in verdicts
