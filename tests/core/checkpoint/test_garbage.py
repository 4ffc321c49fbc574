"""The collector rests while a checkpoint is read, and only then."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from surgeon.core.checkpoint.checkpoint import open_checkpoint
from surgeon.core.checkpoint.garbage import nothing_collected
from surgeon.errors import CheckpointError
from tests.export.handmade_shards import write_llama


def test_it_is_as_it_was_afterwards() -> None:
    """On or off, and one within another."""
    with nothing_collected(), nothing_collected():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with nothing_collected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_it_works_again_after_an_error(tmp_path: Path) -> None:
    """A directory that is none."""
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "none")
    assert gc.isenabled()


def test_it_works_while_a_command_does(tmp_path: Path) -> None:
    """Only what was imported before is left out."""
    code = (
        "import gc, sys, surgeon.cli.commands.inspect as inspect\n"
        "inspect.print_json = lambda _: print(gc.isenabled(), gc.get_freeze_count() > 1000)\n"
        f"sys.argv = ['surgeon', 'inspect', {str(write_llama(tmp_path / 'base'))!r}, '--json']\n"
        "from surgeon.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
