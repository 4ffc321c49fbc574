from __future__ import annotations

import json
from typing import Any

import pytest

from surgeon.errors import SelectionError
from tests.cli.conftest import Jobs, Run
from tests.jobs import event_of


def row(role: str, decile: int, rise: float, error: float | None = 0.01) -> dict[str, Any]:
    return {"role": role, "decile": decile, "rise": rise, "error": error, "energy": 0.1 * decile}


@pytest.fixture
def ablated(jobs: Jobs) -> Jobs:
    rows = [row(role, decile, decile / 10) for role in ("mlp.up", "mlp.down") for decile in (1, 2)]
    jobs.answer = {"ablations": {"base": 2.5, "rows": rows, "provenance": {"fingerprint": "ff"}}}
    jobs.events = [event_of("ablated", ablation=one) for one in rows]
    return jobs


def test_the_table_has_a_line_per_decile_and_two_columns_per_role(run: Run, model: str, ablated: Jobs) -> None:
    result = run("ablate", model, "--roles", "mlp.up,mlp.down")
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["decile", "mlp.up", "energy", "mlp.down", "energy"]
    assert lines[2] == ["2", "+0.2000", "±", "0.01", "20.00%", "+0.2000", "±", "0.01", "20.00%"]
    assert "loss of the whole model: 2.500 nats per token" in result.stdout
    assert "mlp.up  decile 1  +0.1000 ± 0.01  energy 10.00%" in result.stderr


def test_the_ablate_job_is_asked_for_what_the_options_say(run: Run, model: str, ablated: Jobs) -> None:
    words = ["--roles", "mlp.up", "--roles", "mlp.down, mlp.up", "--sequences", 2, "--length", 9, "--stream", "--json"]
    result = run("ablate", model, *words)
    assert json.loads(result.stdout)["rows"][0]["decile"] == 1
    ((job, args, _),) = ablated.asked
    assert (job, args["roles"]) == ("ablate", ["mlp.up", "mlp.down"])
    assert (args["sequences"], args["length"], args["stream"], args["data"]) == (2, 9, True, None)
    assert args["recipe"]["base"]["model"] == model


def test_a_rise_without_an_error_is_told_without_one(run: Run, model: str, jobs: Jobs) -> None:
    jobs.answer = {"ablations": {"base": 1.0, "rows": [row("mlp.up", 1, -0.25, None)]}}
    assert run("ablate", model, "--roles", "mlp.up").stdout.splitlines()[1].split() == ["1", "-0.2500", "10.00%"]


def test_no_role_is_wrong_usage_and_a_wrong_one_an_error_in_words(run: Run, model: str, jobs: Jobs) -> None:
    assert run("ablate", model, "--roles", ",").exit_code == 2
    assert run("ablate", model).exit_code == 2
    jobs.answer = SelectionError("no matrix in a layer has role 'x'", where="roles", allowed="mlp.up")
    result = run("ablate", model, "--roles", "x")
    assert result.exit_code == 2
    assert "allowed: mlp.up" in result.stderr
