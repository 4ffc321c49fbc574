"""Jobs as tests ask for them: arguments as plain data, and events told as (kind, plain body)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from surgeon.backend.jobs import dispatch
from surgeon.core.events import AnyEvent, Evaluated, Event
from surgeon.core.job_context import IsCancelled, JobContext
from surgeon.core.job_results import AnyResult
from surgeon.core.jobs import AnyJob

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
    job: AnyJob = msgspec.convert({"job": name, **{key: one for key, one in given.items() if one is not None}}, AnyJob)
    return job


def perform(
    name: str, args: Mapping[str, Any], emit: PlainEmit = keep_silent, cancelled: IsCancelled = never
) -> dict[str, Any]:
    """Perform a job in this process; return its result as plain data."""
    result = dispatch.perform(job_of(name, args), lambda event: emit(*plain_event(event)), cancelled)
    return msgspec.structs.asdict(result)


def plain_job(job: AnyJob) -> tuple[str, dict[str, Any]]:
    """Return a job's name and its fields as plain data."""
    body: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(job))
    return body.pop("job"), body


def result_of(name: str, body: Mapping[str, Any]) -> AnyResult:
    """Return what a job came to from plain data; a run's result may lack what the test is not about."""
    lacking: dict[str, Any] = {"proof": None, "evaluations": [], "recipe": {}} if name == "run" else {}
    result: AnyResult = msgspec.convert({"of": name, **lacking, **body}, AnyResult)
    return result


def event_of(kind: str, /, **body: Any) -> Event:
    """Return an event of job 1 from plain data; further fields of progress are figures of a training step."""
    if kind == "progress":
        own = {
            name: body.pop(name, default) for name, default in (("done", 0), ("total", 0), ("unit", ""), ("what", ""))
        }
        body = {**own, "figures": body}
    if kind == "evaluated":
        body = {"evaluation": body}
    return msgspec.convert({"id": 1, "body": {"event": kind, **body}}, Event)
