"""How a failure is told: a message on stderr, JSON on stdout where it was asked for, and the exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from surgeon.cli.formatting import print_json
from surgeon.core.checkpoint.model_location import state_directory
from surgeon.errors import Cancelled, SurgeonError, UsageError

READER_GONE = 141
"""What a shell reports for a program that SIGPIPE ended."""


def exit_status(error: BaseException, words: Sequence[str], *, debug: bool) -> int:
    """Tell a failure and return the exit status; `words` is the command line."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, BrokenPipeError):
        _close_streams()
        return READER_GONE
    known = _known(error)
    if debug and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    if known is None:
        known = SurgeonError(
            f"this should not have happened: {type(error).__name__}: {error}",
            hint=f"the traceback is in {_write_log(error, words)}; --debug shows it",
        )
    try:
        print(f"surgeon: {known}", file=sys.stderr)
        if "--json" in words:
            print_json({"error": {**known.to_dict(), "exit": known.exit_code}})
        sys.stdout.flush()
    except OSError:
        _close_streams()
    return known.exit_code


def _known(error: BaseException) -> SurgeonError | None:
    if isinstance(error, SurgeonError):
        return error
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return Cancelled()
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f"{context.command_path} --help" if context is not None else "surgeon --help"
        message = error.format_message().strip()
        return UsageError(message[:1].lower() + message[1:].rstrip("."), hint=hint)
    if isinstance(error, OSError) and error.strerror is not None:
        where = "output" if error.filename is None else str(error.filename)
        return SurgeonError(error.strerror[:1].lower() + error.strerror[1:], where=where)
    return None


def _write_log(error: BaseException, words: Sequence[str]) -> Path:
    moment = datetime.now(tz=UTC).strftime("%Y%m%d-%H%M%S")
    path = state_directory() / "crashes" / f"{moment}-{os.getpid()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"surgeon {' '.join(words)}\n\n" + "".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return Path("no file: it could not be written")
    return path


def _close_streams() -> None:
    """Point both streams nowhere: Python flushes them once more when it ends, and would complain there."""
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError):
            continue
