"""End to end in a real terminal: the program as a person starts it, in tmux, and what kills it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from surgeon.session import Session
from tests.ui.app_driver import fake_worker

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
_TIMEOUT_SECONDS = 40


class Terminal:
    """A tmux server of its own with one window that runs a shell command."""

    def __init__(self, width: int, height: int, folder: Path) -> None:
        self._socket = f"surgeon-{uuid.uuid4().hex[:8]}"
        self._folder = folder
        self._tmux("-f", "/dev/null", "new", "-d", "-x", str(width), "-y", str(height), "sh")
        self.status = folder / "status"

    def _tmux(self, *words: str) -> str:
        return subprocess.run(["tmux", "-L", self._socket, *words], capture_output=True, text=True, check=True).stdout

    def start(self, *words: str) -> None:
        """Start surgeon; its exit status is written when it ends."""
        self.status.unlink(missing_ok=True)
        command = shlex.join([sys.executable, "-m", "surgeon", *words])
        paths = shlex.quote(os.pathsep.join(sys.path))
        environment = f"PYTHONPATH={paths} SURGEON_STATE={os.environ['SURGEON_STATE']} COLORTERM=truecolor"
        self.keys(f"clear; {environment} {command}; echo $? > {shlex.quote(str(self.status))}", "Enter")

    def keys(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    @property
    def text(self) -> str:
        return self._tmux("capture-pane", "-p")

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was: main screen, no mouse reports."""
        return self._tmux("display", "-p", "#{alternate_on} #{mouse_any_flag}").strip() == "0 0"

    def pid(self) -> int:
        """Return the process id of the interface."""
        shell = self._tmux("display", "-p", "#{pane_pid}").strip()
        return int(subprocess.run(["pgrep", "-P", shell], capture_output=True, text=True, check=True).stdout.split()[0])

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"timed out; the screen is\n{self.text}"
            time.sleep(0.05)

    def shows(self, *parts: str) -> None:
        """Wait until the screen holds all of these."""
        self.wait_until(lambda: all(part in self.text for part in parts))

    def ended(self) -> int:
        """Wait for the end and return the exit status."""
        self.wait_until(lambda: self.status.exists() and self.status.read_text().strip())
        return int(self.status.read_text())

    def close(self) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(80, 24, tmp_path)
    yield opened
    opened.close()


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(number) for number in found.split()]


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_person_opens_prunes_undoes_and_quits_and_the_terminal_is_as_it_was(terminal: Terminal, tiny: Path) -> None:
    terminal.start(str(tiny), "--worker", fake_worker())
    terminal.shows("S measures importance", "tiny-llama")
    terminal.keys("j", "d")
    terminal.shows("DRAFT", "6→5 layers", "--layers 1")
    terminal.keys("Enter")
    terminal.shows("pruned·1", "applied: prune 1")
    terminal.keys("u")
    terminal.shows("undone: prune 1")
    terminal.keys("q")
    assert terminal.ended() == 0
    assert terminal.restored


def test_killing_the_worker_while_it_measures_loses_nothing(terminal: Terminal, tiny: Path, tmp_path: Path) -> None:
    resume_file = tmp_path / "resume"
    terminal.start(str(tiny), "--worker", fake_worker("--pause-after", "4", "--resume-file", str(resume_file)))
    terminal.shows("S measures importance")
    terminal.keys("d", "Enter", "S", "Enter")
    terminal.shows("···", "x cancels", ".150")
    worker = children(terminal.pid())[0]
    os.kill(worker, signal.SIGKILL)
    terminal.shows("killed by SIGKILL", "S measures again", ".150", "pruned·1")
    resume_file.touch()
    terminal.keys("S", "Enter")
    terminal.shows("measured weight_norm, block_influence")
    assert "SIGKILL" not in terminal.text
    assert "···" not in terminal.text


def test_killing_the_interface_loses_no_step_and_leaves_no_worker(terminal: Terminal, tiny: Path) -> None:
    terminal.start(str(tiny), "--worker", fake_worker("--pause-after", "4"))
    terminal.shows("S measures importance")
    terminal.keys("j", "d", "Enter")
    terminal.shows("pruned·1")
    terminal.keys("j", "f", "Enter")
    terminal.shows("FROZEN")
    terminal.keys("S", "Enter")
    terminal.shows("x cancels", "···")
    pid = terminal.pid()
    worker = children(pid)[0]
    os.kill(pid, signal.SIGKILL)
    assert terminal.ended() == 137
    terminal.wait_until(lambda: not is_alive(worker))
    # A killed program leaves the terminal raw. No `reset`: it throws away what is typed while it works.
    terminal.keys("stty sane; echo rea''dy", "C-j")
    terminal.shows("ready")
    terminal.start(str(tiny), "--worker", fake_worker())
    terminal.shows("recovered 2 steps", "pruned·1", "FROZEN")
    terminal.keys("q")
    terminal.shows("recovers them")
    terminal.keys("k")
    assert terminal.ended() == 0
    again = Session.open(str(tiny))
    assert again.position == 2
    again.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_restores_the_terminal_and_keeps_the_steps(
    terminal: Terminal, tiny: Path, number: signal.Signals
) -> None:
    terminal.start(str(tiny), "--worker", fake_worker("--pause-after", "4", "--ignore-cancel"))
    terminal.shows("S measures importance")
    terminal.keys("d", "Enter", "S", "Enter")
    terminal.shows("x cancels", "···")
    worker = children(terminal.pid())[0]
    os.kill(terminal.pid(), number)
    assert terminal.ended() == 128 + number
    assert terminal.restored
    terminal.wait_until(lambda: not is_alive(worker))
    again = Session.open(str(tiny))
    assert again.position == 1
    again.close()


def test_a_terminal_that_is_too_small_says_so_and_recovers_when_it_grows(terminal: Terminal, tiny: Path) -> None:
    terminal.start(str(tiny), "--worker", fake_worker())
    terminal.shows("S measures importance")
    terminal._tmux("resize-window", "-x", "60", "-y", "16")
    terminal.shows("needs 80×24", "60×16")
    terminal._tmux("resize-window", "-x", "130", "-y", "30")
    terminal.shows("self_attn.q_proj", "no steps yet")
