"""Jobs as tests ask for them: arguments as plain data, and events told as (kind, plain body)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from surgeon.backend.jobs import dispatch
from surgeon.core.jobs import AnyEvent, AnyJob, Evaluated, IsCancelled, JobContext

PlainEmit = Callable[[str, dict[str, Any]], None]


def keep_silent(kind: str, body: dict[str, Any]) -> None:
    """Take an event and do nothing."""


def never() -> bool:
    """Do not cancel."""
    return False


def plain_event(event: AnyEvent) -> tuple[str, dict[str, Any]]:
    """Return an event's kind and its fields; figures of a training step stand beside the others."""
    body: dict[str, Any] = msgspec.to_builtins(event)
    kind = body.pop("event")
    body |= body.pop("figures", {}) if kind == "progress" else {}
    return kind, body["evaluation"] if isinstance(event, Evaluated) else body


def job_context(emit: PlainEmit = keep_silent, cancelled: IsCancelled = never, **more: Any) -> JobContext:
    """Return the context of a job whose events go to `emit`."""
    return JobContext(lambda event: emit(*plain_event(event)), cancelled, **more)


def job_of(name: str, args: Mapping[str, Any]) -> AnyJob:
    """Return a job from plain data; fields that are None take their defaults."""
    given = {field: str(value) if isinstance(value, Path) else value for field, value in args.items()}
    return msgspec.convert({"job": name, **{field: one for field, one in given.items() if one is not None}}, AnyJob)


def perform(
    name: str, args: Mapping[str, Any], emit: PlainEmit = keep_silent, cancelled: IsCancelled = never
) -> dict[str, Any]:
    """Perform a job in this process; return its result as plain data."""
    result = dispatch.perform(job_of(name, args), lambda event: emit(*plain_event(event)), cancelled)
    return msgspec.structs.asdict(result)
