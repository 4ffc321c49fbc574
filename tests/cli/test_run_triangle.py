"""The triangle of runs: a row for each first layer, the lowest one marked, what was not measured left blank."""

from __future__ import annotations

from surgeon.cli.run_triangle import run_triangle
from surgeon.core.scoring.score import Provenance, Score


def test_rows_are_first_layers_and_columns_last_ones() -> None:
    runs = {"0-0": [0.5, 0.1], "0-1": [0.2, 0.1], "1-2": [-0.3, 0.05], "2-2": [0.9, None]}
    score = Score(name="block_repeat", values={}, details={"runs": runs}, provenance=Provenance(fingerprint=""))
    lines = run_triangle(score, 3).splitlines()
    assert lines[2:5] == ["    0  ▒▒▓▓", "    1      ◆◆", "    2      ░░"]
    assert lines[-1] == "◆ 1-2: -0.3000 ± 0.05, the lowest of 4 runs"
