"""What the interface's process loads, seen from a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_first_paint_loads_no_heavy_library(tiny: Path) -> None:
    """They would cost the time to the first paint, and make every garbage collection a pause."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.ui.first_paint", str(tiny)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = json.loads(done.stdout)
    assert found["painted"]
    assert found["heavy"] == []
