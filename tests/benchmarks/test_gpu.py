"""The benchmark for GPUs runs on a CPU, so that nothing in it is tried for the first time on a rented card."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.gpu import PARTS, SIZES, measure

pytestmark = pytest.mark.slow


def test_every_part_runs_at_a_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what it found."""
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "cache"))
    report = measure(SIZES["small"], "cpu", tmp_path)
    assert report["failed"] == []
    assert all(report[part]["wall_seconds"] > 0 for part in PARTS)
    assert report["agreement"]["holds"]
    assert report["spectra"]["largest_error"] < 1e-7
