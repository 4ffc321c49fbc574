"""What is said on stderr while a command works: rows as they arrive, a progress bar on a terminal, warnings."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Any

from surgeon.cli.formatting import bytes_text, count_text, duration_text, value_text
from surgeon.core.events import Evaluated, Event, LayerScored, LogMessage, Progress, Statistics
from surgeon.core.training_figures import Figures, is_training, training_texts

_BAR_CELLS = 24
_ASIDES = ("held-out loss", "reference")
"""What training does in between, which is no news where nothing can be redrawn."""


def on_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that can redraw a line."""
    return bool(stream.isatty()) and os.environ.get("TERM", "dumb") != "dumb"


@dataclass
class ConsoleReporter:
    """Says on stderr what happens, in the manner that -q, -v and --debug ask for."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    _bar: str = ""
    _what: str = ""
    _tenth: int = -1

    def write_line(self, text: str) -> None:
        """Say one or more lines."""
        if not self.quiet:
            self._write(self._wipe() + text + "\n" + self._bar)

    def on_event(self, event: Event) -> None:
        """Say what an event of a job means to a person."""
        body = event.body
        if isinstance(body, Progress):
            self._progress(body)
        elif isinstance(body, LayerScored):
            self.write_line(_scored(body))
        elif isinstance(body, Evaluated):
            self.write_line(_evaluated(body.evaluation))
        elif isinstance(body, LogMessage) and (self.verbose or body.level in ("warning", "error")):
            self.write_line(body.text)
        elif isinstance(body, Statistics) and self.verbose:
            self.write_line(f"memory {bytes_text(body.rss_bytes)}")

    def finish(self) -> None:
        """Remove the progress bar."""
        self._write(self._wipe())
        self._bar = ""

    def _progress(self, body: Progress) -> None:
        if not on_terminal(sys.stderr):
            if is_training(body.figures):
                self._training(body)
            elif body.what != self._what and body.what not in _ASIDES:
                self.write_line(body.what)
        elif not self.quiet:
            wipe = self._wipe()
            self._bar = _bar_text(body)
            self._write(wipe + self._bar)
        self._what = body.what

    def _training(self, body: Progress) -> None:
        """Say how a training goes, a tenth of it at a time; and what the last step came to once it is measured."""
        done, total = body.done, body.total
        tenth = done * 10 // total
        if tenth != self._tenth or done == total:
            self.write_line(f"{body.what}: step {done} of {total}, {', '.join(_training_text(body.figures))}")
        self._tenth = tenth

    def _wipe(self) -> str:
        return "\r\x1b[K" if self._bar else ""

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more; the work goes on
            sys.stderr.write(text)
            sys.stderr.flush()


def _bar_text(body: Progress) -> str:
    done, total, unit, what = body.done, body.total, body.unit, body.what
    figures = [bytes_text(int(n)) if unit == "bytes" else f"{n:,}" for n in (done, total) if n or n is done]
    count = " / ".join(figures) + (f" {unit}" if unit != "bytes" else "")
    if not total:
        return f"{what}  {count}"
    cells = round(min(done / total, 1) * _BAR_CELLS)
    bar = f"{what}  {'█' * cells}{'░' * (_BAR_CELLS - cells)} {min(done / total, 1):4.0%}  {count}"
    if is_training(body.figures):
        bar = "  ".join([bar, *_training_text(body.figures)])
    import shutil  # late: with it come all ways of packing files

    return bar[: shutil.get_terminal_size().columns - 1]  # a line that wraps cannot be redrawn


def _training_text(figures: Figures) -> list[str]:
    """Write what is watched, how fast it goes, how long it will take."""
    speed, left = count_text(round(figures.get("tokens_per_second") or 0)), figures.get("eta_seconds") or 0.0
    return [*training_texts(figures), f"{speed} tokens/s", *([f"{duration_text(left)} left"] if left else [])]


def _evaluated(body: dict[str, Any]) -> str:
    figures = [f"{name} {_spread(found['value'], found.get('error'))}" for name, found in body["figures"].items()]
    data = f" on {body['data']}" if body.get("data") else ""
    return f"steps[{body['step']}]  {body['name']}{data}: {', '.join(figures)}"


def _spread(value: float | None, error: float | None) -> str:
    return value_text(value) + (f" ± {value_text(error)}" if error is not None else "")


def _scored(body: LayerScored) -> str:
    return f"{body.score}  layer {body.layer}  {_spread(body.value, body.error)}"
