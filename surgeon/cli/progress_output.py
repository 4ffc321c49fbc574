"""What is said on stderr while a command works: rows as they arrive, a progress bar on a terminal, warnings."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Any

from surgeon.cli.formatting import bytes_text, count_text, duration_text, value_text
from surgeon.core.jobs import Event
from surgeon.core.training_events import is_training, training_texts

_BAR_CELLS = 24
_ASIDES = ("held-out loss", "reference")
"""What training does in between, which is no news where nothing can be redrawn."""


def on_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that can redraw a line."""
    return bool(stream.isatty()) and os.environ.get("TERM", "dumb") != "dumb"


@dataclass
class Narrator:
    """Says on stderr what happens, in the manner that -q, -v and --debug ask for."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    _bar: str = ""
    _what: str = ""
    _tenth: int = -1

    def say(self, text: str) -> None:
        """Say one or more lines."""
        if not self.quiet:
            self._write(self._wipe() + text + "\n" + self._bar)

    def hear(self, event: Event) -> None:
        """Say what an event of a job means to a person."""
        if event.event == "progress":
            self._progress(event.body)
        elif event.event == "scored":
            self.say(_scored(event.body))
        elif event.event == "evaluated":
            self.say(_evaluated(event.body))
        elif event.event == "log" and (self.verbose or event.body.get("level") in ("warning", "error")):
            self.say(str(event.body.get("text", "")))
        elif event.event == "stat" and self.verbose:
            self.say(f"memory {bytes_text(int(event.body.get('rss_bytes', 0)))}")

    def finish(self) -> None:
        """Remove the progress bar."""
        self._write(self._wipe())
        self._bar = ""

    def _progress(self, body: dict[str, Any]) -> None:
        what = str(body.get("what", ""))
        if not on_terminal(sys.stderr):
            if is_training(body):
                self._training(body)
            elif what != self._what and what not in _ASIDES:
                self.say(what)
        elif not self.quiet:
            wipe = self._wipe()
            self._bar = _bar_text(body)
            self._write(wipe + self._bar)
        self._what = what

    def _training(self, body: dict[str, Any]) -> None:
        """Say how a training goes, a tenth of it at a time; and what the last step came to once it is measured."""
        done, total = int(body["done"]), int(body["total"])
        tenth = done * 10 // total
        if tenth != self._tenth or done == total:
            self.say(f"{body.get('what')}: step {done} of {total}, {', '.join(_training_text(body))}")
        self._tenth = tenth

    def _wipe(self) -> str:
        return "\r\x1b[K" if self._bar else ""

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more; the work goes on
            sys.stderr.write(text)
            sys.stderr.flush()


def _bar_text(body: dict[str, Any]) -> str:
    done, total = body.get("done") or 0, body.get("total") or 0
    unit, what = str(body.get("unit", "")), str(body.get("what", ""))
    figures = [bytes_text(int(n)) if unit == "bytes" else f"{n:,}" for n in (done, total) if n or n is done]
    count = " / ".join(figures) + (f" {unit}" if unit != "bytes" else "")
    if not total:
        return f"{what}  {count}"
    cells = round(min(done / total, 1) * _BAR_CELLS)
    bar = f"{what}  {'█' * cells}{'░' * (_BAR_CELLS - cells)} {min(done / total, 1):4.0%}  {count}"
    if is_training(body):
        bar = "  ".join([bar, *_training_text(body)])
    import shutil  # late: with it come all ways of packing files

    return bar[: shutil.get_terminal_size().columns - 1]  # a line that wraps cannot be redrawn


def _training_text(body: dict[str, Any]) -> list[str]:
    """Write what is watched, how fast it goes, how long it will take."""
    speed, left = count_text(round(body.get("tokens_per_second") or 0)), float(body.get("eta_seconds") or 0)
    return [*training_texts(body), f"{speed} tokens/s", *([f"{duration_text(left)} left"] if left else [])]


def _evaluated(body: dict[str, Any]) -> str:
    figures = [f"{name} {_spread(found)}" for name, found in body["figures"].items()]
    data = f" on {body['data']}" if body.get("data") else ""
    return f"steps[{body['step']}]  {body['name']}{data}: {', '.join(figures)}"


def _spread(found: dict[str, Any]) -> str:
    error = found.get("error")
    return value_text(found["value"]) + (f" ± {value_text(error)}" if error is not None else "")


def _scored(body: dict[str, Any]) -> str:
    return f"{body.get('score')}  layer {body.get('layer')}  {_spread(body)}"
